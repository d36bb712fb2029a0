"""Tensors of the Open Inference Protocol as JSON and as raw bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from seekray.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def mapping(value: object, field: str) -> Mapping[str, Any]:
    """A JSON object, empty where there is none. Raises DataError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{field!r} must be an object", field=field)
    return value


def values_of(tensor: Mapping[str, Any], raw: memoryview) -> tuple[Array | list[Any], memoryview]:
    """A tensor's values, flat, from its JSON `data` or from the raw bytes, and the bytes left."""
    name, datatype, shape = tensor["name"], tensor.get("datatype"), tensor.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"input {name!r} needs a shape of non-negative integers", field=name)
    if datatype != "BYTES" and datatype not in DTYPES:
        raise DataError(f"input {name!r} has datatype {datatype!r}; known are {', '.join(DTYPES)}, BYTES", field=name)
    count = math.prod(shape)
    size = mapping(tensor.get("parameters"), "parameters").get("binary_data_size")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(raw):
            raise DataError(f"input {name!r} announces {size} bytes, there are {len(raw)}", field=name)
        part, raw = raw[:size], raw[size:]
        return _from_bytes(name, datatype, count, part), raw
    data = tensor.get("data")
    if not isinstance(data, list):
        raise DataError(f"input {name!r} has neither data nor binary_data_size", field=name)
    flat = _flatten(data)
    if len(flat) != count:
        raise DataError(f"input {name!r} has {len(flat)} values, its shape says {count}", field=name)
    return flat, raw


def _from_bytes(name: str, datatype: str, count: int, part: memoryview) -> Array | list[Any]:
    if datatype != "BYTES":
        dtype = np.dtype(DTYPES[datatype])
        if len(part) != count * dtype.itemsize:
            raise DataError(
                f"input {name!r} has {len(part)} bytes, {count} {datatype} need {count * dtype.itemsize}", field=name
            )
        return np.frombuffer(part, dtype=dtype)
    values: list[Any] = []
    at = 0
    while at + 4 <= len(part) and len(values) < count:
        length = int.from_bytes(part[at : at + 4], "little")
        at += 4 + length
        try:
            values.append(str(part[at - length : at], "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"input {name!r} row {len(values)} is not UTF-8", field=name) from error
    if at != len(part) or len(values) != count:
        raise DataError(f"input {name!r} does not hold {count} length-prefixed strings", field=name)
    return values


def to_bytes(values: Array, datatype: str) -> bytes:
    """A tensor as raw bytes: little-endian, row-major, texts after their length."""
    if datatype != "BYTES":
        return np.ascontiguousarray(values).tobytes()
    encoded = [str(value).encode() for value in values.ravel()]
    return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)


def _flatten(data: list[Any]) -> list[Any]:
    """Row-major values of a list that may be nested."""
    while data and isinstance(data[0], list):
        nested, data = data, []
        for part in nested:
            if not isinstance(part, list):
                raise DataError("data is nested unevenly", field="data")
            data.extend(part)
    return data
