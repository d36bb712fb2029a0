"""Which fields of a search mattered, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seekray.search_space import Parameter

FEWEST = 8  # trials with a value
SAMPLES, TREES = 20, 24


def importances(trials: Sequence[Mapping[str, Any]], space: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """`{field, mean, std}`, the largest first; [] for fewer than eight trials with a value.

    A random forest (as in functional ANOVA, Hutter et al. 2014) learns the value from the fields, on bootstrap samples of the
    trials. A field's share is the mean square of the change when its column is shuffled, halved, over the variance of the
    forest's answers; std is over the samples. It says what mattered among the values that were tried, which a searcher chose.
    """
    from sklearn.ensemble import RandomForestRegressor

    scored = [t for t in trials if t["value"] is not None]
    keys = [k for k in space if len({str(t["values"].get(k)) for t in scored}) > 1]
    if len(scored) < FEWEST or not keys:
        return []
    rows = np.array([[_place(space[k], t["values"].get(k)) for k in keys] for t in scored])
    values = np.array([float(t["value"]) for t in scored])
    rng = np.random.default_rng(0)
    shares = []
    for number in range(SAMPLES):
        drawn = rng.integers(0, len(rows), len(rows))
        forest = RandomForestRegressor(TREES, random_state=number).fit(rows[drawn], values[drawn])
        told, shuffled = forest.predict(rows), []
        variance = float(told.var())
        for column in range(len(keys)):
            other = rows.copy()
            other[:, column] = rng.permutation(other[:, column])
            shuffled.append(float(np.square(forest.predict(other) - told).mean()) / 2 / variance if variance > 0 else 0.0)
        shares.append(shuffled)
    mean, std = np.mean(shares, 0), np.std(shares, 0)
    found = [{"field": k, "mean": float(m), "std": float(s)} for k, m, s in zip(keys, mean, std, strict=True)]
    return sorted(found, key=lambda f: -float(f["mean"]))


def _place(parameter: Parameter, value: Any) -> float:
    """A value as a number: its place among the choices, or itself, or its logarithm; -1 below all where a trial has none."""
    if parameter.choice is not None:
        return -1.0 if value is None else float(list(parameter.choice).index(value))
    low, high = parameter.range
    if value is None:
        return low - (high - low) if not parameter.kind.startswith("log") else math.log(low) - 1
    return math.log(value) if parameter.kind.startswith("log") else float(value)
