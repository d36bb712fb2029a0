"""The `tune:` part of an experiment: what is searched, by whom, and for how long."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from seekray.data.options import Duration, Options

MEASURED = {"latency", "parameters"}
"""What a search can look at that is no validation metric; less is better."""
KINDS = ("choice", "uniform", "loguniform", "int", "logint")


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d+)?[eE][+-]?\d+", value) else value


class Parameter(Options):
    """The values that one field of the experiment may take: exactly one of choice, uniform, loguniform, int and logint."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of these values")
    uniform: tuple[float, float] | None = Field(None, description="[low, high], every number alike")
    loguniform: tuple[float, float] | None = Field(None, description="[low, high], every size alike; low above 0")
    integer: tuple[int, int] | None = Field(None, alias="int", description="[low, high], whole numbers, both ends included")
    logint: tuple[int, int] | None = Field(None, description="[low, high], whole numbers, every size alike; low above 0")
    step: float | None = Field(None, gt=0, description="uniform and int: low, low + step, low + 2 step, …")
    when: dict[str, Any] = Field(
        {}, description="only where other fields have these values, as {training.optimizer: sgd}; a list means any of them"
    )

    @field_validator("choice", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return [_number(v) for v in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _rules(self) -> Parameter:
        given = [kind for kind in KINDS if self._of(kind) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'no kind of values'} given, expected exactly one of {', '.join(KINDS)}")
        if self.kind == "choice":
            if self.step is not None:
                raise ValueError("step is for uniform and int, not for choice")
            return self
        low, high = self.range
        if low >= high:
            raise ValueError(f"{self.kind}: low ({low:g}) is not below high ({high:g})")
        if self.kind.startswith("log") and low <= 0:
            raise ValueError(f"{self.kind}: low ({low:g}) is not above 0")
        if self.step is not None and self.kind.startswith("log"):
            raise ValueError(f"step is for uniform and int, not for {self.kind}")
        if self.step is not None and self.kind == "int" and self.step != int(self.step):
            raise ValueError(f"step: {self.step:g} given, int has whole steps")
        return self

    def _of(self, kind: str) -> Any:
        return self.integer if kind == "int" else getattr(self, kind)

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(kind for kind in KINDS if self._of(kind) is not None)

    @property
    def range(self) -> tuple[float, float]:
        """Low and high of all but choice."""
        low, high = self._of(self.kind)
        return low, high

    @property
    def samples(self) -> list[Any]:
        """Values that show what may come: all choices, or both ends."""
        return list(self.choice) if self.choice is not None else list(self.range)

    @property
    def grid(self) -> list[Any] | None:
        """All values where they can be counted, else None."""
        if self.choice is not None:
            return list(self.choice)
        low, high = self.range
        step = self.step or (1 if self.kind in ("int", "logint") else None)
        if step is None:
            return None
        count = math.floor((high - low) / step + 1e-9) + 1
        values = [low + i * step for i in range(count)]
        return values if self.kind == "uniform" else [int(v) for v in values]

    def value_at(self, share: float) -> Any:
        """The value at a share of the way, in [0, 1)."""
        if self.grid is not None and self.kind != "logint":
            return self.grid[int(share * len(self.grid))]
        low, high = self.range
        if self.kind == "uniform":
            return low + share * (high - low)
        if self.kind == "loguniform":
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        ends = math.log(low - 0.5), math.log(high + 0.5)
        return min(int(high), max(int(low), round(math.exp(ends[0] + share * (ends[1] - ends[0])))))

    def moved(self, value: float, draw: Random) -> float:
        """Of uniform and loguniform: drawn anew one time in four, else times 0.8 or 1.2 (PBT, Jaderberg et al. 2017)."""
        if draw.random() < 0.25:
            return float(self.value_at(draw.random()))
        low, high = self.range
        return min(high, max(low, value * draw.choice((0.8, 1.2))))

    def applies(self, values: Mapping[str, Any]) -> bool:
        """True where the other fields, by their dotted names, are as `when` wants them."""
        return all(values.get(k) in (v if isinstance(v, list) else [v]) for k, v in self.when.items())


class Repeat(Options):
    """A trial is trained several times, and its value is their mean."""

    seeds: int | None = Field(None, ge=2, description="so many times, with training.seed counted up")
    folds: int | None = Field(None, ge=2, description="so many parts of the rows outside the test, each the validation once")

    @model_validator(mode="after")
    def _rules(self) -> Repeat:
        if (self.seeds is None) == (self.folds is None):
            raise ValueError("tune.repeat: give seeds or folds")
        return self


class Tune(Options):
    """A search: the same experiment with other values in some of its fields, trial by trial."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    trials: int = Field(32, ge=1, description="how many; grid: at most so many")
    searcher: Literal["random", "grid", "optuna", "cmaes", "bohb"] = Field(
        "optuna",
        description="optuna: TPE, which learns from earlier trials; cmaes: for numbers alone; grid: every combination; "
        "bohb: learns from the rungs, of packages that are installed apart",
    )
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = Field(
        "asha",
        description="asha: trials that are behind at `grace`, then 3, 9, … times so many epochs are stopped; "
        "hyperband: paused, and promoted in brackets; median: stopped below the others' median; "
        "pbt: the worst take over weights and values of the best",
    )
    grace: int | None = Field(None, ge=1, description="epochs that every trial gets; null: asha: a third of all, else 1")
    reduction: float = Field(3, gt=1, description="asha: of those that reach a rung, one in so many goes on")
    metric: str | tuple[str, ...] | None = Field(
        None,
        description="validation metric that is searched for; default training.metric or the task's; or a list: several at "
        "once, after the first also latency (ms for a row) and parameters",
    )
    tolerance: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="several metrics: the best is the best in the second of those within this share of the first's best",
    )
    seed: int = Field(0, ge=0, description="of the searcher; the trials' own is training.seed")
    repeat: Repeat | None = Field(None, description="train each trial several times; it still counts as one")
    concurrency: int | None = Field(None, ge=1, description="trials at a time; null: as many as there is room for")
    time: Duration | None = Field(None, description="after so long (90s, 30m, 2h) from the first trial's start the search ends")
    target: float | None = Field(None, description="stop when the metric is as good as this")
    plateau: int | None = Field(None, ge=1, description="stop when so many trials in a row brought nothing better")
    space: dict[str, Parameter] = Field(
        min_length=1, description="fields of this experiment by their dotted names, such as training.lr, and their values"
    )

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        return dict(_flat(value)) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _rules(self) -> Tune:
        if self.searcher == "grid" and (endless := [k for k, p in self.space.items() if p.grid is None]):
            raise ValueError(
                f"tune.searcher: grid needs values that can be counted, {endless[0]} has {self.space[endless[0]].kind}; "
                "give a choice, or uniform with a step"
            )
        if len(set(self.metrics)) < len(self.metrics) or set(self.metrics[:1]) & MEASURED:
            raise ValueError(
                f"tune.metric: {', '.join(self.metrics)} given; expected different ones, a validation metric first, "
                "which picks the weights of each trial"
            )
        if self.searcher in ("cmaes", "bohb") and self.others:
            raise ValueError(
                f"tune.searcher: {self.searcher} is for one metric, {len(self.metrics)} given; use optuna, random or grid"
            )
        if self.searcher == "cmaes" and (named := [k for k, p in self.space.items() if p.kind == "choice" or p.when]):
            raise ValueError(f"tune.searcher: cmaes is for numbers, {named[0]} is a choice or conditional; use optuna")
        for key, parameter in self.space.items():
            if key in parameter.when:
                raise ValueError(f"tune.space: {key} depends on itself")
            if later := [
                k for k in parameter.when if k in self.space and list(self.space).index(k) > list(self.space).index(key)
            ]:
                raise ValueError(f"tune.space: {key} depends on {later[0]}, which has to stand before it")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is searched for; empty where nothing is said."""
        return () if self.metric is None else (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def first(self) -> str | None:
        """The metric that picks the weights, and by which schedulers compare."""
        return self.metrics[0] if self.metrics else None

    @property
    def others(self) -> tuple[str, ...]:
        """What is searched for beside the first."""
        return self.metrics[1:]

    def repetitions(self, seed: int) -> list[dict[str, Any]]:
        """What each training of a trial has of its own, by dotted names; [{}] where it is trained once."""
        if self.repeat is None:
            return [{}]
        if self.repeat.seeds is not None:
            return [{"training.seed": seed + i} for i in range(self.repeat.seeds)]
        assert self.repeat.folds is not None
        return [{"data.split.fold": [i, self.repeat.folds]} for i in range(self.repeat.folds)]

    def combinations(self, others: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every combination of values that can be counted, conditions kept, none twice. others: of fields not searched."""
        seen: set[str] = set()
        for values in itertools.product(*(p.grid or () for p in self.space.values())):
            found: dict[str, Any] = {}
            for (key, parameter), value in zip(self.space.items(), values, strict=True):
                if parameter.applies({**others, **found}):
                    found[key] = value
            if repr(found) not in seen:
                seen.add(repr(found))
                yield found


def _flat(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{training: {lr: {…}}}`, as `--set tune.space.training.lr` makes it, as `{training.lr: {…}}`."""
    known = {*KINDS, "integer", "step", "when"}
    for key, value in space.items():
        if (
            isinstance(value, Mapping)
            and value
            and not known & value.keys()
            and all(isinstance(v, Mapping) for v in value.values())
        ):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
