"""Columns → tensors. Fitted on training rows alone, saved as JSON, the same object at training and serving.

What each kind becomes:

* numeric: (x - mean) / std; missing and infinite values become the training median, and an
  indicator column tells of them where training had any. A constant column contributes zeros.
* boolean: -1, 1, and 0 where missing.
* categorical: an index, 0 missing, 1 unseen or rare, then the most frequent values.
* timestamp: scaled seconds, and sine and cosine of hour, weekday and month; zeros where missing.
* text: hashed n-grams (scikit-learn's HashingVectorizer, MurmurHash3), scaled to unit mean square.
* image: resized pixels, scaled by the training mean and deviation. vector: each place like a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from seekray.data import columns as cols
from seekray.data.columns import Columns
from seekray.data.kinds import Inferred
from seekray.data.options import Data, FeatureOptions
from seekray.data.values import json_value
from seekray.errors import DataError

Array = np.ndarray[Any, Any]
_TRUE = {"true": 1, "1": 1, "yes": 1, "t": 1, "y": 1, "false": 2, "0": 2, "no": 2, "f": 2, "n": 2}
_BOOLEAN = np.array([0.0, 1.0, -1.0, 0.0])  # missing, true, false, anything else


@dataclass(frozen=True)
class Feature:
    """One column: its kind, its options, what was fitted, and an example for documentation."""

    name: str
    kind: str
    state: Mapping[str, Any]
    example: Any = None

    @property
    def size(self) -> int | None:
        """Length of a vector, else None."""
        return len(self.state["mean"]) if self.kind == "vector" else None

    @cached_property
    def index(self) -> dict[str, int]:
        """Category key -> index."""
        return {key: i + 2 for i, key in enumerate(self.state["categories"])}


@dataclass(frozen=True)
class FeatureSchema:
    """All features and the target. `to_json` and `from_json` are exact inverses.

    classes: JSON values in the order of the outputs; for multilabel, the target columns.
    class_counts, rows, target_mean, target_std: of the training rows.
    """

    features: tuple[Feature, ...]
    task: str
    targets: tuple[str, ...] = ()
    classes: list[Any] | None = None
    class_counts: list[int] | None = None
    rows: int = 0
    target_mean: float = 0.0
    target_std: float = 1.0
    key: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {k: v for k, v in vars(self).items() if k in self.__dataclass_fields__}
        features = [{"name": f.name, "kind": f.kind, "state": f.state, "example": f.example} for f in self.features]
        return plain | {"features": features, "targets": list(self.targets), "key": list(self.key)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeatureSchema:
        """The schema of `to_json`."""
        features = tuple(Feature(**f) for f in value["features"])
        return cls(**{**value, "features": features, "targets": tuple(value["targets"]), "key": tuple(value["key"])})

    def _of(self, *kinds: str) -> list[Feature]:
        return [f for f in self.features if f.kind in kinds]

    @cached_property
    def _numeric(self) -> tuple[list[str], Array, Array, Array, Array]:
        """Names, means, inverse deviations, medians, and which have an indicator."""
        numeric = self._of("numeric")
        state = [f.state for f in numeric]
        inverse = [1 / s["std"] if s["std"] > 0 else 0.0 for s in state]
        flags = np.flatnonzero([s["missing"] for s in state])
        return (
            [f.name for f in numeric],
            np.array([s["mean"] for s in state]),
            np.array(inverse),
            np.array([s["median"] for s in state]),
            flags,
        )

    @cached_property
    def dense_size(self) -> int:
        """D of `inputs["dense"]`."""
        sizes = {"boolean": lambda s: 1, "timestamp": lambda s: 7, "text": lambda s: s["buckets"],
                 "image": lambda s: s["channels"] * s["size"][0] * s["size"][1], "vector": lambda s: len(s["mean"])}  # fmt: skip
        others = sum(sizes[f.kind](f.state) for f in self.features if f.kind in sizes)
        return len(self._numeric[0]) + len(self._numeric[4]) + int(others)

    @cached_property
    def cardinalities(self) -> tuple[int, ...]:
        """Indices of each column of `inputs["categorical"]`, those of missing and other included."""
        return tuple(len(f.state["categories"]) + 2 for f in self._of("categorical"))

    @property
    def num_outputs(self) -> int:
        """Classes, labels, or 1 for regression."""
        return len(self.classes) if self.classes is not None else 1

    def transform(self, columns: Columns) -> dict[str, Tensor]:
        """{"dense": float32 (B, D), "categorical": int64 (B, K)} of a table or a mapping of columns.

        Raises DataError for a missing column, or a value of the wrong type with its row.
        """
        rows = cols.rows_of(columns)
        parts: list[Array] = []
        names, mean, inverse, median, flags = self._numeric
        if names:
            matrix = cols.numeric_matrix(columns, names)
            absent = np.isnan(matrix)
            if absent.any():
                matrix = np.where(absent, median, matrix)
            parts.append(((matrix - mean) * inverse).astype(np.float32))
            if len(flags):
                parts.append(absent[:, flags].astype(np.float32))
        parts += [_DENSE[f.kind](f, cols.column(columns, f.name)) for f in self.features if f.kind in _DENSE]
        dense = np.concatenate(parts, axis=1) if len(parts) > 1 else (parts[0] if parts else np.zeros((rows, 0), np.float32))
        inputs = {"dense": torch.from_numpy(np.ascontiguousarray(dense))}
        if categorical := self._of("categorical"):
            indices = [cols.lookup(cols.column(columns, f.name), f.index, 0, 1) for f in categorical]
            inputs["categorical"] = torch.from_numpy(np.stack(indices, axis=1))
        return inputs

    def encode_targets(self, columns: Columns) -> Array:
        """int64 (B,) classes (-1: not a known class), float32 (B, 1) standardised, or float32 (B, T) labels."""
        if self.task == "classification":
            index = {str(cols.key_of(c)): i for i, c in enumerate(self.classes or [])}
            return cols.lookup(cols.column(columns, self.targets[0]), index, -1, -1)
        if self.task == "multilabel":
            on = [cols.lookup(cols.column(columns, t), _TRUE, 0, 3) for t in self.targets]
            return (np.stack(on, axis=1) == 1).astype(np.float32)
        values = cols.numeric_matrix(columns, list(self.targets))
        return ((values - self.target_mean) / self.target_std).astype(np.float32)

    def columns_from_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns of request rows; a key that a row lacks is missing there. Raises DataError for an unknown key."""
        names = self._names
        for number, row in enumerate(rows):
            if len(row) > len(names) or not row.keys() <= self._known:
                unknown = next(k for k in row if k not in self._known)
                raise DataError(f"row {number}: column {unknown!r} is not known{cols.nearest(unknown, names)}", field=unknown)
        return {name: [row.get(name) for row in rows] for name in names}

    @cached_property
    def _names(self) -> list[str]:
        return [f.name for f in self.features]

    @cached_property
    def _known(self) -> set[str]:
        return set(self._names)


def _boolean(feature: Feature, values: Any) -> Array:
    return _BOOLEAN[cols.lookup(values, _TRUE, 0, 3)].astype(np.float32)[:, None]


def _timestamp(feature: Feature, values: Any) -> Array:
    moments = cols.times(values, feature.name)
    absent = np.isnat(moments)
    moments = np.where(absent, np.datetime64(0, "s"), moments)
    seconds = moments.astype(np.int64)
    day = moments.astype("datetime64[D]").astype(np.int64)
    month = moments.astype("datetime64[M]").astype(np.int64) % 12
    turns = np.stack([seconds % 86400 / 86400, (day + 3) % 7 / 7, month / 12], axis=1) * 2 * np.pi
    std = feature.state["std"]
    scaled = (seconds - feature.state["mean"]) / std if std > 0 else np.zeros(len(seconds))
    dense = np.concatenate([scaled[:, None], np.sin(turns), np.cos(turns)], axis=1)
    dense[absent] = 0
    return dense.astype(np.float32)


def _vectorizer(state: Mapping[str, Any]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    analyzer = "char_wb" if state["analyzer"] == "char" else "word"
    return HashingVectorizer(n_features=state["buckets"], ngram_range=tuple(state["ngrams"]), analyzer=analyzer, dtype=np.float32)


def _text(feature: Feature, values: Any) -> Array:
    counts = _vectorizer(feature.state).transform(cols.texts(values, feature.name))  # rows of unit length
    return np.asarray(counts.toarray() * np.float32(feature.state["scale"]), dtype=np.float32)


def _image(feature: Feature, values: Any) -> Array:
    state = feature.state
    pixels = cols.images(values, feature.name, tuple(state["size"]), state["channels"])
    scaled = (pixels - np.float32(state["mean"])) * np.float32(1 / state["std"] if state["std"] > 0 else 0)
    return np.nan_to_num(scaled, nan=0.0)


def _vector(feature: Feature, values: Any) -> Array:
    mean, std = np.array(feature.state["mean"]), np.array(feature.state["std"])
    matrix = cols.vectors(values, feature.name, len(mean))
    inverse = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    return np.nan_to_num((matrix - mean) * inverse, nan=0.0).astype(np.float32)


_DENSE = {"boolean": _boolean, "timestamp": _timestamp, "text": _text, "image": _image, "vector": _vector}


def fit(table: pa.Table, data: Data, task: str, kinds: Sequence[Inferred], classes: list[Any] | None = None) -> FeatureSchema:
    """Fit on training rows. classes: of all rows, so that a class is known whatever the split."""
    features = tuple(_fit(k, table.column(k.name).combine_chunks(), (data.features or {}).get(k.name)) for k in kinds)
    schema = FeatureSchema(features, task, data.targets, classes, rows=table.num_rows, key=data.key)
    values = vars(schema)
    if task == "regression":
        target = cols.numeric_matrix(table, list(data.targets))
        std = float(np.nanstd(target))
        return FeatureSchema(**{**values, "target_mean": float(np.nanmean(target)), "target_std": std if std > 0 else 1.0})
    if task == "classification":
        counts = np.bincount(schema.encode_targets(table), minlength=len(classes or [])).tolist()
        return FeatureSchema(**{**values, "class_counts": counts})
    if task == "multilabel":
        counts = schema.encode_targets(table).sum(0).astype(int).tolist()
        return FeatureSchema(**{**values, "classes": list(data.targets), "class_counts": counts})
    return schema


def _fit(kind: Inferred, values: pa.Array, options: FeatureOptions | None) -> Feature:
    options = options or FeatureOptions()
    state = _FIT[kind.kind](kind.name, values, options)
    known = values.drop_null()
    return Feature(kind.name, kind.kind, state, json_value(known[0].as_py()) if len(known) else None)


def _fit_numeric(name: str, values: pa.Array, options: FeatureOptions) -> dict[str, Any]:
    numbers = cols.numeric_matrix({name: values}, [name])[:, 0]
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return {"mean": 0.0, "std": 0.0, "median": 0.0, "missing": False}
    filled = np.where(np.isnan(numbers), np.median(known), numbers)
    std = float(filled.std())
    # A constant column has a deviation of rounding errors only.
    std = 0.0 if std <= 1e-12 * max(1.0, float(np.abs(filled).max())) else std
    return {
        "mean": float(filled.mean()), "std": std,
        "median": float(np.median(known)), "missing": bool(len(known) < len(numbers)),
    }  # fmt: skip


def _fit_categorical(name: str, values: pa.Array, options: FeatureOptions) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for item in values.value_counts().to_pylist():
        if (key := cols.key_of(item["values"])) is not None:
            counts[key] = counts.get(key, 0) + item["counts"]
    ordered = sorted(counts, key=lambda k: (-counts[k], k))
    return {"categories": ordered[: options.max_categories], "distinct": len(ordered)}


def _fit_timestamp(name: str, values: pa.Array, options: FeatureOptions) -> dict[str, Any]:
    moments = cols.times(values, name)
    seconds = moments[~np.isnat(moments)].astype(np.int64)
    return {"mean": float(seconds.mean()), "std": float(seconds.std())} if len(seconds) else {"mean": 0.0, "std": 0.0}


def _fit_text(name: str, values: pa.Array, options: FeatureOptions) -> dict[str, Any]:
    state = {"buckets": options.buckets, "ngrams": list(options.ngrams), "analyzer": options.analyzer}
    counts = _vectorizer(state).transform(cols.texts(values.slice(0, 10_000), name))
    mean_square = float(counts.multiply(counts).mean()) if counts.shape[0] else 1.0
    return state | {"scale": min(1 / mean_square**0.5, 10.0) if mean_square > 0 else 1.0}


def _fit_image(name: str, values: pa.Array, options: FeatureOptions) -> dict[str, Any]:
    pixels = cols.images(values.slice(0, 2000), name, options.size, options.channels)
    mean, std = (float(np.nanmean(pixels)), float(np.nanstd(pixels))) if len(pixels) else (0.0, 1.0)
    return {"size": list(options.size), "channels": options.channels, "mean": mean, "std": std}


def _fit_vector(name: str, values: pa.Array, options: FeatureOptions) -> dict[str, Any]:
    first = next((v for v in values.to_pylist() if v is not None), [])
    matrix = cols.vectors(values, name, len(first))
    mean = np.nanmean(matrix, axis=0) if len(matrix) else np.zeros(len(first))
    std = np.nanstd(matrix, axis=0) if len(matrix) else np.zeros(len(first))
    return {"mean": np.nan_to_num(mean).tolist(), "std": np.nan_to_num(std).tolist()}


_FIT = {
    "numeric": _fit_numeric,
    "boolean": lambda name, values, options: {},
    "categorical": _fit_categorical,
    "timestamp": _fit_timestamp,
    "text": _fit_text,
    "image": _fit_image,
    "vector": _fit_vector,
}
