"""Fitting a schema on training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data.blocks import fit_boolean, fit_categories, fit_numbers, fit_vector
from seekray.data.columns import Columns, as_columns
from seekray.data.kinds import infer_kinds
from seekray.data.media import example_image, fit_image, fit_text, images, texts
from seekray.data.options import Data, FeatureOptions
from seekray.data.parse import Array, Column, Rejects, as_array, booleans, is_arrow, is_missing, numbers, vectors
from seekray.data.sequences.ragged import fit_characters, fit_sequence, sequences
from seekray.data.sequences.sound import example_sound, fit_sound, settings_of, sounds
from seekray.data.tables.features import Feature, FeatureSchema
from seekray.data.tables.targets import fit_targets
from seekray.data.times import seconds, times
from seekray.errors import DataError


def typed(column: Column, name: str, kind: str, options: FeatureOptions, rejects: Rejects) -> Any:
    """A column read once as what its kind needs, so that fitting and transforming need not read it again.

    numeric, boolean: float64 (N,). timestamp: datetime64. vector: float64 (N, size). image: uint8
    (N, H * W * C). sequence, audio: Ragged. categorical, text, characters: the Arrow column. Values that cannot
    be read go to `rejects`.
    """
    if kind == "numeric":
        return numbers(column, name, rejects)
    if kind == "boolean":
        return booleans(column, name, rejects)
    if kind == "timestamp":
        return times(column, name, rejects)
    if kind == "vector":
        return vectors(column, None, name, rejects)
    if kind == "image":
        return images(column, name, options.size, options.channels, rejects)
    if kind == "sequence":
        return sequences(column, None, name, rejects)
    if kind in ("audio", "audio_frames"):
        return sounds(column, name, settings_of(options), rejects)
    if kind in ("text", "characters"):
        texts(column, name, rejects)
    return as_array(column) if is_arrow(column) else column


def nothing_to_learn_from() -> DataError:
    """The error where no column is a feature."""
    return DataError("no column is left to learn from; see data.features, data.exclude and data.key", field="data.features")


def fit_columns(
    columns: Columns, kinds: Mapping[str, str], data: Data, task: str, examples: Columns | None = None
) -> tuple[FeatureSchema, list[str]]:
    """A schema of training rows, whose feature columns `typed` may have read, and warnings.

    examples: the columns as they came, for the features' example values. Raises DataError.
    """
    warnings: list[str] = []
    constant: list[str] = []
    features = []
    for name, kind in kinds.items():
        options = (data.features or {}).get(name) or FeatureOptions()
        feature, notes = _fit_feature(name, kind, columns[name], (examples or columns)[name], options)
        constant += [name for note in notes if note.startswith("is constant")]
        warnings += [f"feature {name!r} {note}" for note in notes]
        features.append(feature)
    if not features:
        raise nothing_to_learn_from()
    targets, notes = fit_targets(task, data.targets, columns)
    schema = FeatureSchema(
        features=tuple(features),
        task=task,
        targets=data.targets,
        key=data.key,
        classes=targets.classes,
        class_counts=targets.class_counts,
        target_mean=targets.target_mean,
        target_std=targets.target_std,
        horizon=targets.horizon,
        rows=len(columns[features[0].name]),
    )
    return schema, _together(warnings, constant) + notes


def _together(warnings: list[str], constant: list[str]) -> list[str]:
    """One line for all constant columns where there are several."""
    if len(constant) < 2:
        return warnings
    shown = ", ".join(constant[:5]) + (f" and {len(constant) - 5} more" if len(constant) > 5 else "")
    others = [w for w in warnings if " is constant" not in w]
    return [*others, f"{len(constant)} features are constant on the training rows and contribute nothing: {shown}"]


def fit(table: pa.Table, data: Data, task: str) -> FeatureSchema:
    """The schema of a table of training rows. Raises DataError for any value that cannot be read."""
    kinds = {guess.name: guess.kind for guess in infer_kinds(table, data)}
    given = as_columns(table)
    read: dict[str, Any] = {name: given[name] for name in data.targets}
    for name, kind in kinds.items():
        read[name] = typed(given[name], name, kind, (data.features or {}).get(name) or FeatureOptions(), Rejects())
    return fit_columns(read, kinds, data, task, given)[0]


def _fit_feature(name: str, kind: str, column: Any, raw: Any, options: FeatureOptions) -> tuple[Feature, list[str]]:
    state: dict[str, Any]
    example = _example(raw)
    size: int | None = None
    if kind == "numeric":
        values = numbers(column, name, Rejects())
        state, notes = fit_numbers(values)
        state |= {"flags": True} if is_arrow(raw) and pa.types.is_boolean(as_array(raw).type) else {}
        example = _number_example(values, example)
    elif kind == "boolean":
        values = booleans(column, name, Rejects())
        state, notes = fit_boolean(values)
        example = bool(values[~np.isnan(values)][:1].any())
    elif kind == "timestamp":
        state, notes = fit_numbers(seconds(times(column, name, Rejects())))
        state |= {} if options.trend else {"trend": False}
    elif kind == "vector":
        values = vectors(column, None, name, Rejects())
        state, notes = fit_vector(values)
        size = values.shape[1]
        known = values[np.isfinite(values).all(1)][:1]
        example = known[0].tolist() if len(known) else [0.0] * size
    elif kind == "sequence":
        ragged = sequences(column, None, name, Rejects())
        state, notes = fit_sequence(ragged)
        size = ragged.values.shape[1]
    elif kind in ("audio", "audio_frames"):
        found = sounds(column, name, settings_of(options), Rejects())
        state, notes = fit_sound(found, options, sequence=kind == "audio_frames")
        size = options.mels if kind == "audio_frames" else None
        example = example_sound(raw, options.sample_rate)
    elif kind == "characters":
        state, notes = fit_characters(texts(column, name, Rejects()), options)
        example = example if isinstance(example, str) else "a text"
    elif kind == "text":
        state, notes = fit_text(texts(column, name, Rejects()), options)
        example = example if isinstance(example, str) else "a text"
    elif kind == "image":
        pixels = images(column, name, options.size, options.channels, Rejects())
        state, notes = fit_image(pixels, options)
        example = example_image(pixels[0], options)
    else:
        state, notes = fit_categories(column, options)
    return Feature(name, kind, example, size, state), notes


def _example(column: Any) -> Any:
    """The first value that is not missing, as JSON."""
    for row in range(min(len(column), 1000)):
        value = column[row].as_py() if is_arrow(column) else column[row]
        if isinstance(value, np.generic):
            value = value.item()
        if is_missing(value) or value == "" or isinstance(value, bytes):
            continue
        return value.isoformat() if hasattr(value, "isoformat") else value
    return None


def _number_example(values: Array, example: Any) -> Any:
    if isinstance(example, int) and not isinstance(example, bool):
        return example
    finite = values[np.isfinite(values)]
    return float(finite[0]) if len(finite) else None
