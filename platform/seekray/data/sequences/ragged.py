"""Sequences: ragged columns of numbers (T, C) or of characters, as flat values with offsets.

A row's steps lie one after another; `offsets` (B+1,) says where each row begins. Only a batch is padded,
and nothing that is computed from a row depends on what else is in its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from seekray.data.blocks import CLIP, LARGEST, STRICT, Fitted, State, fit_vector
from seekray.data.columns import Columns
from seekray.data.media import texts
from seekray.data.options import FeatureOptions
from seekray.data.parse import Array, Rejects, as_array, as_list, is_arrow, is_list, is_missing, numbers, shown
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

RAGGED = ("sequence", "symbols")
STEPS = ("sequence", "audio_frames", "characters")  # kinds of features that have steps
UNKNOWN = 0  # the index of a character that training did not have


@dataclass(frozen=True)
class Ragged:
    """values: (S, …), the steps of all rows; offsets: int64 (B+1,). `ragged[rows]` are those rows."""

    values: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        """Steps of each row, (B,)."""
        found: Array = np.diff(self.offsets)
        return found

    def __getitem__(self, rows: Array) -> Ragged:
        lengths = self.lengths[rows]
        offsets = ends(lengths)
        steps = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return Ragged(self.values[steps], offsets)


def ends(lengths: Array) -> Array:
    """Offsets (B+1,) of lengths (B,)."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def sequences(column: Any, channels: int | None, name: str, rejects: Rejects) -> Ragged:
    """float64 (S, C) of lists of T numbers, or of T lists of C numbers; a missing list has no steps.

    `channels` None takes that of the first step. A row that is no such list goes to `rejects` and has no steps.
    """
    if isinstance(column, Ragged):
        return column
    if is_arrow(column) and (found := _from_arrow(as_array(column), channels)) is not None:
        return found
    rows = as_list(column) if not isinstance(column, np.ndarray) else list(column)
    read: list[Array] = []
    for row, value in enumerate(rows):
        try:
            matrix = _matrix(value)
            if len(matrix):
                channels = matrix.shape[1] if channels is None else channels
                if matrix.shape[1] != channels:
                    raise ValueError(f"{matrix.shape[1]} numbers a step")
        except ValueError as error:
            form = "numbers" if channels == 1 else f"lists of {channels or 'C'} numbers"
            rejects.add(name, row, value, f"expected a list of steps ({form}); {error}")
            matrix = np.zeros((0, channels or 1))
        read.append(matrix)
    offsets = ends(np.array([len(m) for m in read], dtype=np.int64))
    parts = [m for m in read if len(m)]
    return Ragged(np.concatenate(parts) if parts else np.zeros((0, channels or 1)), offsets)


def _from_arrow(array: Any, channels: int | None) -> Ragged | None:
    """Lists of numbers, or of lists of equal length, without a look at each; None where there is anything odd."""
    if not is_list(array.type):
        return None
    offsets = ends(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False))
    values, width = array.flatten(), 1
    if is_list(values.type):
        if values.null_count or not len(values):
            return None
        widths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        values, width = values.flatten(), int(widths[0])
        if not width or (widths != width).any():
            return None
    if channels not in (None, width) or is_list(values.type):
        return None
    strict = Rejects()
    try:
        return Ragged(numbers(values, "", strict).reshape(-1, width), offsets)
    except DataError:
        return None


def _matrix(value: Any) -> Array:
    """float64 (T, C) of one row's list. Raises ValueError."""
    if is_missing(value):
        return np.zeros((0, 1))
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError("no list given")
    steps = list(value)
    nested = [isinstance(step, (list, tuple, np.ndarray)) for step in steps]
    if any(nested) and not all(nested):
        raise ValueError("some steps are lists, some are not")
    flat = [x for step in steps for x in step] if nested and nested[0] else steps
    width = len(steps[0]) if nested and nested[0] else 1
    if nested and nested[0] and (not width or any(len(step) != width for step in steps)):
        raise ValueError("the steps have different numbers of values")
    inner = Rejects(strict=False)
    read = numbers(flat, "", inner)
    if inner.found:
        raise ValueError(f"{shown(inner.found[0]['value'])} is no number")
    return read.reshape(-1, width)


def symbols(column: Any, name: str, rejects: Rejects, vocabularies: Sequence[Mapping[str, int]]) -> Ragged:
    """int64 (S, n) indices of the characters of texts and of the 2- to n-grams that end with each; a missing text has no steps.

    vocabularies: those of the characters, of the 2-grams and so on.
    """
    found = [t or "" for t in texts(column, name, rejects)]
    lengths = np.array([len(t) for t in found], dtype=np.int64)
    flat = np.empty((int(lengths.sum()), len(vocabularies)), dtype=np.int64)
    for number, vocabulary in enumerate(vocabularies):
        grams = (g for t in found for g in _ending(t, number + 1))
        flat[:, number] = np.fromiter((vocabulary.get(g, UNKNOWN) for g in grams), dtype=np.int64, count=len(flat))
    return Ragged(flat, ends(lengths))


def _ending(text: str, size: int) -> Iterator[str]:
    """The n-gram that ends with each character; a space stands for what is before the text."""
    edged = " " * (size - 1) + text
    return (edged[i : i + size] for i in range(len(text)))


def check_even(lengths: Mapping[str, Array], rejects: Rejects, *, labels: str | None = None) -> Array:
    """Steps of each row, (B,), at least one, where its lists (name -> their lengths (B,)) go step by step together.

    A missing list has no steps and goes with any. labels: the list that has one entry for each step of the others.
    The rows of which a list is of another length go to `rejects`.
    """
    steps: Array = np.maximum(np.stack([own for name, own in lengths.items() if name != labels]).max(0), 1)
    for name, own in lengths.items():
        for row in np.flatnonzero((own != steps) & (own != 0)):
            what = "one for each step" if name == labels else "as many as another list of the row has"
            rejects.add(name, int(row), int(own[row]), f"expected {steps[row]} values, {what}")
    return steps


def fit_sequence(ragged: Ragged) -> tuple[State, list[str]]:
    """Mean and deviation of each channel over the steps of the training rows, and whether some miss a value."""
    if not len(ragged.values):
        raise DataError("no training row has a step")
    state, notes = fit_vector(ragged.values)
    state["missing"] = (~(np.abs(ragged.values) < LARGEST)).any(0).tolist()
    return state, notes


def fit_characters(values: Sequence[str | None], options: FeatureOptions) -> tuple[State, list[str]]:
    """The most frequent characters of the training rows, in the order of their frequency, and n-grams likewise."""
    shortest, longest = options.ngrams or (1, 1)
    if shortest != 1:
        raise DataError(
            f"data.features.ngrams: [{shortest}, {longest}] given; characters are read one by one, so it begins with 1"
        )
    kept = []
    for size in range(1, longest + 1):
        counts = Counter(g for text in values for g in _ending(text or "", size))
        kept.append(sorted(counts, key=lambda g: (-counts[g], g))[: options.max_categories])
    state: State = {"characters": kept[0]} | ({"ngrams": kept[1:]} if longest > 1 else {})
    return state, ([] if kept[0] else ["no training row has a character"])


class SequenceBlock:
    """All sequences and characters of a row side by side, step by step.

    Each channel is standardised in float64; a missing value is 0, the mean, with an indicator channel where training
    had missing ones. A row has as many steps as its longest list; a missing list is missing values, and a row
    without any is one step of them. Lists of different lengths in one row are refused.
    """

    def __init__(self, numeric: Sequence[Fitted], characters: Sequence[Fitted]) -> None:
        self.names = tuple(f.name for f in (*numeric, *characters))
        self._numeric = [(f.name, *_scale(f.state)) for f in numeric]
        self._lookups = [
            (f.name, [{g: i for i, g in enumerate(kept, 1)} for kept in (f.state["characters"], *f.state.get("ngrams", ()))])
            for f in characters
        ]
        self.channels = sum(len(mean) + len(flags) for _, mean, _, flags in self._numeric)
        self.vocabulary = tuple(len(lookup) + 1 for _, lookups in self._lookups for lookup in lookups)

    def transform(self, columns: Columns, rows: int) -> dict[str, Array]:
        """`sequence` float32 (S, C), `symbols` int64 (S, K) and `offsets` (B+1,). Raises DataError, KeyError."""
        read = [sequences(columns[name], len(mean), name, STRICT) for name, mean, _, _ in self._numeric]
        read += [symbols(columns[name], name, STRICT, lookups) for name, lookups in self._lookups]
        offsets = ends(check_even({name: r.lengths for name, r in zip(self.names, read, strict=True)}, STRICT))
        numeric, characters = [], []
        for ragged, (_, mean, inverse, flags) in zip(read, self._numeric, strict=False):
            values = _spread(ragged, offsets, np.nan)
            usable = np.abs(values) < LARGEST
            scaled = (np.where(usable, values, mean) - mean) * inverse
            numeric.append(np.clip(scaled, -CLIP, CLIP, out=scaled).astype(np.float32))
            numeric.append((~usable[:, flags]).astype(np.float32))
        for ragged in read[len(self._numeric) :]:
            characters.append(_spread(ragged, offsets, UNKNOWN))
        out: dict[str, Array] = {"offsets": offsets}
        if numeric:
            out["sequence"] = np.concatenate(numeric, axis=1)
        if characters:
            out["symbols"] = np.concatenate(characters, axis=1)
        return out


def _scale(state: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    std = np.array(state["std"])
    return np.array(state["mean"]), np.divide(1.0, std, out=np.zeros_like(std), where=std > 0), np.flatnonzero(state["missing"])


def _spread(ragged: Ragged, offsets: Array, filler: float) -> Array:
    """The steps in a layout whose rows are as long or longer; rows without steps get `filler`."""
    if np.array_equal(ragged.offsets, offsets):
        return ragged.values
    out = np.full((int(offsets[-1]), *ragged.values.shape[1:]), filler, dtype=ragged.values.dtype)
    out[np.repeat(ragged.lengths > 0, np.diff(offsets))] = ragged.values
    return out


def pad(flat: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Rows of `flat` (S, …) beginning at `starts` (B,), filled with zeros to the longest: (B, T, …)."""
    import torch

    steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
    inside = steps < lengths[:, None]  # (B, T)
    if bool(inside.all()):
        return flat[starts[:, None] + steps]
    out = flat.new_zeros((*inside.shape, *flat.shape[1:]))
    out[inside] = flat[(starts[:, None] + steps)[inside]]
    return out


def joined(parts: Sequence[Tensor], filler: float = 0.0) -> Tensor:
    """Tensors one under another; where they differ in length (dimension 1) the shorter are filled up."""
    import torch

    most = max((p.shape[1] for p in parts if p.ndim > 1), default=0)
    if all(p.ndim < 2 or p.shape[1] == most for p in parts):
        return torch.cat(list(parts))
    out = []
    for part in parts:
        grown = part.new_full((len(part), most, *part.shape[2:]), filler)
        grown[:, : part.shape[1]] = part
        out.append(grown)
    return torch.cat(out)
