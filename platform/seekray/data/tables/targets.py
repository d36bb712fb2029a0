"""Targets: what is learned, from a column to the numbers of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seekray.data.blocks import count_categories, encode
from seekray.data.columns import Columns, missing_column
from seekray.data.parse import Array, Rejects, as_array, booleans, category, is_arrow, is_bytes, is_list, numbers
from seekray.data.schema import Prediction
from seekray.data.sequences.ragged import Ragged, ends, sequences
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from seekray.data.tables.features import FeatureSchema


@dataclass(frozen=True)
class TargetFit:
    """The fitted part of a schema that is about targets; see `FeatureSchema`."""

    classes: list[Any] | None = None
    class_counts: list[int] | None = None
    target_mean: float = 0.0
    target_std: float = 1.0
    horizon: int = 0


def column_of(columns: Columns, name: str) -> Any:
    """A target's column. Raises DataError naming the nearest."""
    try:
        return columns[name]
    except KeyError:
        raise missing_column(name, list(columns)) from None


def read_targets(task: str, targets: Sequence[str], columns: Columns, rejects: Rejects) -> None:
    """Put rows whose targets are missing or of the wrong type into `rejects`."""
    for name in targets:
        column = column_of(columns, name)
        if task in ("labelling", "forecast"):
            _read_lists(task, name, column, rejects)
            continue
        if task == "classification":
            if is_arrow(column) and (is_list(column.type) or is_bytes(column.type)):
                raise DataError(f"target {name!r} holds {column.type}, expected classes", field=name)
            missing = encode(column, name, {None: 1}, 0, rejects).astype(bool)
        else:
            values = (numbers if task == "regression" else _labels)(column, name, rejects)
            known = {r["row"] for r in rejects.found if r["column"] == name}
            missing = ~np.isfinite(values)
            missing[list(known)] = False
        array = as_array(column) if is_arrow(column) else column
        for row in np.flatnonzero(missing):
            value = array[int(row)]
            value = value.as_py() if hasattr(value, "as_py") else value
            rejects.add(name, int(row), value, "the target is missing" if value is None else "the target is not finite")


def _read_lists(task: str, name: str, column: Any, rejects: Rejects) -> None:
    """Labels of steps, or values to come, that are missing or of the wrong length go to `rejects`."""
    known = len(rejects.found)
    if task == "labelling":
        labels = label_lists(column, name, rejects)
        lengths, wanted = labels.lengths, "a label for each step"
        bad = lengths == 0
    else:
        values = sequences(column, 1, name, rejects)
        lengths = values.lengths
        most = int(np.bincount(lengths).argmax()) if len(lengths) else 0
        wanted = f"{most} numbers, none missing"
        whole = (
            np.add.reduceat(np.append(~np.isfinite(values.values[:, 0]), False), values.offsets[:-1])
            if len(lengths)
            else lengths
        )
        bad = (lengths != most) | (lengths == 0) | (whole > 0)
    told = {r["row"] for r in rejects.found[known:]}
    for row in np.flatnonzero(bad):
        if int(row) not in told:
            rejects.add(name, int(row), None, f"expected {wanted}, {lengths[row]} given")


def label_lists(column: Any, name: str, rejects: Rejects) -> Ragged:
    """The labels (S,) of the steps of all rows as they came, with offsets; a row that is no list has none."""
    if isinstance(column, Ragged):
        return column
    if is_arrow(column):
        array = as_array(column)
        if not is_list(array.type):
            raise DataError(f"target {name!r} holds {array.type}, expected a list of labels, one a step", field=name)
        column = array.to_pylist()
    rows = []
    for row, value in enumerate(column):
        if value is not None and not isinstance(value, (list, tuple, np.ndarray)):
            rejects.add(name, row, value, "expected a list of labels, one a step")
        rows.append(list(value) if isinstance(value, (list, tuple, np.ndarray)) else [])
    flat = np.empty(sum(map(len, rows)), dtype=object)
    flat[:] = [label for row in rows for label in row]
    return Ragged(flat, ends(np.array([len(r) for r in rows], dtype=np.int64)))


def _labels(column: Any, name: str, rejects: Rejects) -> Array:
    return booleans(column, name, rejects)


def fit_targets(task: str, targets: Sequence[str], columns: Columns) -> tuple[TargetFit, list[str]]:
    """What a loss needs to know of the training rows' targets. Raises DataError."""
    if not targets or task == "rows":
        return TargetFit(), []
    if task == "classification":
        return _fit_classes(targets[0], column_of(columns, targets[0])), []
    if task == "labelling":
        return _fit_classes(targets[0], list(label_lists(column_of(columns, targets[0]), targets[0], Rejects()).values)), []
    if task == "forecast":
        ahead = sequences(column_of(columns, targets[0]), 1, targets[0], Rejects())
        mean, std = float(ahead.values.mean()), float(ahead.values.std())
        return TargetFit(target_mean=mean, target_std=std or 1.0, horizon=int(ahead.lengths[0])), []
    if task == "multilabel":
        counts = [int(booleans(column_of(columns, t), t, Rejects()).sum()) for t in targets]
        rows = len(column_of(columns, targets[0]))
        notes = [
            f"target {t!r} is {'never' if not n else 'always'} 1 on the training rows"
            for t, n in zip(targets, counts, strict=True)
            if n in (0, rows)
        ]
        return TargetFit(classes=list(targets), class_counts=counts), notes
    values = numbers(column_of(columns, targets[0]), targets[0], Rejects())
    mean, std = float(np.mean(values)), float(np.std(values))
    if not np.isfinite([mean, std]).all():
        raise DataError(f"target {targets[0]!r} has values too large to average; scale it", field=targets[0])
    if values.min() == values.max():
        return TargetFit(target_mean=mean), [f"target {targets[0]!r} is the same on all training rows ({mean:g})"]
    return TargetFit(target_mean=mean, target_std=std), []


def _fit_classes(name: str, column: Any) -> TargetFit:
    found = count_categories(column)
    if len(found) == 1:
        raise DataError(
            f"target {name!r} has one class only ({found[0][0]!r}), expected two or more; there is nothing to learn",
            field=name,
        )
    rows = sum(n for _, n in found)
    fractions = any(isinstance(v, float) and not v.is_integer() for v, _ in found)
    if fractions and len(found) > max(20, rows // 10):
        raise DataError(
            f"target {name!r} has {len(found)} different numbers, expected classes; did you mean task: regression?",
            field=name,
        )
    values = [(_class_value(v, fractions), n) for v, n in found]
    values.sort(key=lambda pair: pair[0])
    return TargetFit(classes=[v for v, _ in values], class_counts=[n for _, n in values])


def _class_value(value: Any, fractions: bool) -> Any:
    """A class as a JSON value; 1.0 is 1 where all are whole (a column of ints with nulls is read as floats)."""
    if isinstance(value, float) and not fractions:
        return int(value)
    return value if isinstance(value, (bool, int, float, str)) else category(value)


def encode_targets(schema: FeatureSchema, columns: Columns, rejects: Rejects) -> Any:
    """See `FeatureSchema.encode_targets`."""
    if schema.task == "labelling":
        name = schema.targets[0]
        labels = label_lists(column_of(columns, name), name, rejects)
        numbering: dict[str | None, int] = {category(c): i for i, c in enumerate(schema.classes or [])}
        return Ragged(encode(list(labels.values), name, numbering, -1, rejects), labels.offsets)
    if schema.task == "forecast":
        return _encode_ahead(schema, column_of(columns, schema.targets[0]), rejects)
    if schema.task == "classification":
        name = schema.targets[0]
        lookup: dict[str | None, int] = {category(c): i for i, c in enumerate(schema.classes or [])}
        return encode(column_of(columns, name), name, lookup, -1, rejects)
    if schema.task == "regression":
        values = numbers(column_of(columns, schema.targets[0]), schema.targets[0], rejects)
        return ((values - schema.target_mean) / schema.target_std).astype(np.float32)[:, None]
    flags = [booleans(column_of(columns, name), name, rejects) for name in schema.targets]
    return np.stack(flags, axis=1).astype(np.float32)


def _encode_ahead(schema: FeatureSchema, column: Any, rejects: Rejects) -> Array:
    """float32 (B, horizon) standardised values to come; NaN where there are not as many."""
    ahead = sequences(column, 1, schema.targets[0], rejects)
    out = np.full((len(ahead), schema.horizon), np.nan, dtype=np.float32)
    whole = ahead.lengths == schema.horizon
    steps = ahead[np.flatnonzero(whole)].values.reshape(-1, schema.horizon)
    out[whole] = (steps - schema.target_mean) / schema.target_std
    return out


def decode_steps(outputs: Tensor, classes: Sequence[Any]) -> Prediction:
    """The class of each step of outputs (B, T, C), where NaN fills rows up."""
    if not len(outputs):
        return Prediction([], {str(c): [] for c in classes})
    lengths = (~outputs[..., 0].isnan()).sum(1).tolist()
    scores = outputs.softmax(-1)
    picked = outputs.nan_to_num().argmax(-1).tolist()
    answers = [[classes[i] for i in row[:length]] for row, length in zip(picked, lengths, strict=True)]
    columns = scores.permute(2, 0, 1).tolist()
    probabilities = {
        str(c): [row[:length] for row, length in zip(column, lengths, strict=True)]
        for c, column in zip(classes, columns, strict=True)
    }
    return Prediction(answers, probabilities)


def decode_ahead(values: Tensor, quantiles: Sequence[float]) -> Prediction:
    """Values to come from (B, horizon * quantiles); sorted, so that a higher quantile is never below a lower one."""
    parts = values.view(len(values), values.shape[1] // len(quantiles), len(quantiles)).sort(-1).values
    lists = {f"{q:g}": parts[..., i].tolist() for i, q in enumerate(quantiles)}
    return Prediction(lists["0.5"], None, lists)
