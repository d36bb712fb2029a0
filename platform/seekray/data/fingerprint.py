"""What data a model saw: hashes that do not depend on how the rows were cut into batches."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seekray.data.parse import Array, as_array, is_bytes, is_list, is_text


def schema_hash(schema: pa.Schema) -> str:
    """Of names and types, whatever their order."""
    pairs = sorted((field.name, str(field.type)) for field in schema)
    return hashlib.blake2b(json.dumps(pairs).encode(), digest_size=16).hexdigest()


def content_hash(table: pa.Table) -> str:
    """Of all values in the order of the rows, whatever the order of the columns and the cut into chunks."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(table.column_names):
        digest = hashlib.blake2b(digest_size=16)
        _add(digest, as_array(table.column(name)))
        whole.update(name.encode() + b"\0" + digest.digest())
    return whole.hexdigest()


def array_hash(values: Array) -> str:
    """Of a NumPy array's values."""
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).hexdigest()


def _add(digest: Any, array: Any) -> None:
    digest.update(len(array).to_bytes(8, "little"))
    if array.null_count:
        # What lies under a null is not defined.
        digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    kind = array.type
    if pa.types.is_null(kind):
        return
    if is_text(kind) or is_bytes(kind):
        filled = array.fill_null("" if is_text(kind) else b"") if array.null_count else array
        if pa.types.is_fixed_size_binary(kind):
            filled = filled.cast(pa.binary())
        lengths = pc.binary_length(filled)
        digest.update(lengths.cast(pa.int64()).to_numpy(zero_copy_only=False))
        wide = pa.types.is_large_string(filled.type) or pa.types.is_large_binary(filled.type)
        offsets = np.frombuffer(filled.buffers()[1], dtype=np.int64 if wide else np.int32)
        start, stop = int(offsets[filled.offset]), int(offsets[filled.offset + len(filled)])
        if data := filled.buffers()[2]:
            digest.update(memoryview(data)[start:stop])
        return
    if is_list(kind):
        lengths = pc.list_value_length(array).fill_null(0)
        digest.update(lengths.cast(pa.int64()).to_numpy(zero_copy_only=False))
        _add(digest, array.flatten())
        return
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_temporal(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif pa.types.is_nested(kind):
        digest.update(json.dumps(array.to_pylist(), default=str, sort_keys=True).encode())
        return
    if array.null_count:
        array = array.fill_null(0)
    digest.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)))
