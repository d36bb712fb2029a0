"""How large an Arrow IPC stream becomes when it is unpacked, read from its messages before anything is unpacked.

pyarrow takes memory for as much as a compressed buffer says that it holds; a small body could ask for all there is. The
messages are flatbuffers (Arrow's `format/Message.fbs`); of a record batch, its compression and its buffers are looked at.
"""

from __future__ import annotations

import struct

from seekray_serve.http import RequestError

_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_CONTINUATION = 0xFFFFFFFF


def unpacked_size(body: bytes) -> int:
    """Bytes of all buffers of a stream, unpacked. Raises RequestError for what is no stream."""
    total = at = 0
    try:
        while at + 4 <= len(body):
            length, at = _uint(body, at), at + 4
            if length == _CONTINUATION:
                length, at = _uint(body, at), at + 4
            if length == 0:
                break
            message = memoryview(body)[at : at + length]
            at += length
            size, found = _message(message, memoryview(body)[at:])
            total, at = total + found, at + size
    except (struct.error, IndexError, ValueError) as error:
        raise RequestError(400, "bad_arrow", f"the body is no Arrow IPC stream: {error}") from error
    return total


def _message(message: memoryview, rest: memoryview) -> tuple[int, int]:
    """Length of a message's body, and what its buffers are unpacked."""
    table = _uint(message, 0)
    kind_at, header_at, length_at = (_field(message, table, n) for n in (1, 2, 3))
    length = struct.unpack_from("<q", message, length_at)[0] if length_at else 0
    if not 0 <= length <= len(rest):
        raise ValueError("a message is longer than the body")
    kind = message[kind_at] if kind_at else 0
    if not header_at or kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
        return length, 0
    batch = header_at + _uint(message, header_at)
    if kind == _DICTIONARY_BATCH:
        data = _field(message, batch, 1)
        if not data:
            return length, 0
        batch = data + _uint(message, data)
    buffers, packed = _field(message, batch, 2), _field(message, batch, 3)
    if not packed or not buffers:
        return length, length
    vector = buffers + _uint(message, buffers)
    found = 0
    for number in range(_uint(message, vector)):
        start, size = struct.unpack_from("<qq", message, vector + 4 + 16 * number)
        if size >= 8:
            found += max(size, struct.unpack_from("<q", rest, start)[0])
    return length, found


def _uint(data: bytes | memoryview, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table stands; 0 where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * number
    if vtable < 0 or struct.unpack_from("<H", data, vtable)[0] < entry + 2:
        return 0
    offset = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + int(offset) if offset else 0
