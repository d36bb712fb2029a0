"""Which features a predictor leans on: permutation importances (Breiman 2001, doi:10.1023/A:1010933404324)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from seekray.batch.parts import forward_rows
from seekray.data.sequences.ragged import STEPS
from seekray.evaluation.rows import known_targets
from seekray.metrics import quick_metrics

if TYPE_CHECKING:
    from seekray.predictor import Predictor

MEASURED = {"classification": "accuracy", "multilabel": "accuracy", "regression": "r2"}
FEWEST_ROWS = 100


def importances(
    predictor: Predictor, table: pa.Table, *, repeats: int = 5, most_rows: int = 2000, seconds: float = 5.0, seed: int = 0
) -> list[dict[str, Any]]:
    """How much the metric falls when one feature's values are shuffled over the rows, the largest first.

    Each: `{feature, mean, std, metric, repeats, rows}`, mean and std (over repeats) of the fall in units of
    `metric` (accuracy or r2). At most `most_rows` rows, fewer where the time does not allow them; repeats
    stop after `seconds`, the first always runs. Rows that cannot be evaluated are left out; too few (below
    2) give an empty list.
    """
    schema = predictor.schema
    metric = MEASURED[schema.task]
    rng = np.random.default_rng(seed)
    if len(table) > most_rows:
        table = table.take(pa.array(np.sort(rng.choice(len(table), most_rows, replace=False))))
    number, targets, _ = known_targets(predictor, table)
    table = table.take(pa.array(number)).select([f.name for f in schema.features]).combine_chunks()
    began = time.monotonic()
    done = forward_rows(predictor, table)
    once = time.monotonic() - began
    if len(done.index) < 2:
        return []
    # Two passes over all features should fit.
    rows = min(len(done.index), max(FEWEST_ROWS, int(len(done.index) * seconds / (2 * once * len(schema.features) + 1e-9))))
    index = done.index[:rows]
    table, targets = table.take(pa.array(index)), targets[torch.from_numpy(index)]
    base = quick_metrics(done.outputs[:rows], targets, schema.task)[metric]
    stepped = [f for f in schema.features if f.kind in STEPS]
    # Frames of a sound cannot be made as many as other steps of the row.
    kept = [f.name for f in schema.features if len(stepped) < 2 or f.kind != "audio_frames"]
    lists = [f.name for f in stepped if f.name in kept] if len(stepped) > 1 else []
    falls: dict[str, list[float]] = {name: [] for name in kept}
    for repeat in range(repeats):
        order = rng.permutation(rows)
        for name in kept:
            # In the single inputs that a row has, only this one is another row's.
            other = table.column(name).take(pa.array(order))
            if name in lists:
                other = _as_long(other, [table.column(n) for n in lists])
            shuffled = table.set_column(table.column_names.index(name), name, other)
            outputs = predictor.forward(predictor.prepare(shuffled))
            falls[name].append(base - quick_metrics(outputs, targets, schema.task)[metric])
        if time.monotonic() - began > seconds * (repeat + 1) / (repeat + 2):
            break
    found = [
        {
            "feature": name,
            "mean": float(np.mean(values)),
            "std": float(np.std(values)),
            "metric": metric,
            "repeats": len(values),
            "rows": rows,
        }
        for name, values in falls.items()
    ]
    return sorted(found, key=lambda f: -f["mean"])


def _as_long(column: Any, lists: list[Any]) -> pa.Array:
    """Lists or texts, cut or repeated to as many steps as each row has in `lists`, which go step by step together."""
    found = []
    for value, row in zip(column.to_pylist(), zip(*(c.to_pylist() for c in lists), strict=True), strict=True):
        steps = max(len(own or ()) for own in row)
        found.append((value * -(-steps // len(value)))[:steps] if value else value)
    return pa.array(found, column.type)
