"""Logits → the next token: what a caller may ask for, and the choice.

Chosen is argmax(logits / temperature + Gumbel noise), which is a draw from their softmax; so one margin says for greedy and
for sampled tokens alike whether rounding could have changed the choice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from seekray.models.family import RequestConfig

# A lead below this part of the largest logit may be rounding. In float32 logits of the decoder differ from the module's by
# less than a quarter of it; of half precision nothing is promised.
MARGIN = {torch.float32: 1e-4}
# Logits divided by less may overflow float32.
COLDEST = 1e-6


class Sampling(RequestConfig):
    """How tokens are chosen and when a text ends."""

    max_tokens: int = Field(64, ge=1, description="most tokens of each text")
    min_tokens: int = Field(0, ge=0, description="fewer than these do not end a text; a stop string counts only after them")
    temperature: float = Field(1.0, ge=0, description="0, or below 1e-6: always the most likely token")
    top_k: int | None = Field(None, ge=1, description="only the k most likely")
    top_p: float = Field(1.0, gt=0, le=1, description="only the most likely that reach this probability together")
    min_p: float = Field(0.0, ge=0, le=1, description="only those at least this times as likely as the most likely one")
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="above 1: tokens that are there already are less likely"
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="taken from the logits of tokens of the text so far")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="the same, as often as a token is there")
    logit_bias: dict[int, float] = Field({}, description="added to the logits of tokens, by their ids")
    json_schema: dict[str, Any] | None = Field(None, description="the text is JSON of this schema; {type: object}: any object")
    stop: tuple[str, ...] = Field((), description="texts that end it; they are left out")
    seed: int = Field(
        0, ge=0, description="the same prompt with the same seed gives the same text, whatever is asked beside it"
    )
    logprobs: int | None = Field(None, ge=0, le=100, description="log-probabilities of the tokens and of so many others")

    @field_validator("temperature")
    @classmethod
    def _coldest(cls, value: float) -> float:
        return value if value >= COLDEST else 0.0

    @model_validator(mode="after")
    def _rules(self) -> Sampling:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: {self.min_tokens} given, more than max_tokens ({self.max_tokens})")
        if "" in self.stop:
            raise ValueError("stop: an empty text given")
        if self.json_schema is not None and self.min_tokens:
            raise ValueError("min_tokens: a text of a json_schema ends where it is complete; leave it out")
        return self

    @property
    def plain(self) -> bool:
        """Whether the most likely token is all that is wanted."""
        changed = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias
        return self.temperature == 0 and self.logprobs is None and self.json_schema is None and not changed


def noise_of(seed: int, prompt: Sequence[int], sample: int) -> torch.Generator:
    """The random numbers of one text: they depend on what it is, not on what is made beside it."""
    digest = hashlib.sha256(repr((seed, sample, list(prompt))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def most_likely(logits: Tensor) -> tuple[list[int], list[bool]]:
    """The greedy token of each row of (N, V), and whether its lead is so small that rounding may have made it."""
    best, tokens = logits.topk(2, dim=-1) if logits.shape[-1] > 1 else (logits, torch.zeros_like(logits, dtype=torch.long))
    margin = MARGIN.get(logits.dtype)
    if margin is None or best.shape[-1] < 2:
        return tokens[:, 0].tolist(), [False] * len(logits)
    close = best[:, 0] - best[:, 1] < margin * logits.abs().amax(-1)
    return tokens[:, 0].tolist(), close.tolist()


def choose(
    logits: Tensor,
    sampling: Sampling,
    seen: Collection[int] = (),
    banned: int | None = None,
    noise: Tensor | None = None,
    *,
    made: Mapping[int, int] | None = None,
    allowed: Tensor | None = None,
) -> tuple[int, bool]:
    """The token of logits (V,), and whether its lead is so small that rounding may have made it.

    seen: tokens that the repetition penalty (arXiv:1909.05858) is for; made: how often each is in the text, for the penalties
    of presence and frequency; banned: one that must not come; allowed: bool (V,), which may come at all; noise: (V,) of
    exponential random numbers, None at temperature 0. Filters follow each other as in `transformers`: temperature, top-k,
    top-p (arXiv:1904.09751), min-p (arXiv:2407.01082).
    """
    scale = MARGIN.get(logits.dtype, 0.0) * float(logits.abs().max())
    scores = logits.float().clone()
    if sampling.repetition_penalty != 1 and seen:
        index = torch.tensor(sorted(seen), device=scores.device)
        value = scores[index]
        penalty = sampling.repetition_penalty
        scores[index] = torch.where(value > 0, value / penalty, value * penalty)
        scale *= max(penalty, 1 / penalty)
    if made and (sampling.presence_penalty or sampling.frequency_penalty):
        index = torch.tensor(list(made), device=scores.device)
        counts = torch.tensor(list(made.values()), device=scores.device, dtype=scores.dtype)
        scores[index] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    if allowed is not None:
        scores.masked_fill_(~allowed, -math.inf)
    if banned is not None:
        scores[banned] = -math.inf
    if sampling.temperature > 0:
        assert noise is not None
        scores = filtered(scores / sampling.temperature, sampling) - noise.to(scores.device).log()
        scale /= sampling.temperature
    best, tokens = scores.topk(min(2, len(scores)))
    return int(tokens[0]), len(best) > 1 and bool(best[0] - best[1] < scale)


def filtered(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores (V,), those that are not among the likeliest being -inf."""
    if sampling.top_k is not None and sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -math.inf)
    if sampling.top_p < 1:
        ordered, index = scores.sort(descending=True)
        before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
        scores = scores.index_fill(0, index[before >= sampling.top_p], -math.inf)
    if sampling.min_p > 0:
        scores = scores.masked_fill(scores < scores.max() + math.log(sampling.min_p), -math.inf)
    return scores


def log_probabilities(logits: Tensor, token: int, others: int) -> tuple[float, list[tuple[int, float]]]:
    """Of a token and of the likeliest `others`, by the model's own softmax over (V,)."""
    values = logits.float().log_softmax(0)
    top = values.topk(min(others, len(values)))
    return float(values[token]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
