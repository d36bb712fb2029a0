"""From whatever a door brings to typed arrays: the one place where a value's type is judged.

A column is a list (JSON, Python), a NumPy array (Open Inference Protocol) or an Arrow array
(files). Lists are typed already, so a text is never read as a number there; text columns of files
(a CSV cell has no type) are parsed. Values that cannot be read go to `Rejects`.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seekray.errors import DataError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Column: TypeAlias = "list[Any] | tuple[Any, ...] | Array | pa.Array | pa.ChunkedArray"

PLAIN_NUMBERS = frozenset((int, float, type(None)))
NUMBER = r"^[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan|Inf|Infinity|NaN)$"
TRUE = frozenset(("true", "t", "yes", "y", "1", "on"))
FALSE = frozenset(("false", "f", "no", "n", "0", "off"))
SHOWN = 60


def shown(value: object) -> str:
    """A value for an error message, short."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


class Rejects:
    """Values that cannot be read: raised at once (`strict`) or collected as `found`."""

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.found: list[dict[str, Any]] = []

    def add(self, column: str, row: int, value: object, reason: str) -> None:
        """Raises DataError when strict."""
        if self.strict:
            raise DataError(f"column {column!r}, row {row}: {reason}, got {shown(value)}", field=column)
        self.found.append({"row": int(row), "column": column, "value": value, "reason": reason})


def is_arrow(column: object) -> bool:
    """True for Arrow arrays, chunked or not."""
    return isinstance(column, (pa.Array, pa.ChunkedArray))


def as_array(column: Any) -> Any:
    """One Arrow array without dictionary encoding, from an Arrow column."""
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 1:
            column = column.chunk(0)
        else:
            # 32-bit offsets end at 2 GiB of text.
            if pa.types.is_string(column.type) and column.nbytes > 2**30:
                column = column.cast(pa.large_string())
            elif pa.types.is_binary(column.type) and column.nbytes > 2**30:
                column = column.cast(pa.large_binary())
            column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def is_text(kind: Any) -> bool:
    """True for Arrow's string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: Any) -> bool:
    """True for Arrow's binary types."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_number(kind: Any) -> bool:
    """True for Arrow's integers, floats and decimals."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_list(kind: Any) -> bool:
    """True for Arrow's lists of any layout."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_missing(value: object) -> bool:
    """None, NaN, NaT and pandas' NA."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, np.datetime64) and bool(np.isnat(value)))


def as_list(column: Column) -> Sequence[Any]:
    """Python values of a column."""
    if isinstance(column, np.ndarray):
        return list(column.tolist()) if column.dtype.kind not in "Mm" else list(column)
    if isinstance(column, (list, tuple)):
        return column
    return list(column.to_pylist())


def numbers(column: Column, name: str, rejects: Rejects, *, flags: bool = True) -> Array:
    """float64 (B,); missing is NaN, bool is 0 or 1, infinities stay.

    A text in a list is rejected, and true and false are too unless they are expected there (flags); a text column of a
    file is parsed, and what is not a number rejected.
    """
    if is_arrow(column):
        return _arrow_numbers(as_array(column), name, rejects)
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf" and column.ndim == 1:
        return column.astype(np.float64, copy=False)
    values = as_list(column)
    if PLAIN_NUMBERS.issuperset(map(type, values)):
        try:
            return np.array(values, dtype=np.float64)
        except OverflowError:
            pass
    out = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if isinstance(value, (bool, np.bool_)) and not flags:
            rejects.add(name, row, value, "expected a number")
        elif isinstance(value, (int, float, np.number, np.bool_, decimal.Decimal)):
            try:
                out[row] = float(value)
            except OverflowError:
                out[row] = math.inf if value > 0 else -math.inf
        elif not is_missing(value):
            rejects.add(name, row, value, "expected a number")
    return out


def _arrow_numbers(array: Any, name: str, rejects: Rejects) -> Array:
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_duration(kind):
        array = array.cast(pa.int64())
    elif is_text(kind):
        array = _parsed_numbers(array, name, rejects)
    elif not is_number(kind):
        raise DataError(f"{name!r} holds {kind} values, expected numbers; give its kind in data.features", field=name)
    return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def number_mask(array: Any) -> Any:
    """For a text array: True where the text is a number, null where it is null or blank."""
    text = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.equal(text, ""), None, pc.match_substring_regex(text, NUMBER))


def _parsed_numbers(array: Any, name: str, rejects: Rejects) -> Any:
    text = pc.utf8_trim_whitespace(array)
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        mask = pc.match_substring_regex(text, NUMBER)
    for row in np.flatnonzero(pc.invert(mask.fill_null(True)).to_numpy(zero_copy_only=False)):
        rejects.add(name, int(row), array[int(row)].as_py(), "expected a number")
    kept = pc.if_else(mask, text, pa.scalar(None, text.type))
    return pa.array([None if v is None else float(v) for v in kept.to_pylist()], pa.float64())


def booleans(column: Column, name: str, rejects: Rejects) -> Array:
    """float64 (B,) of 0, 1 and NaN for missing; true/false/yes/no/t/f/y/n/on/off/0/1 may be text."""
    if is_arrow(column):
        array = as_array(column)
        if not is_text(array.type):
            return _only_0_1(numbers(array, name, rejects), name, rejects)
        column = array.to_pylist()
    elif isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
        return _only_0_1(numbers(column, name, rejects), name, rejects)
    values = as_list(column)
    out = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if isinstance(value, (bool, np.bool_)) or (isinstance(value, (int, float)) and value in (0, 1)):
            out[row] = float(value)
        elif isinstance(value, str):
            word = value.strip().lower()
            if word in TRUE or word in FALSE:
                out[row] = float(word in TRUE)
            elif word:
                rejects.add(name, row, value, "expected true or false")
        elif not is_missing(value):
            rejects.add(name, row, value, "expected true or false")
    return out


def _only_0_1(values: Array, name: str, rejects: Rejects) -> Array:
    bad = ~((values == 0) | (values == 1) | np.isnan(values))
    for row in np.flatnonzero(bad):
        rejects.add(name, int(row), float(values[row]), "expected true or false (or 1 or 0)")
    return np.where(bad, np.nan, values)


def vectors(column: Column, size: int | None, name: str, rejects: Rejects) -> Array:
    """float64 (B, size); a missing vector is a row of NaN. `size` None takes that of the first one."""
    if is_arrow(column):
        array = as_array(column)
        if pa.types.is_fixed_size_list(array.type) and not array.null_count:
            width = array.type.list_size
            if size in (None, width):
                return numbers(array.flatten(), name, rejects).reshape(-1, width)
        elif is_list(array.type) and len(array) and not array.null_count:
            widths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
            width = int(widths[0]) if size is None else size
            if width and (widths == width).all():
                return numbers(array.flatten(), name, rejects).reshape(-1, width)
    if isinstance(column, np.ndarray) and column.ndim == 2 and column.dtype.kind in "biuf" and size in (None, column.shape[1]):
        return column.astype(np.float64, copy=False)
    values = list(column) if isinstance(column, np.ndarray) else as_list(column)
    if size is None:
        size = next((len(v) for v in values if isinstance(v, (list, tuple, np.ndarray)) and len(v)), 0)
    out = np.full((len(values), size), np.nan)
    for row, value in enumerate(values):
        if is_missing(value):
            continue
        if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != size:
            given = f"{len(value)} numbers" if isinstance(value, (list, tuple, np.ndarray)) else "no list"
            rejects.add(name, row, value, f"expected a list of {size} numbers, {given} given")
            continue
        inner = Rejects(strict=False)
        out[row] = numbers(value, name, inner)
        if inner.found:
            rejects.add(name, row, inner.found[0]["value"], f"expected a list of {size} numbers")
    return out


def category(value: object) -> str | None:
    """The text that names a category at every door: 3, 3.0 and "3" are one; None for missing and "".

    Raises TypeError for a value that cannot be a category.
    """
    if isinstance(value, str):
        return value or None
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if is_missing(value):
        return None
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace") or None
    raise TypeError(type(value).__name__)
