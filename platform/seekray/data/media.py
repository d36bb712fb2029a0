"""Features of free form: text as hashed n-grams, images as scaled pixels."""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from seekray.data.blocks import STRICT, Fitted, State
from seekray.data.columns import Columns
from seekray.data.options import FeatureOptions
from seekray.data.parse import Array, Column, Rejects, as_array, as_list, is_arrow, is_bytes, is_missing, is_text
from seekray.errors import DataError

WORD = re.compile(r"\w+")
LOGS = np.array([math.log1p(i) for i in range(4097)])
# Images whose mean and deviation stand for all.
FITTED_IMAGES = 4096


def texts(column: Column, name: str, rejects: Rejects) -> list[str | None]:
    """Texts (B,), None for missing ones; numbers and bytes are rejected."""
    if is_arrow(column):
        array = as_array(column)
        if not is_text(array.type):
            if array.null_count == len(array):
                return [None] * len(array)
            array = array.cast("string") if not is_bytes(array.type) else array
    out: list[str | None] = []
    for row, value in enumerate(as_list(column) if not is_arrow(column) else array.to_pylist()):
        if isinstance(value, str):
            out.append(value)
        else:
            out.append(None)
            if not is_missing(value):
                rejects.add(name, row, value, "expected a text")
    return out


def grams(text: str, analyzer: str, shortest: int, longest: int) -> Iterator[str]:
    """n-grams of the lower-case words (joined by a space), of the characters, or of those within each word, of a text.

    char_word: a word has a space on each side, so that its beginning and its end are n-grams of their own.
    """
    if analyzer == "char_word":
        for word in text.lower().split():
            edged = f" {word} "
            for n in range(shortest, longest + 1):
                if n == 1:
                    yield from word
                else:
                    yield from (edged[i : i + n] for i in range(len(edged) - n + 1))
        return
    if analyzer == "word":
        tokens: Sequence[str] = WORD.findall(text.lower())
        joiner = " "
    else:
        tokens, joiner = " ".join(text.lower().split()), ""
    for n in range(shortest, longest + 1):
        if n == 1:
            yield from tokens
        else:
            yield from (joiner.join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


class TextBlock:
    """Hashed n-grams: log(1 + count) in CRC-32 buckets, each row of length 1, then scaled; (B, buckets each).

    The hashing trick (Weinberger et al., arXiv:0902.2206) without signs. `scale` is fitted so that an
    n-gram that occurs has about 1, as the other features' deviations do. Missing and empty texts are zeros.
    """

    def __init__(self, features: Sequence[Fitted]) -> None:
        self.names = tuple(f.name for f in features)
        self._states = [f.state for f in features]
        self.width = sum(s["buckets"] for s in self._states)

    def transform(self, columns: Columns, rows: int) -> Array:
        out = np.zeros((rows, self.width), dtype=np.float32)
        start = 0
        for name, state in zip(self.names, self._states, strict=True):
            row, bucket, value = _hashed(texts(columns[name], name, STRICT), state)
            out[row, start + bucket] = value * state["scale"]
            start += state["buckets"]
        return out


def _hashed(values: Sequence[str | None], state: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """Rows, buckets and values of the entries that are not zero, sorted by row and bucket."""
    buckets, (shortest, longest) = state["buckets"], state["ngrams"]
    seed = state["seed"]
    codes: list[int] = []
    ends = [0]
    for text in values:
        if text:
            codes.extend(
                zlib.crc32(g.encode("utf-8", "replace"), seed) for g in grams(text, state["analyzer"], shortest, longest)
            )
        ends.append(len(codes))
    rows = np.repeat(np.arange(len(values)), np.diff(ends))
    flat = rows * buckets + np.array(codes, dtype=np.int64) % buckets
    entries, counts = np.unique(flat, return_counts=True)
    row, bucket = np.divmod(entries, buckets)
    logs = LOGS[np.minimum(counts, len(LOGS) - 1)]
    # bincount adds in order, so a row's length does not depend on its neighbours.
    length = np.sqrt(np.bincount(row, weights=logs * logs, minlength=len(values)))
    return row, bucket, logs / length[row]


def fit_text(values: Sequence[str | None], options: FeatureOptions) -> tuple[State, list[str]]:
    """The scale that brings the mean entry to 1 on the training rows."""
    state: State = {
        "buckets": options.buckets,
        "ngrams": list(options.ngrams or (1, 2)),
        "analyzer": options.analyzer,
        "seed": 0,
        "scale": 1.0,
    }
    total, count = 0.0, 0
    for start in range(0, len(values), 8192):
        entries = _hashed(values[start : start + 8192], state)[2]
        total, count = total + float(entries.sum()), count + len(entries)
    if count:
        state["scale"] = count / total
    return state, ([] if count else ["no training row has a word; it contributes zeros"])


def as_bytes(value: object, what: str) -> bytes:
    """The bytes of an encoded file, given as such or as base64 text, `data:` address or not.

    A text is never a path: whoever can send a row could read the server's files. Raises ValueError.
    """
    if isinstance(value, str):
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"expected {what}'s bytes or base64 text") from None
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError(f"expected {what}'s bytes or base64 text")
    return bytes(value)


def decode_image(value: object, height: int, width: int, channels: int) -> Array:
    """uint8 (height * width * channels,) of an encoded image, see `as_bytes`. Raises ValueError."""
    encoded = as_bytes(value, "an image")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            # JPEG can be decoded small at once.
            image.draft("RGB" if channels == 3 else "L", (width, height))
            small = image.convert("RGB" if channels == 3 else "L").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, MemoryError) as error:
        raise ValueError(f"the image does not decode ({str(error).splitlines()[0][:80] or type(error).__name__})") from None
    return np.asarray(small, dtype=np.uint8).reshape(-1)


def images(column: Column, name: str, size: tuple[int, int], channels: int, rejects: Rejects) -> Array:
    """uint8 (B, H * W * C); 2-D uint8 arrays are taken as decoded already. A missing image is rejected."""
    flat = size[0] * size[1] * channels
    if isinstance(column, np.ndarray) and column.ndim == 2 and column.dtype == np.uint8 and column.shape[1] == flat:
        return column
    values = as_array(column) if is_arrow(column) else as_list(column)
    out = np.zeros((len(values), flat), dtype=np.uint8)
    for row in range(len(values)):
        value = values[row]
        value = value.as_py() if is_arrow(column) else value
        try:
            if is_missing(value):
                raise ValueError("the image is missing")
            out[row] = decode_image(value, *size, channels)
        except ValueError as error:
            given = f"{len(value)} bytes" if isinstance(value, bytes) else value
            rejects.add(name, row, given, str(error))
    return out


class ImageBlock:
    """Pixels in 0..1 less the training mean of their channel, over its deviation; (B, H * W * C each)."""

    def __init__(self, features: Sequence[Fitted]) -> None:
        self.names = tuple(f.name for f in features)
        self._states = [f.state for f in features]
        self.shapes = [(*s["size"], s["channels"]) for s in self._states]
        self.width = sum(map(math.prod, self.shapes))

    def transform(self, columns: Columns, rows: int) -> Array:
        parts = []
        for name, state in zip(self.names, self._states, strict=True):
            size, channels = (state["size"][0], state["size"][1]), state["channels"]
            pixels = images(columns[name], name, size, channels, STRICT).reshape(rows, size[0] * size[1], channels)
            scale = (1 / 255) / np.array(state["std"])
            shift = np.array(state["mean"]) / np.array(state["std"])
            scaled = pixels * scale.astype(np.float32) - shift.astype(np.float32)
            parts.append(scaled.reshape(rows, size[0] * size[1] * channels))
        return np.concatenate(parts, axis=1)


def fit_image(pixels: Array, options: FeatureOptions) -> tuple[State, list[str]]:
    """Mean and deviation of each channel over evenly spaced training images (at most 4,096)."""
    if not len(pixels):
        raise DataError("there are no training images")
    chosen = pixels[:: -(-len(pixels) // FITTED_IMAGES)].reshape(-1, options.channels)
    mean = [float(np.mean(chosen[:, c], dtype=np.float64)) / 255 for c in range(options.channels)]
    std = [float(np.std(chosen[:, c], dtype=np.float64)) / 255 for c in range(options.channels)]
    state = {"size": list(options.size), "channels": options.channels, "mean": mean, "std": [s or 1.0 for s in std]}
    return state, ([] if any(std) else ["is constant on the training rows"])


def png(pixels: Array) -> bytes:
    """A PNG of uint8 (H, W, 1 or 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def example_image(pixels: Array, options: FeatureOptions) -> str:
    """A decoded image (H * W * C,) as base64 PNG, small enough for a bundle's JSON."""
    return base64.b64encode(png(pixels.reshape(*options.size, options.channels))).decode()
