"""Columns as arrays: the same for Arrow tables, NumPy columns and the lists of a request.

A column is an Arrow array, a NumPy array or a list. Missing is null, None or NaN.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import difflib
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seekray.errors import DataError

Column = Any
Columns = Any  # pa.Table | pa.RecordBatch | Mapping[str, Column]
_PLAIN = {int, float, bool, type(None)}


def names_of(columns: Columns) -> list[str]:
    """Column names."""
    return list(columns.schema.names) if hasattr(columns, "schema") else list(columns)


def column(columns: Columns, name: str) -> Column:
    """One column. Raises DataError that names the nearest one there is."""
    if hasattr(columns, "schema"):
        if name in columns.schema.names:
            found = columns.column(name)
            return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    elif name in columns:
        found = columns[name]
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    raise DataError(f"column {name!r} is missing{nearest(name, names_of(columns))}", field=name)


def nearest(name: str, there: Iterable[str]) -> str:
    """`; did you mean …?` or the columns there are."""
    known = list(there)
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known[:20])}"


def rows_of(columns: Columns) -> int:
    """Number of rows. Raises DataError where columns have different lengths."""
    if hasattr(columns, "num_rows"):
        return int(columns.num_rows)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns have different numbers of rows: {lengths}")
    return next(iter(lengths.values()), 0)


def wrong(name: str, row: int, value: Any, expected: str) -> DataError:
    """The error of one value."""
    return DataError(f"column {name!r}, row {row}: {value!r} given, expected {expected}", field=name)


def numeric_matrix(columns: Columns, names: Sequence[str]) -> np.ndarray[Any, Any]:
    """(B, n) float64, NaN where missing or infinite. Raises DataError with row and value of a text."""
    found = [column(columns, n) for n in names]
    if all(type(c) is list for c in found):
        if set(map(type, chain.from_iterable(found))) <= _PLAIN:
            matrix = np.array(found, dtype=np.float64).T
        else:
            matrix = np.stack([_numbers(c, n) for n, c in zip(names, found, strict=True)], axis=1)
    else:
        matrix = np.empty((len(found[0]), len(found)), dtype=np.float64)
        for i, (name, values) in enumerate(zip(names, found, strict=True)):
            matrix[:, i] = _numbers(values, name)
    finite = np.isfinite(matrix)
    if not finite.all():
        matrix = np.where(finite, matrix, np.nan)
    return matrix


def _numbers(values: Column, name: str) -> np.ndarray[Any, Any]:
    if isinstance(values, pa.Array):
        kind = values.type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
        if pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
            return np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False))
        if pa.types.is_null(kind):
            return np.full(len(values), np.nan)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _parsed(values, name)
        raise wrong(name, 0, values[0].as_py() if len(values) else None, "a number")
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return values.astype(np.float64)
    out = np.empty(len(values), dtype=np.float64)
    for row, value in enumerate(values):
        if value is None or value is _pandas_na():
            out[row] = np.nan
        elif isinstance(value, (int, float, np.number, np.bool_)):
            out[row] = value
        else:
            raise wrong(name, row, value, "a number")
    return out


def _parsed(values: pa.Array, name: str) -> np.ndarray[Any, Any]:
    """Numbers written as text, as a CSV column has them."""
    try:
        return np.asarray(pc.cast(pc.utf8_trim_whitespace(values), pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowException:
        for row, value in enumerate(values.to_pylist()):
            if value is not None and number(value) is None:
                raise wrong(name, row, value, "a number") from None
        return np.array([np.nan if v is None else number(v) for v in values.to_pylist()], dtype=np.float64)


def number(text: str) -> float | None:
    """A number written as text, None where it is not one."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _pandas_na() -> Any:
    import sys

    pandas = sys.modules.get("pandas")
    return pandas.NA if pandas else _PLAIN


def key_of(value: Any) -> str | None:
    """The text by which a category is known: 1, 1.0 and "1" are one, missing is None."""
    if type(value) is str:
        return value
    if value is None or value is _pandas_na():
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return None
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    if isinstance(value, (dt.datetime, dt.date)):
        return value.isoformat()
    return str(value)


def lookup(values: Column, index: Mapping[str, int], missing: int, other: int) -> np.ndarray[Any, Any]:
    """int64 (B,): `index` of each value's key, by distinct values where the column is an Arrow array."""
    if isinstance(values, pa.Array):
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        keys = [key_of(v) for v in encoded.dictionary.to_pylist()]
        of_key = np.array([missing if k is None else index.get(k, other) for k in keys] + [missing], dtype=np.int64)
        indices = pc.fill_null(encoded.indices.cast(pa.int64()), len(keys))
        return np.asarray(of_key[indices.to_numpy(zero_copy_only=False)])
    if isinstance(values, np.ndarray):
        values = values.tolist()
    for row, value in enumerate(values):
        if isinstance(value, (list, dict, bytes)):
            raise wrong("categorical", row, value, "a text, number or boolean")
    return np.array([missing if (k := key_of(v)) is None else index.get(k, other) for v in values], dtype=np.int64)


def times(values: Column, name: str) -> np.ndarray[Any, Any]:
    """(B,) datetime64[s], NaT where missing. Numbers are seconds since 1970. Raises DataError."""
    if not isinstance(values, pa.Array):
        values = values.tolist() if isinstance(values, np.ndarray) else values
        return np.array([_time(v, name, i) for i, v in enumerate(values)], dtype="datetime64[s]")
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        plain = pc.cast(values, pa.timestamp("s"), safe=False)
        return np.asarray(plain.to_numpy(zero_copy_only=False)).astype("datetime64[s]")
    return np.array([_time(v, name, i) for i, v in enumerate(values.to_pylist())], dtype="datetime64[s]")


def _time(value: Any, name: str, row: int) -> np.datetime64:
    if value is None or value is _pandas_na() or value != value:
        return np.datetime64("NaT")
    try:
        if isinstance(value, str):
            value = dt.datetime.fromisoformat(value.strip())
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return np.datetime64(int(value), "s")
        if isinstance(value, dt.datetime) and value.tzinfo is not None:
            value = value.astimezone(dt.UTC).replace(tzinfo=None)
        return np.datetime64(value, "s")
    except (ValueError, OverflowError, TypeError) as error:
        raise wrong(name, row, value, "a time such as 2026-01-31 or 2026-01-31T12:00:00") from error


def texts(values: Column, name: str) -> list[str]:
    """Texts, "" where missing. Raises DataError."""
    found = values.to_pylist() if isinstance(values, pa.Array) else list(values)
    for row, value in enumerate(found):
        if isinstance(value, (list, dict, bytes)):
            raise wrong(name, row, value, "a text")
    return ["" if (k := key_of(v)) is None else k for v in found]


def vectors(values: Column, name: str, size: int) -> np.ndarray[Any, Any]:
    """(B, size) float64; a missing row is NaN. Raises DataError for another length."""
    found = values.to_pylist() if isinstance(values, pa.Array) else values
    out = np.full((len(found), size), np.nan)
    for row, value in enumerate(found):
        if value is None:
            continue
        try:
            vector = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise wrong(name, row, value, f"{size} numbers") from error
        if vector.shape != (size,):
            raise wrong(name, row, f"{len(value) if hasattr(value, '__len__') else value} values", f"{size} numbers")
        out[row] = vector
    return np.where(np.isfinite(out), out, np.nan)


def images(values: Column, name: str, size: tuple[int, int], channels: int) -> np.ndarray[Any, Any]:
    """(B, channels*H*W) float32 in 0..1 from bytes, base64 text or paths; NaN where missing. Raises DataError."""
    found = values.to_pylist() if isinstance(values, pa.Array) else list(values)
    out = np.full((len(found), channels * size[0] * size[1]), np.nan, dtype=np.float32)
    for row, value in enumerate(found):
        if value is not None:
            out[row] = _image(value, name, row, size, channels)
    return out


def _image(value: Any, name: str, row: int, size: tuple[int, int], channels: int) -> np.ndarray[Any, Any]:
    from PIL import Image

    expected = "an image file's bytes, as base64 in JSON"
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise wrong(name, row, value[:40], expected) from error
    if not isinstance(value, bytes):
        raise wrong(name, row, type(value).__name__, expected)
    try:
        with Image.open(io.BytesIO(value)) as image:
            plain = image.convert("L" if channels == 1 else "RGB").resize((size[1], size[0]))
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise DataError(f"column {name!r}, row {row}: {expected} was expected, this does not decode: {error}", field=name) from error
    pixels = np.asarray(plain, dtype=np.float32) / 255
    return pixels.reshape(-1) if channels == 1 else pixels.transpose(2, 0, 1).reshape(-1)
