"""Synthetic rows beside real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seekray.evaluation.result import Evaluation

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.generator import Generator


def evaluate(model: Generator, table: pa.Table, *, by: Sequence[str] = (), resamples: int = 1000, seed: int = 0) -> Evaluation:
    """The mean over columns of the Kolmogorov-Smirnov distance between as many synthetic as real rows."""
    from scipy.stats import ks_2samp

    made = model.generate(rows=len(table), seed=seed)
    distances = {
        name: float(ks_2samp(made[name].to_numpy(), np.asarray(table[name].to_numpy(), float)).statistic)
        for name in made.column_names
    }
    metrics = {"ks_distance": float(np.mean(list(distances.values())))}
    return Evaluation(
        task=model.task, rows=len(table), rejected=0, metrics=metrics, intervals={}, notes={}, rejections=[], groups={},
        details={"ks_distance": distances},
    )  # fmt: skip
