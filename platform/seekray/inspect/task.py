"""The task that a target's values ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seekray.errors import DataError

FEW_CLASSES = 20
LABELS = {"0", "1", "0.0", "1.0", "true", "false"}


def guess_task(columns: Sequence[Any], names: Sequence[str]) -> tuple[str, str, list[str]]:
    """Task, reason and doubts from the targets' values (Arrow columns). Raises DataError where they fit no task."""
    if len(columns) > 1:
        for name, column in zip(names, columns, strict=True):
            values = column.drop_null().unique().to_pylist()
            if not values or not {str(v).lower() for v in values} <= LABELS:
                raise DataError(
                    f"--target {name}: several targets make a multilabel task, whose values are 0 or 1 (or true and false); "
                    f"this column has {', '.join(map(repr, values[:4])) or 'no values'}. Give one --target",
                    field="data.target",
                )
        return "multilabel", f"{len(columns)} targets of 0 and 1", []
    column, name = columns[0], names[0]
    values = column.drop_null()
    kind = values.type
    if not len(values):
        raise DataError(f"--target {name} has no values", field="data.target")
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_temporal(kind):
        labels = "; a label for each step of a sequence is for --family rec" if pa.types.is_nested(kind) else ""
        raise DataError(f"--target {name} holds {kind} values; expected numbers or classes{labels}", field="data.target")
    distinct = pc.count_distinct(values).as_py()
    if distinct == 1:
        raise DataError(f"--target {name} is {values[0].as_py()!r} in all rows; there is nothing to learn", field="data.target")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _texts(values, name, distinct)
    if distinct == 2:
        return "classification", "the target has 2 values", []
    whole = not pa.types.is_floating(kind) or bool(pc.all(pc.equal(pc.floor(values), values)).as_py())
    if not whole:
        return "regression", "the target is a number", []
    if distinct > FEW_CLASSES or distinct * 5 > len(values):
        doubts = [f"{name}: {distinct} different whole numbers, taken as a quantity; for classes set task: classification"]
        return "regression", f"the target is a whole number, {distinct:,} different", doubts if distinct <= 100 else []
    return (
        "classification",
        f"the target is a whole number, only {distinct} different",
        [f"{name}: {distinct} different whole numbers, taken as classes; if they are amounts, set task: regression"],
    )


def _texts(values: Any, name: str, distinct: int) -> tuple[str, str, list[str]]:
    numbers = pc.sum(pc.match_substring_regex(values, r"^\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*$")).as_py() or 0
    if numbers >= 0.95 * len(values) and distinct > FEW_CLASSES:
        bad = len(values) - numbers
        doubts = [f"{name}: numbers but for {bad} of {len(values)} values"] if bad else []
        return "regression", "the target is a number, written as text", doubts
    if distinct > max(FEW_CLASSES, len(values) / 2):
        raise DataError(
            f"--target {name} holds {distinct:,} different texts in {len(values):,} rows, such as {values[0].as_py()!r}; "
            "classes repeat. Is it a name, or a number with a unit?",
            field="data.target",
        )
    doubts = []
    if distinct > 50:
        doubts.append(f"{name}: {distinct:,} classes are many")
    rare = sum(v["counts"].as_py() < 5 for v in values.value_counts())
    if rare:
        doubts.append(f"{name}: {rare} of {distinct} classes have under 5 rows")
    return "classification", f"the target has {distinct} classes", doubts
