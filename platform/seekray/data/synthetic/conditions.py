"""Columns that a generator is given: how they occur together in the training rows, and what a caller asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from seekray.data.parse import Array
from seekray.data.synthetic import codec
from seekray.data.tables.features import Feature
from seekray.errors import UserError

BINS = 16
MOST_COMBINATIONS = 4096


class Conditions:
    """Given columns: drawn together as often as in the training rows, or as asked for.

    A combination is a category or one of 16 bins for each column; within a bin a score is drawn evenly.
    """

    def __init__(self, features: tuple[Feature, ...], joint: Mapping[str, Any]) -> None:
        self.features = features
        self.width = sum(codec.width(f) for f in features)
        self._combinations = np.array(joint.get("combinations", []), np.int64).reshape(-1, max(1, len(features)))
        counts = np.array(joint.get("counts", [1]), np.float64)
        self._share = counts / counts.sum()

    def fit(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The combinations of training rows, at most 4,096, and how many rows have each."""
        if not self.features:
            return {}
        bins = np.stack([_bins(f, codec.encode(f, columns[f.name])) for f in self.features], 1)
        found, counts = np.unique(bins, axis=0, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:MOST_COMBINATIONS]
        return {"combinations": found[most].tolist(), "counts": counts[most].tolist()}

    def encode(self, columns: Mapping[str, Any], rows: int) -> Array:
        """float32 (B, C) of training rows."""
        parts = [codec.encode(f, columns[f.name]) for f in self.features]
        return np.concatenate(parts, 1) if parts else np.zeros((rows, 0), np.float32)

    def decode(self, condition: Array) -> list[pa.Array]:
        """The columns of (B, C)."""
        return [codec.decode(f, part) for f, part in zip(self.features, self._parts(condition), strict=True)]

    def _parts(self, condition: Array) -> list[Array]:
        ends = np.cumsum([codec.width(f) for f in self.features])[:-1]
        return np.split(condition, ends, 1) if self.features else []

    def draw(self, uniforms: Array, where: Mapping[str, Any]) -> Array:
        """float32 (B, C). uniforms: (B, 1 + number of columns) in (0, 1). where: column -> value. Raises UserError."""
        if not self.features:
            return np.zeros((len(uniforms), 0), np.float32)
        fixed = {f.name: _asked(f, where[f.name]) for f in self.features if f.name in where}
        fits = np.ones(len(self._combinations), bool)
        for i, feature in enumerate(self.features):
            if feature.name in fixed:
                fits &= self._combinations[:, i] == _bins(feature, fixed[feature.name][None])[0]
        combinations, share = self._combinations, self._share
        if fits.any():  # else what is asked for never occurred together: each column on its own
            combinations, share = combinations[fits], share[fits] / share[fits].sum()
        chosen = combinations[np.minimum(np.searchsorted(np.cumsum(share), uniforms[:, 0]), len(share) - 1)]
        parts = []
        for i, feature in enumerate(self.features):
            if feature.name in fixed:
                parts.append(np.repeat(fixed[feature.name][None], len(uniforms), 0))
            else:
                parts.append(_within(feature, chosen[:, i], uniforms[:, 1 + i]))
        return np.concatenate(parts, 1).astype(np.float32)


def _bins(feature: Feature, encoded: Array) -> Array:
    """The place of the category, or the bin of the score; 16 for a missing number."""
    if feature.kind not in ("numeric", "timestamp"):
        found: Array = np.where(encoded.any(1), encoded.argmax(1), -1)
        return found
    place = torch.special.ndtr(torch.from_numpy(encoded[:, 0].astype(np.float64))).numpy()
    bins = np.minimum((place * BINS).astype(np.int64), BINS - 1)
    return np.where(encoded[:, 2] > 0, BINS, bins) if feature.state["missing"] else bins


def _within(feature: Feature, bins: Array, uniforms: Array) -> Array:
    if feature.kind not in ("numeric", "timestamp"):
        return codec.one_hot(bins, codec.width(feature))
    place = (np.minimum(bins, BINS - 1) + uniforms) / BINS
    edge = 0.5 / len(feature.state["quantiles"])
    score = torch.special.ndtri(torch.from_numpy(np.clip(place, edge, 1 - edge))).numpy()
    if not feature.state["missing"]:
        return np.asarray(score[:, None])
    lacking = bins == BINS
    return np.stack([np.where(lacking, 0, score), ~lacking, lacking], 1)


def _asked(feature: Feature, value: Any) -> Array:
    """The numbers (width,) of a value that was asked for. Raises UserError."""
    try:
        if feature.kind not in ("numeric", "timestamp"):
            return codec.one_hot(np.array([codec.place_of(feature, value)]), codec.width(feature)).reshape(-1)
        wanted = codec.one_value(feature, value)
        score = 0.0 if np.isnan(wanted) else codec.scores(np.array([wanted]), feature.state, feature.name)[0]
        flags = [float(not np.isnan(wanted)), float(np.isnan(wanted))]
        return np.array([score, *(flags if feature.state["missing"] else [])], np.float32)
    except ValueError as error:
        raise UserError(f"where: {feature.name} = {value!r} cannot be asked for: {error}", field=feature.name) from error
