"""How a small table answers: along straight lines, or curved. A second of linear algebra that the defaults build on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from seekray.data.options import Data
from seekray.data.tables.fitting import fit

Matrix = npt.NDArray[np.float64]
PROBE_ROWS = 1000
WIDTHS = (0.1, 0.3, 1.0, 3.0)  # of the kernel, in units of the mean squared distance of rows


@dataclass(frozen=True)
class Shape:
    """Leave-one-out R² of the best linear ridge regression and of the best Gaussian kernel ridge regression."""

    linear: float
    curved: float


def probe(table: pa.Table, data: Data, task: str, seed: int = 0) -> Shape:
    """Fit both on at most 1,000 rows, whose features and targets must be readable.

    Classes are learned as indicators (N, C). Both regressions have their leave-one-out residuals in
    closed form from one eigendecomposition of the kernel (Rifkin and Lippert 2007, MIT-CSAIL-TR-2007-025).
    """
    if table.num_rows > PROBE_ROWS:
        table = table.take(np.random.default_rng(seed).choice(table.num_rows, PROBE_ROWS, replace=False))
    schema = fit(table, data, task)
    arrays = schema.arrays(table)
    parts = [arrays["dense"].astype(np.float64)]
    for index, size in zip(arrays["categorical"].T, schema.cardinalities, strict=True):
        seen = np.bincount(index, minlength=size) > 1  # a category of one row teaches nothing about another
        parts.append(np.eye(size)[index][:, seen])
    targets = schema.encode_targets(table)
    y = np.eye(schema.num_outputs)[targets] if task == "classification" else targets.astype(np.float64)
    # Threads that wait for one another on a busy machine take a hundred times longer than one.
    with threadpool_limits(1):
        return _compare(np.concatenate(parts, axis=1), y - y.mean(0))


def _compare(x: Matrix, y: Matrix) -> Shape:
    x = x - x.mean(0)
    product = x @ x.T
    lengths = np.diagonal(product)
    distances = np.maximum(lengths[:, None] + lengths - 2 * product, 0.0)
    scale = 2 * max(float(lengths.mean()), 1e-12)
    return Shape(
        linear=leave_one_out(product + 1.0, y),
        curved=max(leave_one_out(np.exp(-distances * width / scale), y) for width in WIDTHS),
    )


def leave_one_out(kernel: Matrix, y: Matrix) -> float:
    """R² of kernel ridge regression on rows left out one by one, at the best of 15 penalties.

    kernel: (N, N); y: (N, C), centred.
    """
    values, vectors = np.linalg.eigh(kernel)
    values, rotated, squares = values.clip(0), vectors.T @ y, vectors**2
    best, total = -np.inf, float((y**2).sum())
    for penalty in np.logspace(-5, 2, 15) * len(kernel):
        inverse = 1 / (values + penalty)
        residuals = (vectors @ (inverse[:, None] * rotated)) / (squares @ inverse)[:, None]
        best = max(best, 1 - float((residuals**2).sum()) / max(total, 1e-12))
    return best
