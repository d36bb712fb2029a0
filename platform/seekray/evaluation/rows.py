"""A predictor on a table of rows: metrics, bootstrap intervals, groups, confusion or residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from seekray.batch.parts import forward_rows
from seekray.data.columns import check_columns
from seekray.data.parse import Rejects, numbers, shown
from seekray.errors import DataError
from seekray.evaluation.result import Asked, Evaluation
from seekray.metrics import RowSums, calibration_bins, full_metrics

if TYPE_CHECKING:
    from seekray.predictor import Predictor

# More rows than this are drawn in so many random groups of equal size: the same spread to first
# order (the variance of a mean of group means), at a cost that does not grow with the rows.
MOST_DRAWN = 2000
MOST_GROUPS = 30
SHOWN_REJECTIONS = 20
SHOWN_RESIDUALS = 2000


def evaluate(predictor: Predictor, table: pa.Table, asked: Asked) -> Evaluation:
    """Metrics of a predictor on a table with the target column.

    Rows with a missing or unknown target, or with features that cannot be read, are counted in
    `rejected`. Raises DataError where a column is missing or no row can be used.
    """
    schema = predictor.schema
    if not schema.targets:
        raise DataError(f"model {predictor.name!r} has no target to evaluate against")
    check_columns([*(f.name for f in schema.features), *schema.targets, *asked.by], table.column_names)
    number, targets, reasons = known_targets(predictor, table)
    known = table if len(number) == len(table) else table.take(pa.array(number))
    done = forward_rows(predictor, known)
    reasons |= {int(number[row]): reason for row, reason in done.reasons.items()}
    number, targets = number[done.index], targets[torch.from_numpy(done.index)]
    if not len(number):
        first = next(iter(reasons.values()), "the table has no rows")
        raise DataError(f"no row can be evaluated: {first}")
    outputs = done.outputs.double()
    if schema.task == "regression":
        outputs = torch.tensor(predictor.decode(outputs).predictions, dtype=torch.float64)[:, None]
        # From the column, not from its float32 standardised form.
        values = numbers(table.column(schema.targets[0]), schema.targets[0], Rejects(strict=False))
        targets = torch.from_numpy(values[number][:, None])
    names = [str(c) for c in schema.classes] if schema.classes else None
    found = full_metrics(outputs, targets, schema.task, names)
    sums = RowSums(outputs, targets, schema.task)
    kept = table.take(pa.array(number)) if asked.by else table.slice(0, 0)
    return Evaluation(
        task=schema.task,
        rows=len(number),
        rejected=len(table) - len(number),
        metrics=found.values,
        intervals=_intervals(_resampled([sums], asked.resamples, asked.seed)[0] if asked.resamples else {}, found.values),
        notes=found.notes,
        rejections=[{"row": row, "reason": reasons[row]} for row in sorted(reasons)[:SHOWN_REJECTIONS]],
        groups={name: _groups(kept[name], outputs, targets, schema.task, names) for name in asked.by},
        classes=_classes(sums, names) if names else [],
        confusion=_confusion(outputs, targets, len(names)) if schema.task == "classification" and names else None,
        calibration=calibration_bins(outputs, targets, schema.task) if names else [],
        residuals=None if names else _residuals(outputs, targets),
        outputs=outputs,
        targets=targets,
        row_numbers=torch.from_numpy(number),
    )


def compare(a: Evaluation, b: Evaluation, *, resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Paired bootstrap of two evaluations of one table: each draw takes the same rows for both.

    For each metric that both have: `{a, b, difference, interval, better}` with difference = a - b, its
    95 % percentile interval, and `better` "a" or "b" where the interval leaves out zero, else None. Over
    the rows that count in both. Raises DataError where the two are not of one task or share no row.
    """
    if a.task != b.task:
        raise DataError(f"cannot compare a {a.task} model with a {b.task} model")
    if a.outputs is None or b.outputs is None or a.row_numbers is None or b.row_numbers is None:
        raise DataError(f"two {a.task} models have no rows to pair; compare their own figures")
    assert a.targets is not None
    left, right = np.intersect1d(a.row_numbers.numpy(), b.row_numbers.numpy(), return_indices=True)[1:]
    if not len(left):
        raise DataError("the two evaluations have no row in common; evaluate both on the same table")
    targets = a.targets[torch.from_numpy(left)]
    sides = [a.outputs[torch.from_numpy(left)], b.outputs[torch.from_numpy(right)]]
    sums = [RowSums(outputs, targets, a.task) for outputs in sides]
    values = [full_metrics(outputs, targets, a.task).values for outputs in sides]
    draws = _resampled(sums, resamples, seed)
    out = {}
    for name in [n for n in values[0] if n in values[1]]:
        interval = _percentiles(draws[0][name] - draws[1][name])
        better = None
        if interval and (interval[0] > 0 or interval[1] < 0):
            lower_is_better = name in ("log_loss", "calibration_error", "mae", "rmse")
            better = "a" if (interval[0] > 0) != lower_is_better else "b"
        out[name] = {
            "a": values[0][name],
            "b": values[1][name],
            "difference": values[0][name] - values[1][name],
            "interval": list(interval) if interval else None,
            "better": better,
        }
    return out


def known_targets(predictor: Predictor, table: pa.Table) -> tuple[np.ndarray[Any, Any], Tensor, dict[int, str]]:
    """Row numbers with a known target (N,), their encoded targets (see Schema), and the reason for each other row."""
    schema = predictor.schema
    rejects = Rejects(strict=False)
    encoded = schema.encode_targets(table, rejects)
    reasons = {r["row"]: f"target {r['column']!r}: {r['reason']}, got {shown(r['value'])}" for r in reversed(rejects.found)}
    absent = encoded < 0 if schema.task == "classification" else ~np.isfinite(encoded)
    for row in np.flatnonzero(absent if absent.ndim == 1 else absent.any(1)).tolist():
        name = schema.targets[0 if absent.ndim == 1 else int(np.flatnonzero(absent[row])[0])]
        value = table.column(name)[row].as_py()
        unknown = "is no class of the model" if schema.task == "classification" else "is not finite"
        reasons.setdefault(row, f"target {name!r} {'is missing' if value is None else f'{shown(value)} {unknown}'}")
    number = np.setdiff1d(np.arange(len(table)), list(reasons))
    return number, torch.from_numpy(encoded[number]), reasons


def _resampled(sums: Sequence[RowSums], resamples: int, seed: int) -> list[dict[str, Tensor]]:
    """Metrics of bootstrap draws, (resamples,) each; all tables get the same draws."""
    size = sums[0].size
    drawn = min(size, MOST_DRAWN)
    rng = np.random.default_rng(seed)
    groups = torch.from_numpy(rng.permutation(size) % drawn if size > drawn else np.arange(size))
    figures = [s.totals(groups, drawn) for s in sums]
    parts: list[list[dict[str, Tensor]]] = [[] for _ in sums]
    for start in range(0, resamples, 1000):
        count = min(1000, resamples - start)
        picks = rng.integers(0, drawn, (count, drawn)) + np.arange(count)[:, None] * drawn
        weights = torch.from_numpy(np.bincount(picks.ravel(), minlength=count * drawn).reshape(count, drawn)).double()
        for part, s, f in zip(parts, sums, figures, strict=True):
            part.append(s.metrics(weights @ f))
    return [{name: torch.cat([p[name] for p in part]) for name in part[0]} for part in parts]


def _percentiles(values: Tensor) -> tuple[float, float] | None:
    """2.5th and 97.5th percentile of the draws that define a value; None where fewer than half do."""
    values = values[values.isfinite()] if bool(values.isfinite().sum() * 2 >= len(values)) else values[:0]
    if len(values) < 2:
        return None
    low, high = np.quantile(values.numpy(), [0.025, 0.975])
    return float(low), float(high)


def _intervals(draws: Mapping[str, Tensor], values: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    pairs = {name: _percentiles(draws[name]) for name in values if name in draws}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def _groups(
    column: pa.ChunkedArray, outputs: Tensor, targets: Tensor, task: str, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """A line of metrics for each value, the most frequent first; many numbers are cut into five ranges."""
    labels = _labels(column)
    values, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    lines = []
    for value in np.argsort(-counts, kind="stable")[:MOST_GROUPS]:
        member = torch.from_numpy(np.flatnonzero(index == value))
        found = full_metrics(outputs[member], targets[member], task, names).values
        lines.append({"value": str(values[value]), "rows": int(counts[value]), "metrics": found})
    if len(values) > MOST_GROUPS:
        rest = sum(int(c) for c in np.sort(counts)[:-MOST_GROUPS])
        lines.append({"value": f"({len(values) - MOST_GROUPS} other values)", "rows": rest, "metrics": {}})
    return lines


def _labels(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    missing = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
    numeric = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if numeric and pc.count_distinct(column).as_py() > MOST_GROUPS:
        numbers = pc.cast(column, pa.float64()).to_numpy()
        edges = np.unique(np.quantile(numbers[~missing & np.isfinite(numbers)], [0.2, 0.4, 0.6, 0.8]))
        bins = np.searchsorted(edges, np.nan_to_num(numbers), side="right")
        bounds = ["-∞", *(f"{e:.4g}" for e in edges), "∞"]
        labels = np.array([f"[{bounds[b]}, {bounds[b + 1]})" for b in bins], dtype=object)
    else:
        labels = np.array([str(v) for v in column.to_pylist()], dtype=object)
    labels[missing] = "(missing)"
    return labels.astype(str)


def _classes(sums: RowSums, names: Sequence[str]) -> list[dict[str, Any]]:
    tp, predicted, actual = sums.by_class()
    kind = "label" if sums.task == "multilabel" else "class"
    return [
        {
            kind: name,
            "rows": int(actual[i]),
            "precision": float(tp[i] / predicted[i]) if predicted[i] else None,
            "recall": float(tp[i] / actual[i]) if actual[i] else None,
            "f1": float(2 * tp[i] / (predicted[i] + actual[i])) if predicted[i] + actual[i] else None,
        }
        for i, name in enumerate(names)
    ]


def _confusion(outputs: Tensor, targets: Tensor, classes: int) -> list[list[int]]:
    pairs = targets.long() * classes + outputs.argmax(1)
    return [[int(n) for n in row] for row in torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)]


def _residuals(outputs: Tensor, targets: Tensor) -> dict[str, list[float]]:
    """At most SHOWN_RESIDUALS rows, evenly spaced; JSON has no NaN."""
    step = math.ceil(len(outputs) / SHOWN_RESIDUALS)
    shown = outputs[::step, 0].isfinite()
    return {"target": targets[::step, 0][shown].tolist(), "prediction": outputs[::step, 0][shown].tolist()}
