"""Training of `rec` beside the loop that anyone would write, same model and batch, turn and turn about.

    python -m benchmarks.training_rec [--rounds 5] [--steps 120]

A GRU of 64 over 36 steps of 2 numbers, batches of 128, float32, AdamW, one thread; windows of equal length, as a forecast
has them. Prints the medians in windows/s and their ratio, which is asked to be 0.97 or more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from seekray import loop
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.session import Point, Session
from seekray.storage import Storage

STEPS, CHANNELS, HIDDEN, CLASSES, BATCH, FIRST = 36, 2, 64, 4, 128, 10


class _Clock:
    """Hears when steps were done."""

    def __init__(self) -> None:
        self.times: dict[int, int] = {}

    def points(self, new: Sequence[Point]) -> None:
        self.times |= {p.step: p.time_ms for p in new if p.key == "loss"}

    def progress(self, state: Mapping[str, Any]) -> None: ...


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(CHANNELS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.gru(x)[1][0])
        return found


def plain(x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """Windows/s of a plain loop."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = _Plain()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    order = torch.randperm(len(x))
    began = 0.0
    for step in range(steps):
        if step == FIRST:
            began = time.perf_counter()
        index = order[step * BATCH : (step + 1) * BATCH]
        loss = nn.functional.cross_entropy(net(x[index]), y[index])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            loss.item()
    return (steps - FIRST) * BATCH / (time.perf_counter() - began)


def ours(given: Experiment, prepared: Prepared) -> float:
    """Windows/s of the platform's loop, in this process."""
    clock = _Clock()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(given.training, Storage(folder), listener=clock)
        loop.run(given, session, prepared.schema, prepared.train, prepared.validation)
    first, last = min(clock.times), max(clock.times)
    return (last - first) * BATCH * 1000 / (clock.times[last] - clock.times[first])


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
    pairs = [(plain(inputs, targets, options.steps), ours(given, prepared)) for _ in range(options.rounds)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"plain {a:,.0f} windows/s, seekray {b:,.0f}, ratio {statistics.median(o / p for p, o in pairs):.3f} (asked: 0.97)")


if __name__ == "__main__":
    main()
