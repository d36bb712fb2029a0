"""Times: from texts, dates, datetimes and numbers to datetime64 in UTC."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, cast

import numpy as np
import pyarrow as pa

from seekray.data.parse import Array, Column, Rejects, as_array, as_list, is_arrow, is_missing, is_text, numbers

ISO_TIME = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2}(\.\d{1,9})?)?)?)?( ?(Z|[+-]\d{2}:?\d{2}))?$"
CLOCK_TIME = r"^\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?$"
# 31.12.2025: with points the day is first everywhere; 31/12/2025 would be a guess.
POINT_DATE = r"^\d{1,2}\.\d{1,2}\.\d{4}(,? \d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?$"
EXPECTED = "expected a date or time (ISO 8601, 31.12.2025, or seconds since 1970)"


def times(column: Column, name: str, rejects: Rejects) -> Array:
    """datetime64[us] (B,), UTC; NaT for missing.

    Takes ISO 8601 texts and 31.12.2025 (without a zone they are UTC), dates, datetimes, times of day (on 1970-01-01)
    and numbers, which are seconds since 1970 (from 1e11 on milliseconds, from 1e14 microseconds, from
    1e17 nanoseconds).
    """
    if is_arrow(column):
        array = as_array(column)
        kind = array.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            # int64 first: NumPy would turn nulls of a date into objects.
            micro = array.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
            return _micro(micro)
        if pa.types.is_time(kind):
            return _micro(array.cast(pa.time64("us"), safe=False).cast(pa.int64()))
        if is_text(kind):
            try:
                return _micro(array.cast(pa.timestamp("us")).cast(pa.int64()))
            except pa.ArrowInvalid:
                encoded = array.dictionary_encode()
                return _encoded_times(encoded, array, name, rejects)
        return _epoch(numbers(array, name, rejects))
    if isinstance(column, np.ndarray):
        if column.dtype.kind == "M":
            return column.astype("M8[us]")
        if column.dtype.kind in "iuf":
            return _epoch(numbers(column, name, rejects))
    values = as_list(column)
    out = np.full(len(values), np.datetime64("NaT", "us"), dtype="M8[us]")
    for row, value in enumerate(values):
        found = one_time(value)
        if found is None:
            rejects.add(name, row, value, EXPECTED)
        else:
            out[row] = found
    return out


def _micro(array: Any) -> Array:
    values = array.fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    return np.asarray(values).view("M8[us]")


def _encoded_times(encoded: Any, array: Any, name: str, rejects: Rejects) -> Array:
    nat = np.datetime64("NaT", "us")
    found = [one_time(value) for value in encoded.dictionary.to_pylist()]
    table = np.array([nat if f is None else f for f in found] + [nat], dtype="M8[us]")
    codes = encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)
    bad = np.array([f is None for f in found] + [False])
    for row in np.flatnonzero(bad[codes]):
        reason = EXPECTED
        rejects.add(name, int(row), array[int(row)].as_py(), reason)
    out: Array = table[codes]
    return out


def one_time(value: object) -> np.datetime64[Any] | None:
    """One value as datetime64[us], NaT where it is missing, None where it is not a time."""
    if is_missing(value) or value == "":
        return np.datetime64("NaT", "us")
    try:
        if isinstance(value, str):
            text = value.strip()
            if re.match(POINT_DATE, text):
                date, _, clock = text.replace(",", "").partition(" ")
                day, month, year = date.split(".")
                text = f"{year}-{month:0>2}-{day:0>2}" + (f"T{clock}" if clock else "")
            value = dt.datetime.fromisoformat(f"1970-01-01T{text}" if text[2:3] == ":" else text)
        if isinstance(value, dt.datetime):
            if value.tzinfo is not None:
                value = value.astimezone(dt.UTC).replace(tzinfo=None)
            return np.datetime64(value, "us")
        if isinstance(value, dt.time):
            return np.datetime64(dt.datetime.combine(dt.date(1970, 1, 1), value.replace(tzinfo=None)), "us")
        if isinstance(value, dt.date):
            return np.datetime64(value.isoformat(), "us")
        if isinstance(value, np.datetime64):
            return cast("np.datetime64[Any]", value.astype("M8[us]"))
    except (ValueError, OverflowError):
        return None
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return cast("np.datetime64[Any]", _epoch(np.array([float(value)]))[0])
    return None


def _epoch(values: Array) -> Array:
    size = np.abs(values)
    scale = np.select([size >= 1e17, size >= 1e14, size >= 1e11], [1e-3, 1.0, 1e3], 1e6)
    bad = ~(size < 1e20)
    micro = np.where(bad, 0, np.round(np.where(bad, 0, values) * scale)).astype(np.int64)
    return np.where(bad, np.datetime64("NaT", "us"), micro.view("M8[us]"))


def seconds(values: Array) -> Array:
    """float64 seconds since 1970 of datetime64, NaN for NaT."""
    return np.where(np.isnat(values), np.nan, values.astype("M8[us]").astype(np.int64) / 1e6)
