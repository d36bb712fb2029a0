"""Searches: what lies between two trials, and a whole search beside Optuna alone in two plain processes.

    python -m benchmarks.tuning [--trials 32] [--seconds 3] [--gaps 12] [--json]

gap: seconds from the end of a trial's training loop to the beginning of the next one's on the same warm actor, medians, one
trial at a time, beside a plain Tune function with reused actors that trains nothing (it reports once), in the same run. What
is written of a trial is written while the next one trains; values that depend on those before (optuna) are found in the gap.

search: `seekray tune` over digits with trials of about so many seconds, TPE, without a scheduler, beside `optuna` in two plain
processes that share a journal file and train the same with the same loop; wall time from the first trial's start to the last
one's end, and from the start of the command to its end. Trainers: the same training where each trial is a `TorchTrainer` of one
worker, started by a plain Tune function, two at a time; seconds a trial, as those of the search from its first trial's start.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ray
import ray.train
import torch
from ray import tune as ray_tune
from ray.train.torch import TorchTrainer

from benchmarks.in_process import Silent
from seekray import loop, ray_train, tuner
from seekray.checkpoint import Checkpoints
from seekray.experiment_file import load, validate, with_values
from seekray.log import configure
from seekray.session import LocalSession
from seekray.settings import settings
from seekray.storage import Storage
from seekray.tracking.spool import Spool
from seekray.tuner import trial
from seekray.tuner.journal import Journal

TARGETS = {
    "gap / plain function": "≤ 0.5",
    "search / optuna": "≤ 1.25",
    "search with start-up / optuna": "≤ 1.5",
    "one TorchTrainer a trial / search": "≥ 5",
}
CALIBRATED = 200  # epochs of the run that says how long an epoch is


class Timed(trial.LoopTrial):
    """Writes down when its training loop begins and ends."""

    def step(self) -> dict[str, Any]:
        times, epochs = list[float](), loop.epochs

        def timed(*given: Any) -> Iterator[loop.Pulse]:
            times.append(time.time())
            yield from epochs(*given)
            times.append(time.time())

        with mock.patch.object(loop, "epochs", timed):
            found = super().step()
        _write(os.path.dirname(os.path.dirname(self._settings["run"].removeprefix("file://"))), *times)
        return found


def _write(folder: str, began: float, ended: float) -> None:
    with open(f"{folder}/times.txt", "a") as file:
        file.write(f"{began} {ended}\n")


def _gaps(folder: Path) -> float:
    """The median from one end to the next beginning, the first of an actor left out."""
    times = sorted(tuple(map(float, line.split())) for line in (folder / "times.txt").read_text().splitlines())
    return statistics.median(later[0] - before[1] for before, later in itertools.pairwise(times[1:]))


def experiment(epochs: int, trials: int, **tune: Any) -> Any:
    """Digits, one hidden layer; the rate and the dropout are searched."""
    return validate(
        {
            "name": "bench",
            "data": {"source": "sample:digits", "target": "label", "split": {"kind": "stratified", "validation": 0.2}},
            "model": {"hidden_size": [128]},
            "training": {"epochs": epochs},
            "report": {"importances": False},
            "tune": {
                "trials": trials,
                "scheduler": "none",
                "space": {"training.lr": {"loguniform": [1e-4, 1e-1]}, "model.dropout": {"uniform": [0, 0.5]}},
                **tune,
            },
        }
    )


def gaps(count: int) -> dict[str, float]:
    """Ours and Tune's, on one Ray."""
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / "plain"
        plain.mkdir()

        def function(config: dict[str, Any]) -> None:
            _write(str(plain), time.time(), time.time())
            ray_tune.report({"score": config["x"]})

        ray_tune.Tuner(
            function,
            param_space={"x": ray_tune.uniform(0, 1)},
            tune_config=ray_tune.TuneConfig(num_samples=count, max_concurrent_trials=1, reuse_actors=True),
            run_config=ray_tune.RunConfig(storage_path=f"{temporary}/results", verbose=0),
        ).fit()
        theirs, ours = _gaps(plain), {}
        runs = Path(Storage(settings().storage).path())
        for searcher in ("random", "optuna"):
            with mock.patch.object(trial, "LoopTrial", Timed):
                tuner.tune(experiment(1, count, concurrency=1, searcher=searcher), settings())
            ours[searcher] = _gaps(runs)
            (runs / "times.txt").unlink()
    random, optuna = ours["random"], ours["optuna"]
    return {
        "gap_s": random, "gap_optuna_s": optuna, "plain_gap_s": theirs,
        "gap / plain function": random / theirs, "gap optuna / plain function": optuna / theirs,
    }  # fmt: skip


ALONE = """
import json, sys, time, optuna, torch
from optuna.storages.journal import JournalFileBackend
from seekray import loop
from seekray.experiment_file import with_values
from seekray.session import LocalSession
from seekray.storage import Storage
from seekray.checkpoint import Checkpoints
from benchmarks.tuning import experiment

epochs, trials, folder, seed = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.ERROR)
given = experiment(epochs, trials)
prepared = given.prepare()


class Deaf:
    def points(self, new): pass
    def progress(self, state): pass


def objective(t):
    values = {"training.lr": t.suggest_float("lr", 1e-4, 1e-1, log=True), "model.dropout": t.suggest_float("d", 0, 0.5)}
    made, run = with_values(given, values), Storage(f"{folder}/{t.number}")
    session = LocalSession(made.training, run, listener=Deaf())
    loop.run(made, session, prepared.schema, prepared.train, prepared.validation)
    return -Checkpoints(run).latest().state["best_value"]


storage = optuna.storages.JournalStorage(JournalFileBackend(f"{folder}/optuna.log"))
study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True,
                            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True))
open(f"{folder}/began-{seed}", "w").write(str(time.time()))
study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(trials, states=None)])
open(f"{folder}/ended-{seed}", "w").write(str(time.time()))
"""


def alone(epochs: int, trials: int, folder: Path) -> tuple[float, float]:
    """Seconds of Optuna in two processes: from the first trial's start, and in all."""
    folder.mkdir()
    began = time.time()
    runs = [
        subprocess.Popen([sys.executable, "-c", ALONE, str(epochs), str(trials), str(folder), str(seed)], cwd=os.getcwd())
        for seed in (0, 1)
    ]
    if any(run.wait() for run in runs):
        raise RuntimeError("Optuna's processes failed")
    first = min(float((folder / f"began-{seed}").read_text()) for seed in (0, 1))
    last = max(float((folder / f"ended-{seed}").read_text()) for seed in (0, 1))
    return last - first, time.time() - began


def searched(epochs: int, trials: int, folder: Path) -> tuple[float, float]:
    """The same of `seekray tune`: from the first trial's first steps to when the last one's end is told."""
    folder.mkdir()
    (folder / "e.yaml").write_text(json.dumps(experiment(epochs, trials).as_json()))
    load(folder / "e.yaml")
    began = time.time()
    command = [sys.executable, "-c", "from seekray.cli import main; main()", "tune", "e.yaml"]
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"),) if p)
    environment = {**os.environ, "SEEKRAY_HOME": str(folder / "home"), "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    seconds = time.time() - began
    runs = Storage(str(folder / "home" / "storage" / "runs"))
    (search_id,) = [r for r in runs.list() if "-t0" not in r]
    entries = Journal(runs.child(search_id)).trials.values()
    first = min(point["time_ms"] for entry in entries for point in _points(runs.child(entry.run_id)))
    last = max(point["time_ms"] for point in _points(runs.child(search_id)) if point["key"] == "trials_ended")
    return (last - first) / 1000, seconds


def _points(run: Storage) -> list[Any]:
    return [point for event in Spool(run).events() if event["kind"] == "points" for point in event["points"]]


def nested(epochs: int, trials: int, folder: Path) -> float:
    """Seconds a trial where each is a `TorchTrainer` of one worker that trains the same, two trials at a time."""
    given = experiment(epochs, trials)
    shared = ray_train.share(given.prepare())

    def worker(values: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        made = with_values(given, values)
        schema, data = ray_train.shared(made, ray.get(shared))
        run = Storage(f"{folder}/{ray.train.get_context().get_experiment_name()}")
        loop.run(made, LocalSession(made.training, run, listener=Silent()), schema, data["train"], data["validation"])
        best = Checkpoints(run).latest()
        assert best is not None
        ray.train.report({"score": best.state["best_value"]})

    def function(values: dict[str, Any]) -> None:
        name = f"trial-{ray_tune.get_context().get_trial_id()}"
        where = ray.train.RunConfig(name=name, storage_path=f"{folder}/results")
        scaling = ray.train.ScalingConfig(num_workers=1)
        done = TorchTrainer(worker, train_loop_config=values, scaling_config=scaling, run_config=where).fit()
        assert done.metrics is not None
        ray_tune.report(done.metrics)

    began = time.time()
    ray_tune.Tuner(
        ray_tune.with_resources(function, ray_tune.PlacementGroupFactory([{"memory": 2**20}])),  # the worker has the CPU
        param_space={"training.lr": ray_tune.loguniform(1e-4, 1e-1), "model.dropout": ray_tune.uniform(0, 0.5)},
        tune_config=ray_tune.TuneConfig(num_samples=trials, max_concurrent_trials=2, reuse_actors=True),
        run_config=ray_tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
    ).fit()
    return (time.time() - began) / trials


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--gaps", type=int, default=12)
    parser.add_argument("--trainers", type=int, default=4, help="trials of a TorchTrainer each")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    configure()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, mock.patch.dict(os.environ, {"SEEKRAY_HOME": f"{temporary}/home"}):
        settings.cache_clear()
        if given.gaps:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            found |= gaps(given.gaps)
            ray.shutdown()
        epochs = 0
        if given.trials or given.trainers:
            one, _ = alone(CALIBRATED, 1, Path(temporary) / "calibrate")
            epochs = max(1, round(CALIBRATED * given.seconds / one))
        if given.trainers:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            found["trainer_s_a_trial"] = nested(epochs, given.trainers, Path(temporary) / "nested")
            ray.shutdown()
        if given.trials:
            plain, plain_all = alone(epochs, given.trials, Path(temporary) / "alone")
            ours, ours_all = searched(epochs, given.trials, Path(temporary) / "searched")
            found |= {
                "epochs": epochs, "optuna_s": plain, "search_s": ours, "search / optuna": ours / plain,
                "optuna_all_s": plain_all, "search_all_s": ours_all, "search with start-up / optuna": ours_all / plain,
            }  # fmt: skip
            if given.trainers:
                found["one TorchTrainer a trial / search"] = found["trainer_s_a_trial"] / (ours / given.trials)
    for name, value in found.items():
        target = f"  (target: {TARGETS[name]})" if name in TARGETS else ""
        print(f"{name:32} {value:.3f}{target}", file=sys.stderr)
    if given.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
