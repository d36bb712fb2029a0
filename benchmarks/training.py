"""Training `net` in rows/s: beside a plain PyTorch loop, and two workers beside one.

    python -m benchmarks.training [--rounds 5] [--steps 390] [--json]

Global batch 512, three hidden layers of 512, 200,000 rows of 64, fused AdamW, one torch thread a
worker. Every round runs the plain loop, `workers: 0`, `1` and `2` one after another, each timed from
step 10 to its last step; the ratios are medians of the rounds' ratios, so that a busy machine hits
both sides. Targets: 0.97 of the plain loop, and 1.7 for two workers over one. `copies` is what the
machine itself allows: the same plain loop in two processes at once, over one, on half the batch each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from seekray import loop, ray_train
from seekray.cluster import connect
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.data.tables.prepare import prepare
from seekray.progress import Progress
from seekray.session import Point, Session
from seekray.settings import read_settings
from seekray.storage import Storage

ROWS, FEATURES, HIDDEN, CLASSES, BATCH, FIRST = 200_000, 64, 512, 10, 512, 10


def write_table(path: Path) -> None:
    """Normal deviates and a class that depends on them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    y = (x @ rng.normal(size=(FEATURES, CLASSES))).argmax(1)
    pq.write_table(pa.table({f"x{i}": x[:, i] for i in range(FEATURES)} | {"y": [f"c{v}" for v in y]}), path)


def experiment(source: Path, steps: int, workers: int) -> Experiment:
    """The measured run."""
    return Experiment.model_validate(
        {
            "name": "bench",
            "data": {"source": str(source), "target": "y", "split": {"test": 0, "validation": 0}},
            "model": {"hidden_size": [HIDDEN] * 3},
            "training": {"max_steps": steps, "batch_size": BATCH},
            "resources": {"workers": workers},
        }
    )


def plain(x: torch.Tensor, y: torch.Tensor, steps: int, batch: int = BATCH) -> float:
    """Rows/s of the plain loop on the same network."""
    sizes = [FEATURES, HIDDEN, HIDDEN, HIDDEN]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return plain_loop(nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES)), x, y, steps, batch)


def plain_loop(net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, batch: int) -> float:
    """The loop that anyone would write; rows/s on one thread, the first steps left out."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    order = torch.randperm(len(x))
    began, epoch = 0.0, len(x) // batch
    for step in range(steps):
        if step == FIRST:
            began = time.perf_counter()
        if step and step % epoch == 0:
            order = torch.randperm(len(x))
        first = step % epoch * batch
        index = order[first : first + batch]
        loss = nn.functional.cross_entropy(net(x.index_select(0, index)), y.index_select(0, index))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            loss.item()
    return (steps - FIRST) * batch / (time.perf_counter() - began)


class Clock:
    """Hears when the first and the last steps were done."""

    def __init__(self) -> None:
        self.times: dict[int, int] = {}

    def points(self, new: Sequence[Point]) -> None:
        self.times |= {p.step: p.time_ms for p in new if p.key == "loss"}

    def progress(self, state: object) -> None:
        """Not shown."""

    def rows_per_second(self, batch: int) -> float:
        """Between the first and the last point."""
        first, last = min(self.times), max(self.times)
        return (last - first) * batch * 1000 / (self.times[last] - self.times[first])


def ours(given: Experiment, prepared: Prepared, folder: Path) -> float:
    """The platform's loop, here or on Ray Train; rows/s."""
    run, clock = Storage(str(folder)), Clock()
    run.write_json("experiment.json", given.as_json())
    if given.resources.workers == 0:
        torch.set_num_threads(1)
        loop.run(given, Session(given.training, run, listener=clock), prepared.schema, prepared.train, prepared.validation)
    else:
        ray_train.fit(given, folder.name, run, ray_train.share(prepared), clock, Progress(quiet=True))
    return clock.rows_per_second(BATCH)


def _copy(x: torch.Tensor, y: torch.Tensor, steps: int, barrier: Any, out: Any) -> None:
    barrier.wait()
    out.put(plain(x, y, steps, BATCH // 2))


def copies(x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """Two plain loops at once, on half the batch each, without a word between them; rows/s together."""
    context = multiprocessing.get_context("fork")
    barrier, out = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_copy, args=(x, y, steps, barrier, out)) for _ in range(2)]
    for process in processes:
        process.start()
    total = sum(out.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=390)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in ("copies", "plain", "workers_0", "workers_1", "workers_2")}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "table.parquet")
        write_table(source)
        prepared = prepare(experiment(source, 1, 0).data, "classification")
        x, y = torch.from_numpy(prepared.train.inputs["dense"]), torch.from_numpy(prepared.train.targets)
        found["copies"] = [copies(x, y, given.steps) for _ in range(given.rounds)]  # before Ray: it forks
        with connect(read_settings({"SEEKRAY_HOME": folder}), experiment(source, 1, 2).resources):
            for number in range(given.rounds):
                found["plain"].append(plain(x, y, given.steps))
                for workers in (0, 1, 2):
                    name = f"workers_{workers}"
                    run = Path(folder, f"{name}-{number}")
                    found[name].append(ours(experiment(source, given.steps, workers), prepared, run))
    pairs = [("workers_0", "plain"), ("workers_1", "plain"), ("workers_2", "workers_1"), ("copies", "plain")]
    ratios = {
        f"{a} / {b}": statistics.median(p / q for p, q in zip(found[a], found[b], strict=True)) for a, b in pairs
    }  # fmt: skip
    result = {"rows_per_second": {k: statistics.median(v) for k, v in found.items()}, "ratios": ratios, "runs": found}
    result["load"] = os.getloadavg()
    if given.json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result["rows_per_second"].items():
        print(f"{name:12} {value:10,.0f} rows/s   ({', '.join(f'{v:,.0f}' for v in found[name])})")
    targets = {"workers_0 / plain": 0.97, "workers_1 / plain": 0.97, "workers_2 / workers_1": 1.7}
    for name, value in ratios.items():
        print(f"{name:24} {value:.3f}" + (f"   target {targets[name]}" if name in targets else "   what the machine allows"))
    print(f"load average {result['load'][0]:.1f}")


if __name__ == "__main__":
    main()
