"""Prompts → texts: sequences of all lengths made together, each as if it were alone.

A token whose lead over the next is so small that rounding could have made it is decided by the module itself, over that
sequence alone: so what is made beside a sequence never changes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from seekray.errors import DataError
from seekray.models.decoding import Decoder, Weights
from seekray.models.sampling import Sampling, choose, log_probabilities, most_likely, noise_of
from seekray.models.text_stream import TextStream
from seekray.models.transformer import Transformer

ROWS = 16  # sequences made together
PROMPT_TOKENS = 8192  # read at once, but for a longer prompt


class Tokenizer(Protocol):
    """What is asked of a tokenizer. end: the token after a text."""

    end: int

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TextRequest(Sampling):
    """What may be asked of a model of texts."""

    prompts: tuple[str | tuple[int, ...], ...] = Field(("",), min_length=1, description="texts, or token ids, to go on from")
    n: int = Field(1, ge=1, le=1000, description="texts of each prompt")
    truncate: bool = Field(False, description="of a prompt that is too long read the end; false: it is an error")

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, without the prompts."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.model_fields})


@dataclass(frozen=True)
class Job:
    """One text to be made. key: whatever the caller knows it by; sample: its number among those of the same prompt."""

    key: Any
    prompt: Sequence[int]
    sampling: Sampling
    sample: int = 0


@dataclass(frozen=True)
class Piece:
    """What one token added to a text: maybe nothing. finish: `stop` (the end token or a stop string) or `length`.

    logprob, others: where asked for. tokens: made so far, the end token included.
    """

    job: Job
    text: str
    token: int
    tokens: int
    finish: str | None = None
    logprob: float | None = None
    others: list[tuple[int, float]] = field(default_factory=list)


class _Sequence:
    """A text in the making."""

    def __init__(self, job: Job, tokenizer: Tokenizer, limit: int, streams: bool) -> None:
        self.job, self.limit = job, limit
        self.ids = list(job.prompt)
        self.seen = set(self.ids) if job.sampling.repetition_penalty != 1 else set()
        self.end = tokenizer.end
        self.text = TextStream(tokenizer.decode, job.prompt, job.sampling.stop)
        self.lazy = not streams and not job.sampling.stop
        self.noise = noise_of(job.sampling.seed, job.prompt, job.sample) if job.sampling.temperature else None

    @property
    def made(self) -> int:
        return len(self.ids) - len(self.job.prompt)

    @property
    def banned(self) -> int | None:
        return self.end if self.made < self.job.sampling.min_tokens else None

    def push(self, token: int) -> tuple[str, str | None]:
        """The text that a token adds, and why it was the last."""
        self.ids.append(token)
        if self.job.sampling.repetition_penalty != 1:
            self.seen.add(token)
        if token == self.end:
            return self.text.finish(), "stop"
        text = self.text.keep(token) if self.lazy else self.text.push(token, may_stop=self.made >= self.job.sampling.min_tokens)
        if self.text.stopped:
            return text, "stop"
        if self.made >= self.limit:
            return text + self.text.finish(), "stop" if self.text.stopped else "length"
        return text, None


class TextEngine:
    """Makes texts, up to `rows` at a time; jobs may be submitted and cancelled between steps.

    size: most tokens of a prompt and its text together. streams: give text with every token, not at the end alone.
    """

    def __init__(
        self, weights: Weights, tokenizer: Tokenizer, *, rows: int = ROWS, size: int | None = None, streams: bool = False
    ) -> None:
        self.weights, self.tokenizer, self.streams = weights, tokenizer, streams
        self._decoder = Decoder(weights, rows, size or weights.config.context_length)
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # of the decoder's rows

    def __len__(self) -> int:
        """Texts that are not finished."""
        return len(self._waiting) + len(self._running)

    def submit(self, job: Job) -> None:
        """One more text. Raises DataError where its prompt leaves no room."""
        room = self._decoder.size - len(job.prompt)
        if room < 1:
            raise DataError(
                f"a prompt of {len(job.prompt)} tokens given, the model looks at {self._decoder.size}, its answer included",
                field="prompts",
            )
        if not job.prompt:
            raise DataError("a prompt without a token given, expected one at least", field="prompts")
        self._waiting.append(_Sequence(job, self.tokenizer, min(job.sampling.max_tokens, room), self.streams))

    def cancel(self, key: Any) -> None:
        """Forget the texts of a key."""
        self._waiting = deque(s for s in self._waiting if s.job.key != key)
        for row in reversed(range(len(self._running))):
            if self._running[row].job.key == key:
                self._drop(row)

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """A token for each text: those that run, and those that there was room to begin."""
        pieces: list[Piece] = []
        if self._running:
            logits = self._decoder.step([s.ids[-1] for s in self._running])
            pieces += self._advance(logits, 0)
        if begun := self._admitted():
            first = len(self._running)
            self._running += begun
            prompts, copies = _grouped(begun)
            pieces += self._advance(self._decoder.add(prompts, copies), first)
        return pieces

    def _admitted(self) -> list[_Sequence]:
        begun: list[_Sequence] = []
        tokens = 0
        while self._waiting and len(self._running) + len(begun) < self._decoder.rows:
            tokens += len(self._waiting[0].ids)
            if begun and tokens > PROMPT_TOKENS:
                break
            begun.append(self._waiting.popleft())
        return begun

    def _advance(self, logits: Tensor, first: int) -> list[Piece]:
        """Choose for the rows from `first` on; drop those that are finished."""
        chosen = self._running[first:]
        likeliest, close = most_likely(logits)
        pieces, finished = [], []
        for row, sequence in enumerate(chosen):
            token = likeliest[row]
            logprob: float | None = None
            others: list[tuple[int, float]] = []
            if sequence.job.sampling.plain and sequence.banned != token:
                if close[row]:
                    token = int(self._alone(sequence).argmax())
            else:
                token, logprob, others = self._chosen(logits[row], sequence)
            text, finish = sequence.push(token)
            pieces.append(Piece(sequence.job, text, token, sequence.made, finish, logprob, others))
            if finish:
                finished.append(first + row)
        for row in reversed(finished):
            self._drop(row)
        return pieces

    def _chosen(self, logits: Tensor, sequence: _Sequence) -> tuple[int, float | None, list[tuple[int, float]]]:
        sampling = sequence.job.sampling
        noise = None if sequence.noise is None else torch.empty(len(logits)).exponential_(generator=sequence.noise)
        token, close = choose(logits, sampling, sequence.seen, sequence.banned, noise)
        if close:
            token, _ = choose(self._alone(sequence), sampling, sequence.seen, sequence.banned, noise)
        if sampling.logprobs is None:
            return token, None, []
        return token, *log_probabilities(logits, token, sampling.logprobs)

    def _alone(self, sequence: _Sequence) -> Tensor:
        """Logits (V,) by the module over the sequence alone."""
        net = self.weights.net
        hidden = net.hidden(torch.tensor([sequence.ids], device=net.embedding.weight.device))
        return net.logits(hidden[0, -1])

    def _drop(self, row: int) -> None:
        self._decoder.drop(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last


def _grouped(sequences: Sequence[_Sequence]) -> tuple[list[list[int]], list[int]]:
    """Prompts, and how often each comes in a row."""
    prompts: list[list[int]] = []
    copies: list[int] = []
    for sequence in sequences:
        if prompts and prompts[-1] == sequence.ids:
            copies[-1] += 1
        else:
            prompts.append(sequence.ids)
            copies.append(1)
    return prompts, copies


def jobs(request: TextRequest, prompts: Sequence[Sequence[int]], context: int) -> Iterator[Job]:
    """The texts of a request whose prompts are ids; key: (number of the prompt, number of the sample)."""
    room = min(request.max_tokens, max(1, context // 2))
    for number, prompt in enumerate(prompts):
        kept = prompt[-max(1, context - room) :] if request.truncate else prompt
        for sample in range(request.n):
            yield Job((number, sample), kept, request.sampling, sample)


def stream(net: Transformer, tokenizer: Tokenizer, wanted: Iterable[Job], *, streams: bool = True) -> Iterator[Piece]:
    """Every token of every text, in the order in which they are made."""
    wanted = list(wanted)
    size = max((len(j.prompt) + j.sampling.max_tokens for j in wanted), default=1)
    engine = TextEngine(
        Weights.of(net), tokenizer, rows=min(ROWS, len(wanted)), size=min(size, net.config.context_length), streams=streams
    )
    for job in wanted:
        engine.submit(job)
    while len(engine):
        yield from engine.step()


def table(net: Transformer, tokenizer: Tokenizer, request: TextRequest, prompts: Sequence[Sequence[int]]) -> pa.Table:
    """One row a text: prompt, sample, text, finish_reason, prompt_tokens, tokens; with logprobs the tokens' ids and theirs."""
    made: dict[Any, list[Piece]] = {}
    wanted = list(jobs(request, prompts, net.config.context_length))
    for piece in stream(net, tokenizer, wanted, streams=False):
        made.setdefault(piece.job.key, []).append(piece)
    texts = [made[job.key] for job in wanted]
    asked = [p if isinstance(p, str) else tokenizer.decode(p) for p in request.prompts for _ in range(request.n)]
    columns = {
        "prompt": pa.array(asked, pa.string()),
        "sample": pa.array([t[0].job.sample for t in texts], pa.int64()),
        "text": pa.array(["".join(p.text for p in t) for t in texts], pa.string()),
        "finish_reason": pa.array([t[-1].finish for t in texts], pa.string()),
        "prompt_tokens": pa.array([len(t[0].job.prompt) for t in texts], pa.int64()),
        "tokens": pa.array([len(t) for t in texts], pa.int64()),
    }
    if request.logprobs is not None:
        columns["token_ids"] = pa.array([[p.token for p in t] for t in texts], pa.list_(pa.int64()))
        columns["logprobs"] = pa.array([[p.logprob for p in t] for t in texts], pa.list_(pa.float64()))
    return pa.table(columns)
