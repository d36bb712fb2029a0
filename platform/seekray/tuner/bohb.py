"""BOHB (Falkner et al. 2018, arXiv:1807.01774): densities of what was good and bad, at the most epochs that enough had.

The model is hpbandster's, the package of the paper, which is optional: its last version is of 2018.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from seekray.errors import UserError
from seekray.search_space import Parameter, Tune
from seekray.tuner.journal import Entry

NEEDED = "'hpbandster==0.7.4' 'ConfigSpace<1' 'numpy<2' 'pandas<3'"


def packages() -> tuple[Any, Any]:
    """ConfigSpace and hpbandster's model. Raises UserError where they do not work here."""
    try:
        import ConfigSpace
        from hpbandster.optimizers.config_generators.bohb import BOHB

        BOHB(ConfigSpace.ConfigurationSpace())
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"tune.searcher: bohb does not work here ({error}); pip install {NEEDED} (NumPy is {np.__version__}), "
            "or take optuna with scheduler: hyperband, which learns from the same rungs",
            field="tune.searcher",
        ) from error
    return ConfigSpace, BOHB


class Bohb:
    """Each rung of a trial is a result at so many epochs; with `hyperband` or `asha` as the scheduler it is BOHB."""

    learns = True

    def __init__(self, tune: Tune, others: Mapping[str, Any]) -> None:
        config_space, model = packages()
        self._tune, self._others = tune, others
        space = config_space.ConfigurationSpace(seed=tune.seed)
        space.add_hyperparameters([_dimension(config_space, k, p) for k, p in tune.space.items()])
        self._state = np.random.RandomState(tune.seed).get_state()
        self._model = model(space)
        self._given: dict[int, dict[str, Any]] = {}

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """hpbandster draws from numpy's global generator."""
        before = np.random.get_state()
        np.random.set_state(self._state)
        yield
        self._state = np.random.get_state()
        np.random.set_state(before)

    def ask(self, number: int) -> dict[str, Any] | None:
        with self._own_numbers():
            given, _ = self._model.get_config(None)
        self._given[number] = dict(given)
        found: dict[str, Any] = {}
        for key, parameter in self._tune.space.items():
            if parameter.applies({**self._others, **found}):
                found[key] = _value(parameter, given[key])
        return found

    def tell(self, entry: Entry, scores: tuple[float, ...] | None) -> None:
        given = self._given.pop(entry.number)
        if scores is None:
            self._tell(given, max(1, entry.epoch), None)
            return
        sign = scores[0] / entry.value if entry.value else 1.0
        for epoch, value in entry.rungs:
            self._tell(given, epoch, {"loss": -sign * value})

    def _tell(self, given: dict[str, Any], epoch: int, result: dict[str, float] | None) -> None:
        with self._own_numbers():
            self._model.new_result(SimpleNamespace(result=result, kwargs={"budget": epoch, "config": given}, exception=None))

    def again(self, entry: Entry, scores: tuple[float, ...] | None) -> None:
        space = self._tune.space
        middle = {key: _place(parameter, parameter.value_at(0.5)) for key, parameter in space.items()}
        self._given[entry.number] = middle | {key: _place(space[key], value) for key, value in entry.values.items()}
        if entry.ended:
            self.tell(entry, scores)


def _dimension(config_space: Any, key: str, parameter: Parameter) -> Any:
    if parameter.choice is not None:
        return config_space.CategoricalHyperparameter(key, list(range(len(parameter.choice))))
    low, high = parameter.range
    if parameter.kind == "logint":
        return config_space.UniformIntegerHyperparameter(key, int(low), int(high), log=True)
    if parameter.grid is not None:
        return config_space.UniformIntegerHyperparameter(key, 0, len(parameter.grid) - 1)
    return config_space.UniformFloatHyperparameter(key, low, high, log=parameter.kind == "loguniform")


def _value(parameter: Parameter, place: Any) -> Any:
    """What a coordinate stands for: a choice and a number with steps stand at their place in the list."""
    if parameter.kind == "logint":
        return int(place)
    return parameter.grid[int(place)] if parameter.grid is not None else float(place)


def _place(parameter: Parameter, value: Any) -> Any:
    return value if parameter.kind == "logint" or parameter.grid is None else parameter.grid.index(value)
