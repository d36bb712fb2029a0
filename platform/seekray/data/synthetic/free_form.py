"""Images and short texts as a generator makes them: pixels in -1..1, characters as numbers; and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data.media import example_image, images, png, texts
from seekray.data.options import FeatureOptions
from seekray.data.parse import Array, Rejects
from seekray.data.tables.features import Feature
from seekray.errors import DataError

MOST_CHARACTERS = 96
MOST_LENGTH = 200


def fit_image(name: str, column: Any, options: FeatureOptions) -> Feature:
    """An image column; its size and channels are the options'."""
    pixels = images(column, name, options.size, options.channels, Rejects())
    state = {"size": list(options.size), "channels": options.channels}
    return Feature(name, "image", example_image(pixels[0], options), None, state)


def encode_images(feature: Feature, column: Any) -> Array:
    """float32 (B, C * H * W) in -1..1, channel after channel."""
    (height, width), channels = feature.state["size"], feature.state["channels"]
    pixels = images(column, feature.name, (height, width), channels, Rejects())
    planes = pixels.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    return (planes.reshape(len(pixels), channels * height * width) / 127.5 - 1).astype(np.float32)


def decode_images(feature: Feature, made: Array) -> pa.Array:
    """PNG files of (B, C * H * W)."""
    (height, width), channels = feature.state["size"], feature.state["channels"]
    pixels = np.clip(np.round((made + 1) * 127.5), 0, 255).astype(np.uint8)
    planes = pixels.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return pa.array([png(plane) for plane in planes], pa.binary())


def fit_text(name: str, column: Any) -> tuple[Feature, list[str]]:
    """Short texts by character: the alphabet and the longest length. Raises DataError where they are not short."""
    found = [t for t in texts(column, name, Rejects()) if t]
    if not found:
        raise DataError(f"column {name!r} has no text to learn from", field=name)
    longest = max(map(len, found))
    if longest > MOST_LENGTH:
        raise DataError(
            f"column {name!r} has a text of {longest} characters; gen makes short ones, up to {MOST_LENGTH} "
            "(for longer texts there is family: lm)",
            field=name,
        )
    counts: dict[str, int] = {}
    for text in found:
        for character in text:
            counts[character] = counts.get(character, 0) + 1
    ordered = sorted(counts, key=lambda c: (-counts[c], c))
    notes = []
    if len(ordered) > MOST_CHARACTERS:
        notes.append(f"has {len(ordered)} characters; the {MOST_CHARACTERS} most frequent are made, the others left out")
    state = {"alphabet": "".join(sorted(ordered[:MOST_CHARACTERS])), "length": longest}
    return Feature(name, "text", found[0], None, state), notes


def encode_texts(feature: Feature, column: Any) -> Array:
    """int64 (B, L): 0 after the end, then the alphabet from 1."""
    lookup = {character: i for i, character in enumerate(feature.state["alphabet"], 1)}
    found = texts(column, feature.name, Rejects())
    out = np.zeros((len(found), feature.state["length"]), np.int64)
    for row, text in enumerate(found):
        known = [lookup[c] for c in text or "" if c in lookup]
        out[row, : len(known)] = known
    return out


def decode_texts(feature: Feature, made: Array) -> pa.Array:
    """Texts of int64 (B, L), up to the first end."""
    alphabet = "\0" + feature.state["alphabet"]
    return pa.array(["".join(alphabet[c] for c in row).split("\0", 1)[0] for row in made.tolist()], pa.string())
