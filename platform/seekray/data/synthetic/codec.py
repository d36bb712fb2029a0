"""Columns to numbers that a generator can make, and back: what it decodes is always a value that the column can have.

Fitted on training rows; the state is JSON. A number or time becomes a normal score: its place among quantiles of
the training values, on the scale of the standard normal distribution. However many modes a column has, its score
has one; values that repeat (zeros, say) are spread over their share of the quantiles, so that they come back in
their proportion; and what is decoded lies in the training values' range, with their decimals. A category is one
of the training rows' own. A missing value is a choice of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from seekray.data.blocks import LARGEST, count_categories
from seekray.data.options import FeatureOptions
from seekray.data.parse import Array, Rejects, as_array, booleans, category, is_arrow, numbers
from seekray.data.tables.features import Feature
from seekray.data.times import seconds, times

QUANTILES = 256
MOST_DECIMALS = 9
# Seconds: what a column of times is rounded to is the largest that all its values are multiples of.
STEPS = (86400.0, 3600.0, 60.0, 1.0, 1e-3, 1e-6)
KINDS = ("numeric", "boolean", "timestamp", "categorical")
Span = tuple[str, int]  # "real" or "choice", and its width


def spans(feature: Feature) -> list[Span]:
    """What a column takes: a score and, where training rows lacked values, a choice of having one; or a choice."""
    if feature.kind in ("numeric", "timestamp"):
        return [("real", 1), ("choice", 2)] if feature.state["missing"] else [("real", 1)]
    return [("choice", len(feature.state["values"]) + feature.state["missing"])]


def width(feature: Feature) -> int:
    """Numbers of a column."""
    return sum(size for _, size in spans(feature))


def fit(name: str, kind: str, column: Any, kind_of_file: Any, options: FeatureOptions) -> tuple[Feature, list[str]]:
    """The fitted column and what is odd about it. column: as `fitting.typed` reads it; kind_of_file: its Arrow type."""
    if kind in ("numeric", "timestamp"):
        values = _seconds_or_numbers(kind, column, name)
        usable = values[np.abs(values) < LARGEST]
        notes = [] if len(usable) and usable.min() < usable.max() else ["is constant on the training rows"]
        if not len(usable):
            usable = np.zeros(1)
        state = {"quantiles": _quantiles(usable), "missing": len(usable) < len(values), "type": str(kind_of_file)}
        state |= {"step": _step(usable)} if kind == "timestamp" else _resolution(usable, kind_of_file)
        return Feature(name, kind, usable[0].item() if kind == "numeric" else None, None, state), notes
    if kind == "boolean":
        found = booleans(column, name, Rejects())
        state = {"values": [False, True], "missing": bool(np.isnan(found).any()), "type": "bool"}
        return Feature(name, kind, True, None, state), []
    counted = count_categories(column)
    kept = [category(value) for value, _ in counted[: options.max_categories]]
    notes = []
    if len(counted) > len(kept):
        notes.append(f"has {len(counted):,} categories; only the {len(kept):,} most frequent are made (max_categories)")
    missing = sum(n for _, n in counted) < len(column)
    state = {"values": kept or [""], "missing": missing, "type": str(kind_of_file)}
    return Feature(name, kind, counted[0][0] if counted else None, None, state), notes


def _seconds_or_numbers(kind: str, column: Any, name: str) -> Array:
    return seconds(times(column, name, Rejects())) if kind == "timestamp" else numbers(column, name, Rejects())


def _quantiles(values: Array) -> list[float]:
    """At most 256, and of few rows half as many as rows: a model need not hold its training values."""
    count = max(2, min(QUANTILES, len(values) // 2))
    found: list[float] = np.quantile(values, np.linspace(0, 1, count)).tolist()
    return found


def _decimals(values: Array, kind: Any) -> int | None:
    """Digits after the point that all values have at most; None where they are all used."""
    if pa.types.is_integer(kind):
        return 0
    few = values[:10_000]
    for digits in range(MOST_DECIMALS):
        if (np.round(few, digits) == few).all():
            return digits
    return None


def _resolution(values: Array, kind: Any) -> dict[str, int | None]:
    """Decimals, and the unit in the last of them that all values are multiples of (weights in steps of 25, say)."""
    digits = _decimals(values, kind)
    scaled = np.abs(np.round(values * 10.0 ** (digits or 0)))
    if digits is None or scaled.max() >= 2**53:
        return {"decimals": digits, "unit": 1}
    return {"decimals": digits, "unit": int(np.gcd.reduce(scaled.astype(np.int64))) or 1}


def _step(values: Array) -> float:
    return next((s for s in STEPS if np.allclose(np.round(values / s) * s, values, rtol=0, atol=s * 1e-3)), 1e-6)


def _edge(state: Mapping[str, Any]) -> float:
    """What the ends of the quantiles are kept from 0 and 1, so that their scores are finite."""
    return 0.5 / len(state["quantiles"])


def scores(values: Array, state: Mapping[str, Any], name: str) -> Array:
    """Normal scores (B,) of usable values; one that repeats lies anywhere in its share, the same for the same place."""
    knots = np.array(state["quantiles"])
    last_knot = len(knots) - 1
    unique, first, count = np.unique(knots, return_index=True, return_counts=True)
    last = first + count - 1
    at = np.clip(np.searchsorted(unique, values, "right") - 1, 0, len(unique) - 1)
    after = np.minimum(at + 1, len(unique) - 1)
    gap = unique[after] - unique[at]
    share = np.clip(np.divide(values - unique[at], gap, out=np.zeros_like(values), where=gap > 0), 0, 1)
    spread = np.random.default_rng(sum(name.encode())).random(len(values))
    inside = first[at] + (last[at] - first[at]) * spread
    place = np.where(values == unique[at], inside, last[at] + share * (first[after] - last[at])) / max(1, last_knot)
    edge = _edge(state)
    found: Array = torch.special.ndtri(torch.from_numpy(edge + np.clip(place, 0, 1) * (1 - 2 * edge))).numpy()
    return found


def encode(feature: Feature, column: Any) -> Array:
    """float32 (B, width) of training rows."""
    state, name = feature.state, feature.name
    if feature.kind in ("numeric", "timestamp"):
        values = _seconds_or_numbers(feature.kind, column, name)
        usable = np.abs(values) < LARGEST
        score = np.where(usable, scores(np.where(usable, values, 0.0), state, name), 0.0)
        parts = [score[:, None]] + ([np.stack([usable, ~usable], 1)] if state["missing"] else [])
        return np.concatenate(parts, 1).astype(np.float32)
    return one_hot(codes(feature, column), width(feature))


def codes(feature: Feature, column: Any) -> Array:
    """int64 (B,) places of categories in `values`; the last for missing, -1 for others."""
    if feature.kind == "boolean":
        flags = booleans(column, feature.name, Rejects())
        return np.where(np.isnan(flags), 2 if feature.state["missing"] else -1, flags == 1).astype(np.int64)
    values = feature.state["values"]
    lookup: dict[str | None, int] = {value: i for i, value in enumerate(values)}
    lookup[None] = len(values) if feature.state["missing"] else -1
    given = as_array(column).to_pylist() if is_arrow(column) else list(column)
    return np.array([lookup.get(category(v), -1) for v in given], dtype=np.int64)


def one_hot(index: Array, size: int) -> Array:
    """float32 (B, size); zeros for -1."""
    out = np.zeros((len(index), size), np.float32)
    known = index >= 0
    out[known, index[known]] = 1
    return out


def decode(feature: Feature, made: Array) -> pa.Array:
    """A column of the training column's own type from (B, width): scores and choices with one 1 a row."""
    state = feature.state
    if feature.kind not in ("numeric", "timestamp"):
        index = made.argmax(1)
        values = pa.array([*state["values"], None] if state["missing"] else state["values"])
        return _typed(values.take(pa.array(index)), state["type"])
    edge, knots = _edge(state), np.array(state["quantiles"])
    place = (torch.special.ndtr(torch.from_numpy(made[:, 0].astype(np.float64))).numpy() - edge) / (1 - 2 * edge)
    values = np.interp(np.clip(place, 0, 1) * (len(knots) - 1), np.arange(len(knots)), knots)
    lacking = made[:, 2] > made[:, 1] if state["missing"] else None
    if feature.kind == "timestamp":
        return _time(np.clip(np.round(values / state["step"]) * state["step"], knots[0], knots[-1]), lacking, state)
    if state["decimals"] is not None:
        unit = state["unit"] / 10.0 ** state["decimals"]
        values = np.clip(np.round(np.round(values / unit) * unit, state["decimals"]), knots[0], knots[-1])
    return _typed(pa.array(values, mask=lacking), state["type"])


def _typed(array: pa.Array, name: str) -> pa.Array:
    """As the training column's type where that is a plain one."""
    kind = ARROW.get(name)
    if kind is None or kind == array.type:
        return array
    if pa.types.is_integer(kind) and pa.types.is_floating(array.type):
        array = pa.compute.round(array)
    return array.cast(kind)


def _time(values: Array, lacking: Array | None, state: Mapping[str, Any]) -> pa.Array:
    micro = np.round(values * 1e6).astype(np.int64).view("M8[us]")
    array = pa.array(micro, pa.timestamp("us"), mask=lacking)
    name = state["type"]
    if name.startswith("date"):
        return array.cast(pa.date32())
    if name.startswith("time") and not name.startswith("timestamp"):
        return array.cast(pa.time64("us"))
    if name.startswith("timestamp"):
        return array.cast(pa.timestamp("us", "UTC")) if "tz=" in name else array
    texts = np.datetime_as_string(micro, "D" if state["step"] == STEPS[0] else "s" if state["step"] >= 1 else "us")
    return pa.array(texts.tolist(), mask=lacking)


ARROW = {str(t): t for t in (
    pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float32(),
    pa.float64(), pa.bool_(), pa.string(), pa.large_string(),
)}  # fmt: skip


def matches(feature: Feature, column: pa.Array, value: Any) -> Array:
    """bool (B,): which decoded values are `value`, given as a text or as it is. Raises ValueError where it cannot be one."""
    if feature.kind in ("numeric", "timestamp"):
        wanted = one_value(feature, value)
        found = _seconds_or_numbers(feature.kind, column, feature.name)
        return np.isnan(found) if math.isnan(wanted) else np.abs(found - wanted) < 1e-9 * max(1.0, abs(wanted))
    return np.equal(codes(feature, column), place_of(feature, value))


def one_value(feature: Feature, value: Any) -> float:
    """A number, or seconds since 1970, of a value that was asked for; NaN for missing. Raises ValueError."""
    if value is None or value == "":
        if feature.state["missing"]:
            return math.nan
        raise ValueError("the training rows have no missing value there")
    if feature.kind == "timestamp":
        found = float(seconds(times([value], feature.name, Rejects()))[0])
    else:
        found = float(value)
    low, high = feature.state["quantiles"][0], feature.state["quantiles"][-1]
    if not low <= found <= high:
        raise ValueError(f"training rows have {low:g} to {high:g}")
    return found


def place_of(feature: Feature, value: Any) -> int:
    """A category's place. Raises ValueError naming those there are."""
    if feature.kind == "boolean" and isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False, "": None}.get(value.lower(), value)
        if isinstance(value, str):
            raise ValueError("expected true or false")
    found = int(codes(feature, [value])[0])
    if found < 0:
        known = feature.state["values"]
        raise ValueError(f"training rows have {', '.join(map(str, known[:12]))}{', …' if len(known) > 12 else ''}")
    return found
