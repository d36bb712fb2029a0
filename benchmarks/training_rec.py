"""Training of `rec` beside the loop that anyone would write, same model and batch, turn and turn about.

    python -m benchmarks.training_rec [--rounds 5] [--steps 120]

A GRU of 64 over 36 steps of 2 numbers, batches of 128, float32, AdamW, one thread; windows of equal length, as a forecast
has them. Prints the medians in windows/s and their ratio, which is asked to be 0.97 or more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from benchmarks.training import Clock, plain_loop
from seekray import loop
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.session import Session
from seekray.storage import Storage

STEPS, CHANNELS, HIDDEN, CLASSES, BATCH = 36, 2, 64, 4, 128


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(CHANNELS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.gru(x)[1][0])
        return found


def ours(given: Experiment, prepared: Prepared) -> float:
    """Windows/s of the platform's loop, in this process."""
    clock = Clock()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(given.training, Storage(folder), listener=clock)
        loop.run(given, session, prepared.schema, prepared.train, prepared.validation)
    return clock.rows_per_second(BATCH)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = options.steps * BATCH
    x = rng.normal(size=(rows, STEPS, CHANNELS)).astype(np.float32)
    y = rng.integers(0, CLASSES, size=rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(pa.table({"x": pa.array(x.tolist()), "y": y}), path)
        given = Experiment.model_validate(
            {
                "name": "speed", "family": "rec", "resources": {"workers": 0}, "model": {"hidden_size": HIDDEN},
                "data": {"source": str(path), "target": "y", "split": {"test": 0, "validation": 0}},
                "training": {"epochs": 1, "batch_size": BATCH},
            }
        )  # fmt: skip
        prepared = given.prepare()
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    pairs = [
        (plain_loop(_Plain(), inputs, targets, options.steps, BATCH), ours(given, prepared)) for _ in range(options.rounds)
    ]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"plain {a:,.0f} windows/s, seekray {b:,.0f}, ratio {statistics.median(o / p for p, o in pairs):.3f} (asked: 0.97)")


if __name__ == "__main__":
    main()
