"""What kind of feature a column is, and how sure that is."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from seekray.data.columns import number
from seekray.data.options import Data, Kind

LOOK_AT = 20_000
MOSTLY = 0.95


@dataclass(frozen=True)
class Inferred:
    """A column's kind, the reason, and whether a person should look."""

    name: str
    kind: Kind
    reason: str
    unsure: bool = False
    looks_like_key: bool = False


def infer_kinds(table: pa.Table, data: Data) -> list[Inferred]:
    """Kinds of the feature columns; those that the experiment names are taken as they are."""
    given = data.features
    skip = {*data.targets, *data.key, *data.exclude} | ({data.split.by} if data.split.by and data.split.kind != "time" else set())
    names = list(given) if given is not None else [n for n in table.column_names if n not in skip]
    found = []
    for name in names:
        kind = given[name].kind if given else None
        found.append(Inferred(name, kind, "given") if kind else infer(name, table.column(name)))
    return found


def infer(name: str, values: pa.ChunkedArray) -> Inferred:
    """One column, by its type and values."""
    values = values.slice(0, LOOK_AT).drop_null()
    kind, rows = values.type, len(values)
    distinct = pc.count_distinct(values).as_py() if not pa.types.is_nested(kind) and rows else 0
    named_key = bool(re.search(r"(^|_)(id|uuid|guid|key|index)$", name.lower()))
    if rows == 0:
        return Inferred(name, "numeric", "no values", unsure=True)
    if pa.types.is_boolean(kind):
        return Inferred(name, "boolean", "true and false")
    if pa.types.is_temporal(kind):
        return Inferred(name, "timestamp", "dates or times")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Inferred(name, "numeric", "numbers")
    if pa.types.is_integer(kind):
        if distinct == rows and rows > 20 and named_key:
            return Inferred(name, "numeric", "a different integer in each row, named like a key", True, True)
        few = distinct <= 10 and rows >= 50
        reason = f"integers with only {distinct} values; categorical if they are codes" if few else "integers"
        return Inferred(name, "numeric", reason, unsure=few and distinct > 2)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return Inferred(name, "vector", "lists of numbers")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return Inferred(name, "image", "binary values")
    return _infer_text(name, [str(v) for v in values.to_pylist()], distinct, named_key)


def _infer_text(name: str, values: list[str], distinct: int, named_key: bool) -> Inferred:
    rows = len(values)
    numbers = sum(number(v) is not None for v in values)
    if numbers >= MOSTLY * rows:
        bad = next(v for v in values if number(v) is None) if numbers < rows else None
        return Inferred(name, "numeric", f"numbers, but also texts such as {bad!r}" if bad else "numbers", unsure=bad is not None)
    if sum(map(_is_time, values[:1000])) >= MOSTLY * min(rows, 1000):
        return Inferred(name, "timestamp", "dates or times as text")
    words = sum(len(v.split()) for v in values) / rows
    if distinct == rows and rows > 20 and (named_key or words < 2):
        return Inferred(name, "categorical", "a different text in each row: a key?", True, True)
    if words >= 4 and distinct > 0.5 * rows:
        return Inferred(name, "text", f"texts of {words:.0f} words")
    return Inferred(name, "categorical", f"{distinct} different texts", unsure=distinct > 0.5 * rows and rows > 20)


def _is_time(value: str) -> bool:
    if len(value) < 8 or not value[:4].isdigit():
        return False
    try:
        dt.datetime.fromisoformat(value.strip())
    except ValueError:
        return False
    return True
