"""A generator's texts as OpenAI's answers: completions and chat, whole or as events, and embeddings. Knows no Ray."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from seekray_serve.generate.openai_api import Asked

if TYPE_CHECKING:
    from seekray.models.text_engine import Piece


def embeddings(found: Sequence[tuple[int, Any]], packed: bool, model: Mapping[str, Any]) -> bytes:
    """The answer of tokens and vectors, as lists of numbers or packed as float32 in base64."""
    vectors = [vector.numpy().astype("<f4") for _, vector in found]
    told = [base64.b64encode(v.tobytes()).decode() if packed else v for v in vectors]
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(told)]
    tokens = sum(count for count, _ in found)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, **model, "usage": usage}, option=orjson.OPT_SERIALIZE_NUMPY)


class Writer:
    """The answer to one request, whole or as events.

    word: a token's text; prompt_tokens: of all prompts, each once; begins: what stands before each text, where it is echoed.
    """

    def __init__(
        self, asked: Asked, model: Mapping[str, Any], word: Callable[[int], str], prompt_tokens: int, begins: Sequence[str]
    ) -> None:
        texts = len(begins)
        self._asked, self._word, self._prompt_tokens = asked, word, prompt_tokens
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": f"{kind}.chunk" if asked.chat and asked.stream else kind,
            "created": int(time.time()),
            **model,
        }
        self._logprobs, self._begins = asked.logprobs, begins
        self._made: list[list[Piece]] = [[] for _ in range(texts)]
        self._offsets = [0] * texts
        self._begun = [False] * texts
        self.tokens = 0

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Take what a step made, for `whole`."""
        for piece in pieces:
            self._made[piece.job.key[1]].append(piece)
        self.tokens += len(pieces)

    def whole(self) -> bytes:
        """The answer when every text has ended."""
        choices = []
        for index, number in enumerate(self._best()):
            pieces = self._made[number]
            text = self._begins[number] + "".join(piece.text for piece in pieces)
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self._asked.chat else {"text": text}
            )
            choices.append(self._choice(index, content, pieces, pieces[-1].finish))
        return orjson.dumps({**self._head, "choices": choices, "usage": self._usage()})

    def _best(self) -> list[int]:
        """Numbers of the texts that are told: of each prompt's, those whose tokens are the likeliest in the mean."""
        numbers, of_prompt = list(range(len(self._made))), self._asked.request.get("n", 1)
        if self._asked.kept is None:
            return numbers

        def likelihood(number: int) -> float:
            pieces = self._made[number]
            return sum(piece.logprob or 0.0 for piece in pieces) / len(pieces)

        groups = [numbers[at : at + of_prompt] for at in range(0, len(numbers), of_prompt)]
        return [number for group in groups for number in sorted(group, key=likelihood, reverse=True)[: self._asked.kept]]

    def events(self, pieces: Sequence[Piece]) -> bytes:
        """What a step made, as server-sent events; a token that gives no text yet is told with the next that does."""
        self.tokens += len(pieces)
        out = []
        for piece in pieces:
            index = piece.job.key[1]
            made = self._made[index]
            made.append(piece)
            if not piece.text and piece.finish is None:
                continue
            text = piece.text
            if self._asked.chat:
                if not self._begun[index]:
                    out.append(self._event([self._choice(index, {"delta": {"role": "assistant", "content": ""}}, [], None)]))
                    self._begun[index] = True
                delta = {"content": text} if text or self._logprobs else {}
                out.append(self._event([self._choice(index, {"delta": delta}, made, piece.finish)]))
            else:
                if not self._begun[index]:
                    text, self._begun[index] = self._begins[index] + text, True
                out.append(self._event([self._choice(index, {"text": text}, made, piece.finish)]))
            made.clear()
        return b"".join(out)

    def last(self) -> bytes:
        """The events after all texts."""
        usage = self._event([], self._usage()) if self._asked.usage else b""
        return usage + b"data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        value = {**self._head, "choices": choices, **({"usage": usage} if self._asked.usage else {})}
        return b"data: " + orjson.dumps(value) + b"\n\n"

    def _choice(self, index: int, content: dict[str, Any], pieces: Sequence[Piece], finish: str | None) -> dict[str, Any]:
        found = None
        if self._logprobs and pieces:
            found = self._chat_logprobs(pieces) if self._asked.chat else self._completion_logprobs(index, pieces)
        return {"index": index, **content, "logprobs": found, "finish_reason": finish}

    def _chat_logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        return {
            "content": [
                {**self._token(p.token, p.logprob), "top_logprobs": [self._token(t, v) for t, v in p.others]} for p in pieces
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        word = self._word(token)
        # A part of a character has no text of its own, so its bytes are not said.
        return {"token": word, "logprob": logprob, "bytes": None if "\ufffd" in word else list(word.encode())}

    def _completion_logprobs(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        offsets = []
        for piece in pieces:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(piece.text)
        return {
            "tokens": [self._word(p.token) for p in pieces],
            "token_logprobs": [p.logprob for p in pieces],
            # Of tokens with the same text (parts of characters) the likeliest is told.
            "top_logprobs": [{self._word(t): v for t, v in reversed(p.others)} for p in pieces],
            "text_offset": offsets,
        }

    def _usage(self) -> dict[str, int]:
        total = self._prompt_tokens + self.tokens
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}
