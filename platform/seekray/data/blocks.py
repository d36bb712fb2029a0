"""Fitted blocks: all features of a kind become numbers in a few vectorised operations.

Each block knows its features' names and fitted state and turns columns into (B, width); what it
does to a row never depends on the other rows of the batch, so equal rows give equal tensors at
every door. Features of free form (text, image) are in `media.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, ClassVar, Protocol

import numpy as np

from seekray.data.columns import Columns
from seekray.data.options import FeatureOptions
from seekray.data.parse import (
    PLAIN_NUMBERS,
    Array,
    Column,
    Rejects,
    as_array,
    as_list,
    booleans,
    category,
    is_arrow,
    numbers,
    vectors,
)
from seekray.data.times import seconds, times

STRICT = Rejects()
# Beyond it squares overflow; such a value is as good as infinite.
LARGEST = 1e150
# In standard deviations; keeps float32 and the forward pass finite for any input.
CLIP = 1e6
MISSING, OTHER, FIRST = 0, 1, 2

State = dict[str, Any]


class Fitted(Protocol):
    """What a block needs of a feature."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> Mapping[str, Any]: ...


class Block(Protocol):
    """Dense features of one kind."""

    names: tuple[str, ...]
    width: int

    def transform(self, columns: Columns, rows: int) -> Array:
        """float32 (B, width). Raises DataError, KeyError where a column is not there."""


def fit_numbers(values: Array) -> tuple[State, list[str]]:
    """Mean, deviation and median of the finite training values (B,), and what is odd about them."""
    usable = np.abs(values) < LARGEST
    notes = []
    whole = bool(usable.all())
    if not whole and (infinite := int(np.count_nonzero(~usable & ~np.isnan(values)))):
        notes.append(f"has {infinite} infinite values, which are treated as missing")
    finite = values if whole else values[usable]
    if not len(finite):
        notes.append("no training row has a value; it contributes zeros")
        return {"mean": 0.0, "std": 0.0, "median": 0.0, "missing": False}, notes
    mean, std = float(np.mean(finite)), float(np.std(finite))
    if finite.min() == finite.max():
        std = 0.0
        if whole:
            notes.append(f"is constant ({finite[0]:g}) on the training rows; it contributes zeros")
    return {"mean": mean, "std": std, "median": float(np.median(finite)), "missing": not whole}, notes


def fit_boolean(values: Array) -> tuple[State, list[str]]:
    """0 and 1 as they are, .5 for missing."""
    missing = np.isnan(values)
    seen = values[~missing]
    notes = []
    if not len(seen) or (not missing.any() and seen.min() == seen.max()):
        notes.append("is constant on the training rows")
    return {"mean": 0.0, "std": 1.0, "median": 0.5, "missing": bool(missing.any() and len(seen))}, notes


def _inverse(std: float) -> float:
    inverse = 1.0 / std if std else 0.0
    return inverse if math.isfinite(inverse) else 0.0


class NumericBlock:
    """(x - mean) / std in float64, then float32; (B, n + indicators).

    Missing, infinite and absurd (over 1e150) values take the training median; a feature that had any
    in training has an indicator column, after all features. A constant feature has scale 0.
    """

    plain: ClassVar[frozenset[Any]] = PLAIN_NUMBERS

    def __init__(self, features: Sequence[Fitted]) -> None:
        self.names = tuple(f.name for f in features)
        self.mean = np.array([f.state["mean"] for f in features])
        self.inverse = np.array([_inverse(f.state["std"]) for f in features])
        self.fill = np.array([f.state["median"] for f in features])
        self.indicators = np.flatnonzero([f.state["missing"] for f in features])
        self._flags = frozenset(f.name for f in features if f.state.get("flags"))
        self.width = len(features) + len(self.indicators)
        self._get = itemgetter(*self.names) if len(features) > 1 else None

    def transform(self, columns: Columns, rows: int) -> Array:
        matrix = self._matrix(columns, rows)
        usable = np.abs(matrix) < LARGEST
        whole = usable.all()
        if not whole:
            matrix = np.where(usable, matrix, self.fill)
        scaled = (matrix - self.mean) * self.inverse
        dense: Array = np.clip(scaled, -CLIP, CLIP, out=scaled).astype(np.float32, order="C")
        if not len(self.indicators):
            return dense
        flags = ~usable[:, self.indicators]
        return np.concatenate([dense, flags.astype(np.float32)], axis=1)

    def _matrix(self, columns: Columns, rows: int) -> Array:
        """float64 (B, n), a view of (n, B) so that whole columns are copied."""
        found = self._get(columns) if self._get else (columns[self.names[0]],)
        if set(map(type, found)) == {list}:
            flat = list(chain.from_iterable(found))
            # Equal lengths are checked by the schema; one pass over the types replaces one a value.
            if self.plain.issuperset(map(type, flat)):
                try:
                    return np.array(flat, dtype=np.float64).reshape(len(found), rows).T
                except OverflowError:
                    pass
        matrix = np.empty((len(found), rows))
        for row, name, column in zip(matrix, self.names, found, strict=True):
            row[:] = self._parsed(column, name)
        return matrix.T

    def _parsed(self, column: Column, name: str) -> Array:
        return numbers(column, name, STRICT, flags=name in self._flags)


class BooleanBlock(NumericBlock):
    """0 and 1, .5 for missing, with the indicators of `NumericBlock`."""

    plain = frozenset((bool, type(None)))

    def _parsed(self, column: Column, name: str) -> Array:
        return booleans(column, name, STRICT)


def _cycle(steps: int) -> Array:
    """Sine and cosine of each step, (steps, 2); a table gives the same bits to every batch."""
    angles = [2 * math.pi * i / steps for i in range(steps)]
    return np.array([[math.sin(a), math.cos(a)] for a in angles], dtype=np.float32)


class TimestampBlock:
    """Scaled seconds since 1970, and time of day, day of week and month on circles; (B, 7 or 8 each).

    A missing time takes the training median on the line and the centre of each circle; the eighth
    column, where training had missing ones, says so. Without `trend` the line is left out.
    """

    def __init__(self, features: Sequence[Fitted]) -> None:
        self.names = tuple(f.name for f in features)
        self._line = NumericBlock([f for f in features if f.state.get("trend", True)])
        self.width = self._line.width + 6 * len(features)
        self._tables = (_cycle(1440), _cycle(7), _cycle(12))

    def transform(self, columns: Columns, rows: int) -> Array:
        parsed = {name: times(columns[name], name, STRICT) for name in self.names}
        named = {k: seconds(parsed[k]) for k in self._line.names}
        line = self._line.transform(named, rows) if named else np.zeros((rows, 0), dtype=np.float32)
        return np.concatenate([line, *(self._circles(v) for v in parsed.values())], axis=1)

    def _circles(self, values: Array) -> Array:
        known = ~np.isnat(values)
        safe = np.where(known, values, np.datetime64(0, "us"))
        days = safe.astype("M8[D]")
        minute = (safe - days).astype("m8[m]").astype(np.int64)
        weekday = (days.astype(np.int64) + 3) % 7
        month = safe.astype("M8[M]").astype(np.int64) % 12
        parts = [table[index] for table, index in zip(self._tables, (minute, weekday, month), strict=True)]
        return np.concatenate(parts, axis=1) * known[:, None].astype(np.float32)


class VectorBlock:
    """Lists of numbers of a fixed length, each element standardised; (B, sum of lengths).

    Missing lists and elements take the training mean, which is 0 after scaling.
    """

    def __init__(self, features: Sequence[Fitted]) -> None:
        self.names = tuple(f.name for f in features)
        self._means = [np.array(f.state["mean"]) for f in features]
        self._inverses = [np.array([_inverse(s) for s in f.state["std"]]) for f in features]
        self.width = sum(len(m) for m in self._means)

    def transform(self, columns: Columns, rows: int) -> Array:
        parts = []
        for name, mean, inverse in zip(self.names, self._means, self._inverses, strict=True):
            values = vectors(columns[name], len(mean), name, STRICT)
            usable = np.abs(values) < LARGEST
            scaled = (np.where(usable, values, mean) - mean) * inverse
            parts.append(np.clip(scaled, -CLIP, CLIP, out=scaled).astype(np.float32))
        return np.concatenate(parts, axis=1)


def fit_vector(values: Array) -> tuple[State, list[str]]:
    """Mean and deviation of each element of (B, size), missing and infinite ones left out."""
    usable = np.abs(values) < LARGEST
    count = np.maximum(usable.sum(0), 1)
    safe = np.where(usable, values, 0.0)
    mean = safe.sum(0) / count
    std = np.sqrt((np.where(usable, safe - mean, 0.0) ** 2).sum(0) / count)
    constant = np.where(usable, values, np.inf).min(0) >= np.where(usable, values, -np.inf).max(0)
    std[constant] = 0.0
    return {"mean": mean.tolist(), "std": std.tolist()}, (["is constant"] if constant.all() else [])


def encode(column: Column, name: str, lookup: Mapping[str | None, int], other: int, rejects: Rejects) -> Array:
    """int64 (B,): the code of each value's `category`, `other` for those not in `lookup`."""
    if is_arrow(column):
        array = as_array(column).dictionary_encode()
        values = array.dictionary.to_pylist()
        codes = _codes([*values, None], name, lookup, other, rejects)
        index = array.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
        found: Array = codes[index]
        return found
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf" and column.ndim == 1 and len(column) > 64:
        unique, index = np.unique(column, return_inverse=True)
        return _codes(unique.tolist(), name, lookup, other, rejects)[index]
    return _codes(as_list(column), name, lookup, other, rejects)


def _codes(values: Sequence[Any], name: str, lookup: Mapping[str | None, int], other: int, rejects: Rejects) -> Array:
    out = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        try:
            out[row] = lookup.get(category(value), other)
        except TypeError:
            rejects.add(name, row, value, "expected a text, a number or true/false")
            out[row] = other
    return out


def count_categories(column: Column) -> list[tuple[Any, int]]:
    """Values with their counts, most frequent first, ties by value; missing ones left out."""
    if is_arrow(column):
        array = as_array(column).dictionary_encode()
        values = array.dictionary.to_pylist()
        index = array.indices.drop_null().to_numpy(zero_copy_only=False)
        counts = np.bincount(index, minlength=len(values)).tolist()
    else:
        tally: dict[Any, int] = {}
        for value in as_list(column):
            key = (type(value) is bool, value)
            tally[key] = tally.get(key, 0) + 1
        values, counts = [v for _, v in tally], list(tally.values())
    found = [(v, n) for v, n in zip(values, counts, strict=True) if n and category(v) is not None]
    try:
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))
    except TypeError:
        return sorted(found, key=lambda pair: (-pair[1], category(pair[0]) or ""))


def fit_categories(column: Column, options: FeatureOptions) -> tuple[State, list[str]]:
    """The `max_categories` most frequent categories of the training rows."""
    found = count_categories(column)
    notes = []
    if len(found) > options.max_categories:
        notes.append(
            f"has {len(found):,} categories; the {options.max_categories:,} most frequent are kept, the rest is one "
            "(data.features: max_categories)"
        )
    if len(found) < 2:
        notes.append("is constant on the training rows" if found else "no training row has a value")
    return {"categories": [category(v) for v, _ in found[: options.max_categories]]}, notes


class CategoricalBlock:
    """int64 (B, K): 0 missing, 1 unseen in training or beyond `max_categories`, then by frequency."""

    def __init__(self, features: Sequence[Fitted]) -> None:
        self.names = tuple(f.name for f in features)
        self._lookups: list[dict[str | None, int]] = [
            {None: MISSING} | {c: i for i, c in enumerate(f.state["categories"], FIRST)} for f in features
        ]
        self.cardinalities = tuple(FIRST + len(f.state["categories"]) for f in features)

    def transform(self, columns: Columns, rows: int) -> Array:
        """Raises DataError for a value that is no category, KeyError where a column is not there."""
        out = np.empty((rows, len(self.names)), dtype=np.int64)
        for i, (name, lookup) in enumerate(zip(self.names, self._lookups, strict=True)):
            out[:, i] = encode(columns[name], name, lookup, OTHER, STRICT)
        return out
