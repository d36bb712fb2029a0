"""What a forecast must beat: the last value, that of a season ago, their average, and ridge on the same windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from seekray.data.parse import Array
from seekray.data.prepared import Arrays

MOST_WINDOWS = 20_000
MOST_INPUTS = 2_000
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # times the number of windows
DECAYS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.94, 0.97, 0.99)  # 0 is the last value; 0.94 is RiskMetrics' for daily data


def _inputs(sequence: Array, dense: Array) -> Array:
    """(N, T * C + D + 1): all steps of all channels, what else is known, and one."""
    parts = [sequence.reshape(len(sequence), -1), dense, np.ones((len(sequence), 1))]
    return np.concatenate(parts, axis=1, dtype=np.float64)


def fit_ridge(train: Arrays, validation: Arrays) -> dict[str, Any] | None:
    """Ridge from a window's standardised steps to the standardised values to come; None where windows differ in length.

    Over at most 20,000 training windows, evenly spaced; the penalty is the one with the least absolute error on the
    validation windows.
    """
    assert train.offsets is not None
    lengths = np.diff(train.offsets)
    if "sequence" not in train.inputs or train.targets is None or lengths.min() != lengths.max():
        return None
    steps, channels = int(lengths[0]), train.inputs["sequence"].shape[1]
    if steps * channels + train.inputs["dense"].shape[1] > MOST_INPUTS:
        return None

    def windows(arrays: Arrays) -> tuple[Array, Array]:
        rows = np.arange(len(arrays))[:: max(1, -(-len(arrays) // MOST_WINDOWS))]
        sequence = arrays.inputs["sequence"].reshape(len(arrays), steps, channels)[rows]
        assert arrays.targets is not None
        return _inputs(sequence, arrays.inputs["dense"][rows]), arrays.targets[rows].astype(np.float64)

    x, y = windows(train)
    gram, moment = x.T @ x, x.T @ y
    held = windows(validation) if len(validation) else (x, y)
    best: tuple[float, Array] | None = None
    for penalty in PENALTIES:
        ridge = np.full(len(gram), penalty * len(x) / 100)
        ridge[-1] = 0.0  # the constant
        weights = np.linalg.lstsq(gram + np.diag(ridge), moment, rcond=None)[0]
        error = float(np.abs(held[0] @ weights - held[1]).mean())
        if best is None or error < best[0]:
            best = (error, weights)
    assert best is not None
    return {"steps": steps, "weights": best[1].tolist()}


def ridge(fitted: Mapping[str, Any], sequence: Array, dense: Array) -> Array:
    """Standardised values to come, (N, H)."""
    found: Array = _inputs(sequence, dense) @ np.array(fitted["weights"])
    return found


def persistence(last: Array, horizon: int) -> Array:
    """The last value (N,) again and again, (N, H)."""
    return np.repeat(last[:, None], horizon, axis=1)


def ewma(history: Array, decay: float) -> Array:
    """The exponentially weighted moving average of a history (N, T), at its end, (N,).

    s_1 = x_1, s_t = decay * s_(t-1) + (1 - decay) * x_t (S. W. Roberts 1959, doi:10.1080/00401706.1959.10489860; for
    daily volatility J.P. Morgan/Reuters, RiskMetrics Technical Document, 4th ed. 1996, whose decay is 0.94). It is the
    forecast of all steps ahead.
    """
    steps = history.shape[1]
    weights = (1 - decay) * decay ** np.arange(steps - 1, -1, -1.0)
    weights[0] = decay ** (steps - 1.0)
    found: Array = history @ weights
    return found


def fit_ewma(train: Arrays, channel: int, scale: float, shift: float) -> float | None:
    """The decay with the least absolute error on the training windows; None where windows differ in length.

    channel: that of the past of the target; scale, shift: from its standardised values to those of the target. Over at
    most 20,000 windows, evenly spaced.
    """
    assert train.offsets is not None
    assert train.targets is not None
    lengths = np.diff(train.offsets)
    if lengths.min() != lengths.max():
        return None
    rows = np.arange(len(train))[:: max(1, -(-len(train) // MOST_WINDOWS))]
    history = train.inputs["sequence"][:, channel].reshape(len(train), -1)[rows].astype(np.float64) * scale + shift
    errors = {decay: float(np.abs(ewma(history, decay)[:, None] - train.targets[rows]).mean()) for decay in DECAYS}
    return min(errors, key=lambda decay: errors[decay])


def seasonal(history: Array, horizon: int, season: int) -> Array | None:
    """The values a season ago, (N, H), of a history (N, T); None where it is shorter than the season."""
    if season > history.shape[1]:
        return None
    ago = history.shape[1] - season + np.arange(horizon) % season
    found: Array = history[:, ago]
    return found
