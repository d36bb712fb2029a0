"""Who says which values are tried next. Each is told of what was tried before, also by a search that died."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

from seekray.search_space import Parameter, Tune
from seekray.tuner.journal import Entry

Scores = tuple[float, ...]


class Sampler(Protocol):
    """Values trial by trial. learns: what is tried next depends on what became of the trials before."""

    learns: bool

    def ask(self, number: int) -> dict[str, Any] | None:
        """The values of a new trial, by the fields' dotted names; None where there are no more."""

    def tell(self, entry: Entry, scores: Scores | None) -> None:
        """A trial that `ask` made has ended; scores: one a metric, higher for better, None where it failed."""

    def again(self, entry: Entry, scores: Scores | None) -> None:
        """A trial of an earlier process; it is told of again where it goes on."""


def sampler(tune: Tune, others: Mapping[str, Any]) -> Sampler:
    """The one that the experiment names. others: values of the fields that conditions look at and nobody searches."""
    if tune.searcher == "random":
        return Random(tune, others)
    if tune.searcher == "bohb":
        from seekray.tuner.bohb import Bohb

        return Bohb(tune, others)
    return Grid(tune, others) if tune.searcher == "grid" else Optuna(tune, others)


class _Forgetful:
    """Does not learn."""

    learns = False

    def tell(self, entry: Entry, scores: Scores | None) -> None:
        """Nothing."""

    again = tell


class Random(_Forgetful):
    """Every trial on its own: its values depend on the seed and its number alone."""

    def __init__(self, tune: Tune, others: Mapping[str, Any]) -> None:
        self._tune, self._others = tune, others

    def ask(self, number: int) -> dict[str, Any] | None:
        draw = random.Random(f"{self._tune.seed}/{number}")
        found: dict[str, Any] = {}
        for key, parameter in self._tune.space.items():
            value = parameter.value_at(draw.random())
            if parameter.applies({**self._others, **found}):
                found[key] = value
        return found


class Grid(_Forgetful):
    """Every combination, the last field of the space the fastest."""

    def __init__(self, tune: Tune, others: Mapping[str, Any]) -> None:
        self._all = list(tune.combinations(others))

    def ask(self, number: int) -> dict[str, Any] | None:
        return self._all[number] if number < len(self._all) else None


class Optuna:
    """Optuna's samplers, asked and told by hand: TPE (Bergstra et al. 2011; of several metrics Ozaki et al. 2022) or CMA-ES.

    Trials that run meanwhile count as bad ones (constant liar), so that two at a time do not try the same. A trial that was
    stopped is told with its values at the rungs.
    """

    learns = True

    def __init__(self, tune: Tune, others: Mapping[str, Any]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._tune, self._others = tune, others
        if tune.searcher == "cmaes":
            made: Any = optuna.samplers.CmaEsSampler(seed=tune.seed)
        else:
            made = optuna.samplers.TPESampler(seed=tune.seed, constant_liar=True)
        directions = [optuna.study.StudyDirection.MAXIMIZE] * (1 + len(tune.others))
        self.study = optuna.create_study(directions=directions, sampler=made)
        self._trials: dict[int, Any] = {}

    def ask(self, number: int) -> dict[str, Any] | None:
        trial = self._trials[number] = self.study.ask()
        found: dict[str, Any] = {}
        for key, parameter in self._tune.space.items():
            if parameter.applies({**self._others, **found}):
                found[key] = _suggest(trial, key, parameter)
        return found

    def tell(self, entry: Entry, scores: Scores | None) -> None:
        from optuna.trial import TrialState

        trial = self._trials.pop(entry.number)
        if scores is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        if len(scores) > 1:  # Optuna knows no stopped trials then; what this one is, it is at these values
            self.study.tell(trial, list(scores))
            return
        (score,) = scores
        sign = score / entry.value if entry.value else 1.0
        for epoch, value in entry.rungs:
            trial.report(sign * value, epoch)
        stopped = entry.status == "stopped"
        self.study.tell(trial, None if stopped else score, TrialState.PRUNED if stopped else None)

    def again(self, entry: Entry, scores: Scores | None) -> None:
        self.study.enqueue_trial({k: _inside(self._tune.space[k], v) for k, v in entry.values.items()})
        self.ask(entry.number)
        if entry.ended:
            self.tell(entry, scores)


def _suggest(trial: Any, key: str, parameter: Parameter) -> Any:
    """Optuna's choices are plain values, so a choice is its place in the list."""
    if parameter.choice is not None:
        return parameter.choice[trial.suggest_categorical(key, list(range(len(parameter.choice))))]
    low, high = parameter.range
    if parameter.kind in ("uniform", "loguniform"):
        return trial.suggest_float(key, low, high, step=parameter.step, log=parameter.kind == "loguniform")
    return trial.suggest_int(key, int(low), int(high), step=int(parameter.step or 1), log=parameter.kind == "logint")


def _inside(parameter: Parameter, value: Any) -> Any:
    return list(parameter.choice).index(value) if parameter.choice is not None else value
