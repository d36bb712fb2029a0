"""The average that a forecast must beat: its recurrence, and whose windows choose its decay."""

from __future__ import annotations

import numpy as np
import pytest

from seekray.data.prepared import Arrays
from seekray.data.sequences.baselines import DECAYS, ewma, fit_ewma


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.94])
def test_ewma_is_the_recurrence(decay: float) -> None:
    history = np.random.default_rng(0).normal(size=(7, 60))
    level = history[:, 0]
    for t in range(1, 60):
        level = decay * level + (1 - decay) * history[:, t]
    assert np.allclose(ewma(history, decay), level, atol=1e-12)


def _windows(series: np.ndarray, steps: int = 60) -> Arrays:
    """Windows of a second channel, the past in units of its own: (x - 5) / 3 where the targets are x / 2."""
    past = np.lib.stride_tricks.sliding_window_view(series[:-1], steps)
    flat = np.stack([np.zeros(past.size), (past.ravel() - 5) / 3], axis=1).astype(np.float32)
    offsets = np.arange(len(past) + 1) * steps
    targets = (series[steps:, None] / 2).astype(np.float32)
    return Arrays({"sequence": flat, "dense": np.zeros((len(past), 0))}, targets, np.arange(len(past)), offsets)


def test_the_decay_is_that_of_the_series() -> None:
    rng = np.random.default_rng(1)
    walk = np.cumsum(rng.normal(size=3000))
    assert fit_ewma(_windows(walk), 1, 1.5, 2.5) == 0.0  # the last value is all there is to know
    chosen = fit_ewma(_windows(rng.normal(size=3000) + 20), 1, 1.5, 2.5)
    assert chosen is not None
    assert chosen >= 0.94  # noise about a mean: the longer the average, the better
    noisy = fit_ewma(_windows(walk + 2 * rng.normal(size=3000)), 1, 1.5, 2.5)
    assert noisy in DECAYS
    assert noisy is not None
    assert 0.3 <= noisy <= 0.8  # Muth 1960: 0.61 for a level's noise of 1 and an observation's of 2


def test_windows_of_different_lengths_have_none() -> None:
    whole = _windows(np.arange(100.0))
    ragged = Arrays(whole.inputs, whole.targets, whole.rows, np.concatenate([[0, 59], whole.offsets[2:]]))
    assert fit_ewma(ragged, 1, 1.5, 2.5) is None
