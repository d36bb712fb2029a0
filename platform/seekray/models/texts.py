"""Prompts → texts: what may be asked for, and all of it as a table or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from seekray.models.decoding import Weights
from seekray.models.sampling import Sampling
from seekray.models.text_engine import ROWS, Guide, Job, Piece, TextEngine, Tokenizer
from seekray.models.transformer import Transformer


class TextRequest(Sampling):
    """What may be asked of a model of texts."""

    prompts: tuple[str | tuple[int, ...], ...] = Field(("",), min_length=1, description="texts, or token ids, to go on from")
    n: int = Field(1, ge=1, le=1000, description="texts of each prompt")
    truncate: bool = Field(False, strict=True, description="of a prompt that is too long read the end; false: it is an error")

    @field_validator("prompts", mode="before")
    @classmethod
    def _ids(cls, prompts: Any) -> Any:
        for prompt in prompts if isinstance(prompts, (list, tuple)) else ():
            if isinstance(prompt, (list, tuple)) and not {bool, str}.isdisjoint(map(type, prompt)):
                raise ValueError("expected token ids, which are numbers")
        return prompts

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, without the prompts."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.model_fields})


def jobs(
    request: TextRequest,
    prompts: Sequence[Sequence[int]],
    context: int,
    guide: Callable[[Mapping[str, Any]], Guide] | None = None,
) -> Iterator[Job]:
    """The texts of a request whose prompts are ids; key: (number of the prompt, number of the sample).

    guide: makes what a text of a JSON schema is held to.
    """
    room = min(request.max_tokens, max(1, context // 2))
    held = guide(request.json_schema) if guide and request.json_schema is not None else None
    for number, prompt in enumerate(prompts):
        kept = prompt[-max(1, context - room) :] if request.truncate else prompt
        for sample in range(request.n):
            yield Job((number, sample), kept, request.sampling, sample, held.copy() if held else None)


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
        for piece in engine.step():
            if piece.error:
                raise piece.error
            yield piece


def table(
    net: Transformer,
    tokenizer: Tokenizer,
    request: TextRequest,
    prompts: Sequence[Sequence[int]],
    guide: Callable[[Mapping[str, Any]], Guide] | None = None,
) -> pa.Table:
    """One row a text: prompt, sample, text, finish_reason, prompt_tokens, tokens; with logprobs the tokens' ids and theirs."""
    made: dict[Any, list[Piece]] = {}
    wanted = list(jobs(request, prompts, net.config.context_length, guide))
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
