"""The fixed cost: from Enter to the first training step.

    python benchmarks/startup.py [--rounds 5] [--json]

`seekray train` with one Ray Train worker, Ray not running, beside a minimal TorchTrainer script (its
train function does one step of a linear model and writes down when); `workers: 0` beside
`python -c 'import torch'`, both also in CPU seconds; and `seekray --help`. All in turn in every round; medians.
The first step of a seekray run is the time of its first point (`log_every: 1`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEEKRAY = str(Path(sys.executable).with_name("seekray"))
TARGETS = {"train_1 / minimal": 0.7, "train_0 / import_torch": 3.0, "help": 0.3}
MINIMAL = """
import sys, time
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_fn(config):
    import torch
    model = torch.nn.Linear(10, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    loss = model(torch.randn(8, 10)).pow(2).mean()
    loss.backward()
    optimizer.step()
    open(config["file"], "w").write(str(time.time()))
    ray.train.report({"loss": loss.item()})


config = {"file": sys.argv[1]}
TorchTrainer(train_fn, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1)).fit()
"""
EXPERIMENT = """
name: start
data: {source: "sample:digits", target: label}
training: {max_steps: 3, log_every: 1}
"""


def run(command: list[str], folder: Path, **environment: str) -> tuple[float, float, float]:
    """Began (time since the epoch), seconds, CPU seconds of the process and those it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.time()
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **environment}, capture_output=True)
    seconds = time.time() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return began, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def minimal(folder: Path) -> float:
    """Seconds to the first step of the plain script."""
    (folder / "minimal.py").write_text(MINIMAL)
    mark = folder / "first_step"
    mark.unlink(missing_ok=True)
    began, _, _ = run([sys.executable, "minimal.py", str(mark)], folder)
    return float(mark.read_text()) - began


def train(folder: Path, workers: int, number: int) -> float:
    """Seconds to the first step of `seekray train`."""
    (folder / "e.yaml").write_text(EXPERIMENT)
    home = folder / f"home-{workers}-{number}"
    command = [SEEKRAY, "train", "e.yaml", "--set", f"resources.workers={workers}"]
    began, _, _ = run(command, folder, SEEKRAY_HOME=str(home))
    times = [
        point["time_ms"]
        for segment in sorted(home.glob("storage/runs/*/spool/*.json"))
        if segment.name[0].isdigit()
        for event in json.loads(segment.read_text())
        if event["kind"] == "points"
        for point in event["points"]
    ]
    return min(times) / 1000 - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(given.rounds):
            seconds = {
                "minimal": minimal(folder),
                "train_1": train(folder, 1, number),
                "import_torch": run([sys.executable, "-c", "import torch"], folder)[1],
                "train_0": train(folder, 0, number),
                "help": run([SEEKRAY, "--help"], folder)[1],
                "help_cpu": run([SEEKRAY, "--help"], folder)[2],
            }
            for key, value in seconds.items():
                found.setdefault(key, []).append(value)
    medians = {key: statistics.median(values) for key, values in found.items()}
    ratios = {
        f"{a} / {b}": statistics.median(p / q for p, q in zip(found[a], found[b], strict=True))
        for a, b in (("train_1", "minimal"), ("train_0", "import_torch"))
    }
    if given.json:
        print(json.dumps({"seconds": medians, "ratios": ratios, "runs": found, "load": os.getloadavg()}, indent=1))
        return
    for key, value in medians.items():
        target = f"   target {TARGETS[key]}" if key in TARGETS else ""
        print(f"{key:24} {value:6.2f} s  ({', '.join(f'{v:.2f}' for v in found[key])}){target}")
    for key, value in ratios.items():
        print(f"{key:24} {value:6.2f}   target {TARGETS[key]}")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
