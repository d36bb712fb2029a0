"""What kind of feature a column is, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seekray.data.options import Data
from seekray.data.parse import as_array, is_bytes, is_list, is_number, is_text, number_mask
from seekray.data.times import CLOCK_TIME, ISO_TIME, POINT_DATE
from seekray.errors import DataError

ID_NAME = re.compile(r"(^|[_\W])(id|uuid|guid|key|index|nr|no)$|[a-z](Id|ID|Uuid|UUID)$|^unnamed: 0$|^$", re.IGNORECASE)
ID_CAMEL = re.compile(r"[a-z0-9](Id|ID|Uuid|UUID|Guid)$")
# Fewer parsing values make a text column, more a numeric one with bad rows.
MOSTLY = 0.95
FEW = 20
SOUND_HEADS = (b"RIFF", b"fLaC", b"OggS")


@dataclass(frozen=True)
class Inferred:
    """An inferred kind; `unsure` is worth a word to the user, `looks_like_key` columns tell rows apart and teach nothing."""

    name: str
    kind: str
    reason: str
    unsure: bool = False
    looks_like_key: bool = False


def infer_kinds(table: pa.Table, data: Data) -> list[Inferred]:
    """The kind of each feature column of a table (a sample will do), given kinds first.

    Raises DataError for a type that no kind reads.
    """
    given = data.features or {}
    out = []
    for name in table.column_names:
        if data.features is None and (name in data.targets or name in data.key or name in data.exclude):
            continue
        if data.features is None and name == data.split.by:
            continue
        if data.features is not None and name not in data.features:
            continue
        if name in given and (kind := given[name].kind):
            out.append(Inferred(name, kind, "given in data.features"))
        else:
            out.append(infer(name, as_array(table.column(name))))
    return out


def infer(name: str, array: Any) -> Inferred:
    """The kind of one column, an Arrow array. Raises DataError for a type that no kind reads."""
    kind = array.type
    if pa.types.is_null(kind) or array.null_count == len(array):
        return Inferred(name, "numeric", "no row has a value", unsure=True)
    if pa.types.is_boolean(kind):
        return Inferred(name, "boolean", "true and false")
    if is_number(kind) or pa.types.is_duration(kind):
        return _guess_number(name, array)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return Inferred(name, "timestamp", f"{kind} values")
    if is_text(kind):
        return _guess_text(name, array.drop_null())
    if is_bytes(kind):
        first = array.drop_null()[0].as_py()
        if first.startswith(SOUND_HEADS):
            return Inferred(name, "audio", "encoded sounds")
        return Inferred(name, "image", "binary values")
    if is_list(kind) and is_number(kind.value_type):
        lengths = pc.list_value_length(array.drop_null())
        if max(pair["counts"] for pair in pc.value_counts(lengths).to_pylist()) < MOSTLY * len(lengths):
            return Inferred(name, "sequence", "lists of numbers of different lengths")
        return Inferred(name, "vector", "lists of numbers")
    if is_list(kind) and is_list(kind.value_type) and is_number(kind.value_type.value_type):
        return Inferred(name, "sequence", "lists of lists of numbers")
    raise DataError(f"column {name!r} holds {kind} values, which no feature kind reads; put it into data.exclude", field=name)


def _guess_number(name: str, array: Any) -> Inferred:
    if not pa.types.is_integer(array.type):
        return Inferred(name, "numeric", "numbers")
    distinct = pc.count_distinct(array).as_py()
    if distinct == len(array) > 2 and _is_id(name):
        return Inferred(name, "numeric", "whole numbers, all different, named like an identifier", True, True)
    if 2 < distinct <= FEW and distinct * 10 <= len(array):
        return Inferred(name, "numeric", f"whole numbers, only {distinct} different: perhaps categories", unsure=True)
    return Inferred(name, "numeric", "whole numbers")


def _is_id(name: str) -> bool:
    return bool(ID_NAME.search(name) or ID_CAMEL.search(name))


def _guess_text(name: str, array: Any) -> Inferred:
    rows = len(array)
    distinct = pc.count_distinct(array).as_py()
    numeric = number_mask(array)
    share = (pc.sum(numeric).as_py() or 0) / max(1, rows - numeric.null_count)
    if share == 1 and distinct <= max(FEW, rows // 20):
        return Inferred(name, "categorical", f"numbers written as text, {distinct} different", unsure=True)
    if share >= MOSTLY:
        bad = round((1 - share) * rows)
        reason = f"numbers, but for {bad} of {rows} values" if bad else "numbers written as text"
        return Inferred(name, "numeric", reason, unsure=True)
    trimmed = pc.utf8_trim_whitespace(array)
    for pattern, form in ((ISO_TIME, "ISO 8601"), (CLOCK_TIME, "ISO 8601"), (POINT_DATE, "day.month.year")):
        share = (pc.sum(pc.match_substring_regex(trimmed, pattern)).as_py() or 0) / rows
        if share >= MOSTLY:
            return Inferred(name, "timestamp", f"dates or times ({form})", unsure=share < 1)
    if distinct == rows > 2 and _is_id(name):
        return Inferred(name, "categorical", "all different, named like an identifier", True, True)
    length = pc.mean(pc.utf8_length(array)).as_py()
    words = pc.mean(pc.count_substring(trimmed, " ")).as_py() + 1
    if distinct > rows / 2 and rows > 2 and (words >= 3 or length >= 30):
        return Inferred(name, "text", f"mostly different, {words:.0f} words each")
    if distinct > max(FEW, rows / 2):
        return Inferred(name, "categorical", f"{distinct} different in {rows} rows: hardly any repeats", unsure=True)
    return Inferred(name, "categorical", f"{distinct} different")
