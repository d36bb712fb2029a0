"""Several metrics at once: the trials that none other beats, which of them is the best, and what is measured of a model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seekray.errors import SeekrayError

if TYPE_CHECKING:
    from seekray.checkpoint import Checkpoint
    from seekray.config import Experiment
    from seekray.data.schema import Schema
    from seekray.tuner.samplers import Scores

CALLS, SECONDS = 50, 0.2  # of one row at most, for a latency


def front(scores: Mapping[int, Scores]) -> list[int]:
    """Trials that no other beats: none is as good in every score and better in one. By number."""

    def beaten(one: Scores) -> bool:
        return any(other != one and all(a >= b for a, b in zip(other, one, strict=True)) for other in scores.values())

    return sorted(number for number, one in scores.items() if not beaten(one))


def best(scores: Mapping[int, Scores], tolerance: float) -> int | None:
    """Of one score the highest; of several, the best in the second, then the third, …, of those within a share of the first's.

    It is on the front; of equals it is the first trial.
    """
    if not scores:
        return None
    top = max(first for first, *_ in scores.values())
    several = len(next(iter(scores.values()))) > 1
    near = {n: s for n, s in scores.items() if s[0] >= top - (tolerance * abs(top) if several else 0)}
    return max(near, key=lambda n: (near[n][1:], near[n][0], -n))


def measured(
    names: Sequence[str], experiment: Experiment, schema: Schema, checkpoint: Checkpoint, row: Mapping[str, Any] | None
) -> dict[str, float]:
    """Of a checkpoint's best weights: validation metrics of that epoch, `parameters`, and `latency`, the ms of one answer."""
    from seekray.report import final_model

    config, weights = final_model(experiment, checkpoint)
    state = checkpoint.state
    epoch: dict[str, float] = next((e for e in state["history"] if e["step"] == state["best_step"]), {})
    found = {}
    for name in names:
        if name == "parameters":
            found[name] = float(sum(tensor.numel() for tensor in weights.values()))
        elif name == "latency":
            info = {"name": experiment.name, "family": experiment.family, "model": config.model_dump(mode="json")}
            found[name] = _latency(info, schema, weights, row)
        elif f"validation_{name}" in epoch:
            found[name] = epoch[f"validation_{name}"]
        else:
            known = [k.removeprefix("validation_") for k in epoch if k.startswith("validation_")]
            raise SeekrayError(f"tune.metric: {name!r} given; there are {', '.join([*known, 'latency', 'parameters'])}")
    return found


def _latency(info: Mapping[str, Any], schema: Schema, weights: Mapping[str, Any], row: Mapping[str, Any] | None) -> float:
    from seekray.generator import open_model
    from seekray.predictor import Predictor

    model = open_model(info, schema, weights)
    assert isinstance(model, Predictor)
    assert row is not None
    columns, times = schema.columns_from_rows([dict(row)]), list[float]()
    until = time.perf_counter() + SECONDS
    while len(times) < CALLS and (len(times) < 5 or time.perf_counter() < until):
        began = time.perf_counter()
        model.predict(columns)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000
