"""OpenAI's completions and chat: their requests as those of a generator, and its texts as their answers. Knows no Ray."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from seekray_serve.http import RequestError

if TYPE_CHECKING:
    from seekray.models.text_engine import Piece

DEFAULT_TOKENS = 16  # of a completion, as OpenAI's
MOST_TEXTS = 128  # of each prompt, as OpenAI's
# What a generator knows by the same name; those that OpenAI does not have are extensions, as in other servers.
_SAME = ("temperature", "top_p", "top_k", "min_p", "min_tokens", "repetition_penalty", "truncate", "n", "seed")
# What changes nothing of the answer.
_PASSED_OVER = frozenset((
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
))  # fmt: skip
# What is there in OpenAI's interface and not here; these values ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,), "best_of": (1,), "suffix": ("",), "logit_bias": ({},),
    "presence_penalty": (0,), "frequency_penalty": (0,),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "reasoning_effort": (), "audio": (), "prediction": (),
    "verbosity": (), "web_search_options": (),
}  # fmt: skip
_OWN = frozenset(("model", "prompt", "messages", "stream", "stream_options", "stop", "logprobs", "max_tokens"))
_CHAT_OWN = frozenset(("top_logprobs", "max_completion_tokens"))


@dataclass(frozen=True)
class Asked:
    """A request. request: what a generator is asked for, the prompts of a chat being still `messages`."""

    chat: bool
    request: dict[str, Any]
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    stream: bool = False
    usage: bool = False  # of a stream, in a last event


def read(body: object, name: str, *, chat: bool) -> Asked:
    """A body that was sent to the model `name`. Raises RequestError, which names the parameter."""
    given = _named(body, name)
    _check_names(given, chat)
    request = {key: given[key] for key in _SAME if key in given}
    request.setdefault("seed", secrets.randbits(31))
    n = request.get("n", 1)
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST_TEXTS:
        raise _wrong("n", n, f"expected 1 to {MOST_TEXTS}")
    if "stop" in given:
        request["stop"] = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    stream, options = given.get("stream", False), given.get("stream_options", {})
    if not isinstance(stream, bool):
        raise _wrong("stream", stream, "expected true or false")
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, "expected an object")
    messages: list[Mapping[str, Any]] = []
    if chat:
        messages = _messages(given.get("messages"))
        limit = given.get("max_completion_tokens", given.get("max_tokens"))
        if limit is not None:
            request["max_tokens"] = limit
        if given.get("logprobs", False):
            request["logprobs"] = given.get("top_logprobs", 0)
        elif "top_logprobs" in given:
            raise _wrong("top_logprobs", given["top_logprobs"], "expected logprobs to be true with it")
    else:
        request["prompts"] = _prompts(given.get("prompt"))
        request["max_tokens"] = given.get("max_tokens", DEFAULT_TOKENS)
        if "logprobs" in given:
            request["logprobs"] = given["logprobs"]
    return Asked(chat, request, messages, stream, stream and bool(options.get("include_usage")))


def read_images(body: object, name: str, conditions: Sequence[str], size: str, most: int) -> dict[str, Any]:
    """A body for `/v1/images/generations` as a request of rows. Raises RequestError, which names the parameter.

    The prompt says the conditions: the value of the only one, `column=value, column=value` of several, or nothing.
    """
    given = _named(body, name)
    for key in given.keys() - {"model", "prompt", "n", "size", "response_format", "seed", "user"}:
        raise RequestError(400, "unsupported_parameter", f"{key!r} is not supported here; leave it out", field=key)
    if given.get("size", "auto") not in ("auto", size):
        raise _wrong("size", given["size"], f"the model makes {size}")
    if given.get("response_format", "b64_json") != "b64_json":
        raise _wrong("response_format", given["response_format"], "expected b64_json: images are not kept for a url")
    rows = given.get("n", 1)
    if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= most:
        raise _wrong("n", rows, f"expected 1 to {most}")
    prompt = given.get("prompt", "")
    if not isinstance(prompt, str):
        raise _wrong("prompt", prompt, "expected a text")
    where: dict[str, str] = {}
    if "=" in prompt:
        pairs = (part.partition("=") for part in prompt.split(","))
        where = {key.strip(): value.strip() for key, _, value in pairs}
    elif prompt.strip() and len(conditions) == 1:
        where = {conditions[0]: prompt.strip()}
    elif prompt.strip():
        told = (
            f"expected column=value of {', '.join(conditions)}" if conditions else "the model has no condition: leave it empty"
        )
        raise _wrong("prompt", prompt, told)
    return {"rows": rows, "seed": given.get("seed", secrets.randbits(31)), "where": where}


def read_embeddings(body: object, name: str, most: int) -> tuple[list[Any], bool]:
    """A body for `/v1/embeddings` as texts or lists of ids, and whether vectors shall be base64. Raises RequestError."""
    given = _named(body, name)
    for key in given.keys() - {"model", "input", "encoding_format", "user"}:
        raise RequestError(400, "unsupported_parameter", f"{key!r} is not supported here; leave it out", field=key)
    form = given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise _wrong("encoding_format", form, "expected float or base64")
    texts = _prompts(given.get("input"), "input")
    if len(texts) > most:
        raise RequestError(400, "bad_input", f"{len(texts)} texts given, at most {most} a request", field="input")
    return texts, form == "base64"


def embeddings(found: Sequence[tuple[int, Any]], packed: bool, model: Mapping[str, Any]) -> bytes:
    """The answer of tokens and vectors, as lists of numbers or packed as float32 in base64."""
    vectors = [vector.numpy().astype("<f4") for _, vector in found]
    told = [base64.b64encode(v.tobytes()).decode() if packed else v for v in vectors]
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(told)]
    tokens = sum(count for count, _ in found)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, **model, "usage": usage}, option=orjson.OPT_SERIALIZE_NUMPY)


def _named(body: object, name: str) -> dict[str, Any]:
    """A body's parameters that are not null, where it is for the model `name`."""
    if not isinstance(body, dict):
        raise RequestError(400, "bad_input", f"the body is {type(body).__name__}, expected a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    if given.get("model", name) != name:
        raise RequestError(404, "model_not_found", f"there is {name!r} here, not {given['model']!r}", field="model")
    return given


def _check_names(given: Mapping[str, Any], chat: bool) -> None:
    own = (_OWN | _CHAT_OWN) - {"prompt"} if chat else _OWN - {"messages"}
    for key, value in given.items():
        if key in own or key in _SAME or key in _PASSED_OVER:
            continue
        if key not in _NEUTRAL:
            known = ", ".join(sorted(own | set(_SAME)))
            raise RequestError(400, "unknown_parameter", f"unknown parameter {key!r}; known are {known}", field=key)
        if value not in _NEUTRAL[key]:
            raise RequestError(400, "unsupported_parameter", f"{key!r} is not supported here; leave it out", field=key)


def _prompts(prompt: object, name: str = "prompt") -> list[Any]:
    """A text, texts, ids, or lists of ids."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        ids = [isinstance(p, int) and not isinstance(p, bool) for p in prompt]
        if all(ids):
            return [prompt]
        if not any(ids) and all(isinstance(p, str | list) for p in prompt):
            return prompt
    shown = f"no {name}" if prompt is None else type(prompt).__name__
    raise RequestError(400, "bad_input", f"{shown} given, expected a text, texts, token ids or lists of them", field=name)


def _messages(messages: object) -> list[Mapping[str, Any]]:
    """Messages whose content is a text; parts of a text are put together."""
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "bad_input", "no messages given, expected [{role, content}, …]", field="messages")
    found: list[Mapping[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(400, "bad_input", f"{where} has no role; expected {{role, content}}", field="messages")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise RequestError(400, "bad_input", f"{where}: content must be a text or parts of text", field="messages")
        found.append({**message, "content": content})
    return found


def _wrong(name: str, value: object, expected: str) -> RequestError:
    return RequestError(400, "bad_input", f"{name}: {value!r} given, {expected}", field=name)


class Writer:
    """The answer to one request, whole or as events. word: a token's text; prompt_tokens: of all prompts, each once."""

    def __init__(
        self, asked: Asked, model: Mapping[str, Any], word: Callable[[int], str], prompt_tokens: int, texts: int
    ) -> None:
        self._asked, self._word, self._prompt_tokens = asked, word, prompt_tokens
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": f"{kind}.chunk" if asked.chat and asked.stream else kind,
            "created": int(time.time()),
            **model,
        }
        self._logprobs = asked.request.get("logprobs") is not None
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
        for index, pieces in enumerate(self._made):
            text = "".join(piece.text for piece in pieces)
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self._asked.chat else {"text": text}
            )
            choices.append(self._choice(index, content, pieces, pieces[-1].finish))
        return orjson.dumps({**self._head, "choices": choices, "usage": self._usage()})

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
