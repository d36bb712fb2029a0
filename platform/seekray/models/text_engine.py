"""Making texts: sequences of all lengths together, each as if it were alone.

A token whose lead over the next is so small that rounding could have made it is decided by the module itself, over that
sequence alone: so what is made beside a sequence never changes it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from seekray.errors import DataError
from seekray.models.blocks import BLOCK, BlockPool, block_names
from seekray.models.decoding import Decoder, Run, Weights
from seekray.models.sampling import Sampling, choose, log_probabilities, most_likely, noise_of
from seekray.models.text_stream import TextStream

ROWS = 16  # sequences made together
PROMPT_TOKENS = 8192  # read in one step at most


class Guide(Protocol):
    """Which tokens a text may have."""

    def copy(self) -> Guide:
        """The same for another text."""

    def allowed(self) -> Any:
        """Those that may come next, a NumPy array of bool (V,). Raises DataError where none may."""

    def push(self, token: int) -> bool:
        """Take one; whether the text is complete."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer. end: the token after a text."""

    end: int

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Job:
    """One text to be made. key: whatever the caller knows it by; sample: its number among those of the same prompt.

    guide: where it has to be JSON of a schema; it belongs to this text alone.
    """

    key: Any
    prompt: Sequence[int]
    sampling: Sampling
    sample: int = 0
    guide: Guide | None = None


@dataclass(frozen=True)
class Piece:
    """What one token added to a text: maybe nothing. finish: `stop` (the end token or a stop string) or `length`.

    logprob, others: where asked for. tokens: made so far, the end token included. error: why it could not go on, and ends.
    """

    job: Job
    text: str
    token: int
    tokens: int
    finish: str | None = None
    logprob: float | None = None
    others: list[tuple[int, float]] = field(default_factory=list)
    error: DataError | None = None


class _Sequence:
    """A text in the making."""

    def __init__(self, job: Job, tokenizer: Tokenizer, limit: int, streams: bool) -> None:
        self.job, self.limit = job, limit
        self.ids = list(job.prompt)
        self.seen = set(self.ids) if job.sampling.repetition_penalty != 1 else set()
        self.counts: Counter[int] | None = (
            Counter() if job.sampling.presence_penalty or job.sampling.frequency_penalty else None
        )
        self.end = tokenizer.end
        self.text = TextStream(tokenizer.decode, job.prompt, job.sampling.stop)
        self.lazy = not streams and not job.sampling.stop
        self.noise = noise_of(job.sampling.seed, job.prompt, job.sample) if job.sampling.temperature else None
        self.table: list[int] = []  # its blocks
        self.computed = 0  # tokens whose keys and values are in them
        self.names: list[bytes] = []  # of its full blocks
        self.named = 0  # so many of them are known to the pool

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
        if self.counts is not None:
            self.counts[token] += 1
        complete = self.job.guide is not None and self.job.guide.push(token)
        if token == self.end:
            return self.text.finish(), "stop"
        text = self.text.keep(token) if self.lazy else self.text.push(token, may_stop=self.made >= self.job.sampling.min_tokens)
        if self.text.stopped:
            return text, "stop"
        if complete:
            return text + self.text.finish(), "stop"
        if self.made >= self.limit:
            return text + self.text.finish(), "stop" if self.text.stopped else "length"
        return text, None


class TextEngine:
    """Makes texts, up to `rows` at a time; jobs may be submitted and cancelled between steps.

    size: most tokens of a prompt and its text together. blocks: of the cache, None for as many as all rows can fill. When
    they run out, the sequence that began last is put back and computed again later, which changes nothing of its text.
    prompt_tokens: of prompts, in one step; beside: the same while others wait for their next token. streams: give text
    with every token, not at the end alone.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Tokenizer,
        *,
        rows: int = ROWS,
        size: int | None = None,
        blocks: int | None = None,
        prompt_tokens: int = PROMPT_TOKENS,
        beside: int = PROMPT_TOKENS,
        streams: bool = False,
    ) -> None:
        self.weights, self.tokenizer, self.streams = weights, tokenizer, streams
        self.rows, self.size = rows, min(size or weights.config.context_length, weights.config.context_length)
        longest = -(-self.size // BLOCK)
        self.pool = BlockPool(rows * longest if blocks is None else max(longest, blocks))
        self._decoder = Decoder(weights, self.pool.count)
        self._prompt_tokens, self._beside = prompt_tokens, beside
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # in the order in which they began
        self._counts = dict.fromkeys(("steps", "tokens", "prompt_tokens", "prefix_tokens", "preemptions"), 0)

    def __len__(self) -> int:
        """Texts that are not finished."""
        return len(self._waiting) + len(self._running)

    def counters(self) -> dict[str, int]:
        """What is there now, and what was done since the start.

        blocks_kept: free blocks whose content may be found again. prompt_tokens: of the texts that began, prefix_tokens those
        of them that were found in blocks. preemptions: texts put back.
        """
        pool = self.pool
        return {
            "waiting": len(self._waiting), "running": len(self._running), "rows": self.rows, "block_size": pool.size,
            "blocks": pool.count, "blocks_used": pool.used, "blocks_free": pool.free, "blocks_kept": pool.kept, **self._counts,
        }  # fmt: skip

    def submit(self, job: Job) -> None:
        """One more text. Raises DataError where its prompt leaves no room."""
        room = self.size - len(job.prompt)
        if room < 1:
            raise DataError(
                f"a prompt of {len(job.prompt)} tokens given, the model looks at {self.size}, its answer included",
                field="prompts",
            )
        if not job.prompt:
            raise DataError("a prompt without a token given, expected one at least", field="prompts")
        self._waiting.append(_Sequence(job, self.tokenizer, min(job.sampling.max_tokens, room), self.streams))

    def cancel(self, key: Any) -> None:
        """Forget the texts of a key; their blocks are free at once."""
        self._waiting = deque(s for s in self._waiting if s.job.key != key)
        for sequence in [s for s in self._running if s.job.key == key]:
            self._leave(sequence)

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """A token for each text whose prompt has been read, and a part of the prompts of others."""
        plan = self._planned()
        if not plan:
            return []
        self._counts["steps"] += 1
        logits = self._decoder([Run(s.ids[s.computed : s.computed + n], s.computed, s.table) for s, n in plan])
        for sequence, count in plan:
            sequence.computed += count
        done = [row for row, (sequence, _) in enumerate(plan) if sequence.computed == len(sequence.ids)]
        return self._advance(logits if len(done) == len(plan) else logits[done], [plan[row][0] for row in done])

    def _planned(self) -> list[tuple[_Sequence, int]]:
        """Who runs how many tokens: one each of those that are being made, then prompts, in the order in which they came."""
        left = self._beside if any(s.computed + 1 == len(s.ids) for s in self._running) else self._prompt_tokens
        plan = []
        for sequence in list(self._running):
            todo = len(sequence.ids) - sequence.computed
            count = min(todo, max(left, 0)) if todo > 1 else 1
            if count and sequence.table and self._grown(sequence):
                left -= count if todo > 1 else 0
                plan.append((sequence, count))
                self._name(sequence, count)
        while left > 0 and self._waiting and len(self._running) < self.rows and self._admitted(self._waiting[0]):
            sequence = self._waiting.popleft()
            self._running.append(sequence)
            count = min(len(sequence.ids) - sequence.computed, left)
            left -= count
            plan.append((sequence, count))
            self._name(sequence, count)
        return plan

    def _grown(self, sequence: _Sequence) -> bool:
        """See to a block for the newest token; where none is free, who began last is put back. False: it was itself."""
        while len(sequence.table) * BLOCK < len(sequence.ids):
            fresh = self.pool.take(1)
            if fresh is not None:
                sequence.table += fresh
                continue
            last = self._running[-1]
            self._leave(last)
            self._waiting.appendleft(last)
            self._counts["preemptions"] += 1
            if last is sequence:
                return False
        return True

    def _admitted(self, sequence: _Sequence) -> bool:
        """Give a sequence the blocks of its tokens, those found and fresh ones; False where there are too few.

        The last token is computed in any case: the logits after it are wanted.
        """
        names = block_names(sequence.ids, BLOCK, sequence.names)
        found = self.pool.find(names[: (len(sequence.ids) - 1) // BLOCK])
        fresh = self.pool.take(-(-len(sequence.ids) // BLOCK) - len(found))
        if fresh is None:
            self.pool.release(found)
            return False
        sequence.table, sequence.named = found + fresh, len(found)
        sequence.computed = len(found) * BLOCK
        self._counts["prompt_tokens"] += len(sequence.ids)
        self._counts["prefix_tokens"] += sequence.computed
        return True

    def _name(self, sequence: _Sequence, count: int) -> None:
        """Let the blocks that `count` more tokens fill be found: already by those that run in the same step."""
        full = (sequence.computed + count) // BLOCK
        if full > sequence.named:
            names = block_names(sequence.ids, BLOCK, sequence.names)
            for number in range(sequence.named, full):
                self.pool.name(sequence.table[number], names[number])
            sequence.named = full

    def _leave(self, sequence: _Sequence) -> None:
        """A running sequence's blocks are free."""
        self._running.remove(sequence)
        self.pool.release(sequence.table)
        sequence.table = []

    def _advance(self, logits: Tensor, chosen: Sequence[_Sequence]) -> list[Piece]:
        """The next token of each, by its row of logits; those that are finished leave."""
        if not chosen:
            return []
        likeliest, close = most_likely(logits)
        pieces = []
        for row, sequence in enumerate(chosen):
            token = likeliest[row]
            logprob: float | None = None
            others: list[tuple[int, float]] = []
            if sequence.job.sampling.plain and sequence.banned != token:
                if close[row]:
                    token = int(self._alone(sequence).argmax())
            else:
                try:
                    token, logprob, others = self._chosen(logits[row], sequence)
                except DataError as error:  # of this text's guide: the others go on
                    pieces.append(Piece(sequence.job, "", sequence.end, sequence.made, "stop", error=error))
                    self._leave(sequence)
                    continue
            text, finish = sequence.push(token)
            pieces.append(Piece(sequence.job, text, token, sequence.made, finish, logprob, others))
            if finish:
                self._leave(sequence)
        self._counts["tokens"] += len(pieces)
        return pieces

    def _chosen(self, logits: Tensor, sequence: _Sequence) -> tuple[int, float | None, list[tuple[int, float]]]:
        sampling = sequence.job.sampling
        noise = None if sequence.noise is None else torch.empty(len(logits)).exponential_(generator=sequence.noise)
        guide = sequence.job.guide
        allowed = None if guide is None else torch.from_numpy(guide.allowed()).to(logits.device)
        given = (sampling, sequence.seen, sequence.banned, noise)
        token, close = choose(logits, *given, made=sequence.counts, allowed=allowed)
        if close:
            token, _ = choose(self._alone(sequence), *given, made=sequence.counts, allowed=allowed)
        if sampling.logprobs is None:
            return token, None, []
        return token, *log_probabilities(logits, token, sampling.logprobs)

    def _alone(self, sequence: _Sequence) -> Tensor:
        """Logits (V,) by the module over the sequence alone."""
        net = self.weights.net
        hidden = net.hidden(torch.tensor([sequence.ids], device=net.embedding.weight.device))
        return net.logits(hidden[0, -1])
