"""Targets: what is learned, from a column to the numbers of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seekray.data.blocks import count_categories, encode
from seekray.data.columns import Columns, missing_column
from seekray.data.parse import Array, Rejects, as_array, booleans, category, is_arrow, is_bytes, is_list, numbers
from seekray.errors import DataError

if TYPE_CHECKING:
    from seekray.data.features import FeatureSchema


@dataclass(frozen=True)
class TargetFit:
    """The fitted part of a schema that is about targets; see `FeatureSchema`."""

    classes: list[Any] | None = None
    class_counts: list[int] | None = None
    target_mean: float = 0.0
    target_std: float = 1.0


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


def _labels(column: Any, name: str, rejects: Rejects) -> Array:
    return booleans(column, name, rejects)


def fit_targets(task: str, targets: Sequence[str], columns: Columns) -> tuple[TargetFit, list[str]]:
    """What a loss needs to know of the training rows' targets. Raises DataError."""
    if not targets or task == "rows":
        return TargetFit(), []
    if task == "classification":
        return _fit_classes(targets[0], column_of(columns, targets[0])), []
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


def encode_targets(schema: FeatureSchema, columns: Columns, rejects: Rejects) -> Array:
    """See `FeatureSchema.encode_targets`."""
    if schema.task == "classification":
        name = schema.targets[0]
        lookup: dict[str | None, int] = {category(c): i for i, c in enumerate(schema.classes or [])}
        return encode(column_of(columns, name), name, lookup, -1, rejects)
    if schema.task == "regression":
        values = numbers(column_of(columns, schema.targets[0]), schema.targets[0], rejects)
        return ((values - schema.target_mean) / schema.target_std).astype(np.float32)[:, None]
    labels = [booleans(column_of(columns, name), name, rejects) for name in schema.targets]
    return np.stack(labels, axis=1).astype(np.float32)
