"""Data parallel training on real Ray Train workers: equal to one process, and hard to kill."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from training_kit import After, Listen, experiment, run_here, run_ray, same, same_history, write_table

from seekray import ray_train
from seekray.checkpoint import Checkpoints
from seekray.config import Resources
from seekray.data.prepared import Prepared
from seekray.data.tables.prepare import prepare
from seekray.errors import DivergedError, ResourcesError, SeekrayError
from seekray.interrupts import Interrupts
from seekray.progress import Progress
from seekray.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
EXACT: dict[str, Any] = {
    "training": {"precision": "fp64", "batch_size": 23, "clip_norm": 0.5},
    "model": {"norm": "batch", "class_weights": "balanced"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("ray") / "table.csv")


@pytest.fixture(scope="module")
def prepared(source: Path) -> Prepared:
    return prepare(experiment(source).data, "classification")


@pytest.mark.parametrize("workers", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_compute_what_one_process_does(source: Path, prepared: Prepared, tmp_path: Path, workers: int) -> None:
    """Half a CPU each, 70 rows in batches of 23: a last batch of one row, batch norm over ranks, exact metrics."""
    resources = {"workers": workers, "cpus_per_worker": 0.5}
    listen = Listen()
    ranks = run_ray(experiment(source, resources=resources, **EXACT), prepared, tmp_path / "ray", listen)
    heard = Listen()
    alone = run_here(experiment(source, **EXACT), prepared, tmp_path / "here", heard)
    assert ranks.state["world_size"] == workers
    for group in ("weights/", "optimizer/", "best/"):
        same(alone, ranks, group, tolerance=1e-6)
    same_history(alone, ranks, tolerance=1e-6)
    assert listen.series("loss") == pytest.approx(heard.series("loss"), abs=1e-9)
    assert listen.states[-1]["finished"]


@pytest.mark.slow  # tests/test_families.py has the same with ranks that are forked
def test_two_networks_on_two_workers(source: Path, tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "family": "gen",
        "training": {"precision": "fp64", "batch_size": 23, "clip_norm": 0.5},
    }
    given = experiment(source, "rows", resources={"workers": 2, "cpus_per_worker": 0.5}, **parts)
    ranks = run_ray(given, given.prepare(), tmp_path / "ray")
    alone = run_here(experiment(source, "rows", **parts), None, tmp_path / "here")
    same(alone, ranks, "weights/", tolerance=1e-6)


def _kill_a_worker(folder: Path, after_step: int, killed: list[int]) -> None:
    checkpoints = Checkpoints(Storage(str(folder)))
    while max(checkpoints.steps(), default=0) < after_step:
        time.sleep(0.02)
    workers = [
        p for p in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(_command(p))
    ]  # fmt: skip
    os.kill(workers[-1].pid, signal.SIGKILL)
    killed.append(workers[-1].pid)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_lost_worker_is_replaced_and_the_run_is_the_same(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    """SIGKILL of a worker process mid-run; against an undisturbed run with the same seed, bit by bit."""
    given = experiment(
        source, family="odd_families:Slow", model={"dropout": 0.2}, resources={"workers": 2, "cpus_per_worker": 0.5},
        training={"epochs": 6, "checkpoints": {"every_steps": 3}},
    )  # fmt: skip
    killed: list[int] = []
    listen, whole = Listen(), Listen()
    killer = threading.Thread(target=_kill_a_worker, args=(tmp_path / "killed", 9, killed), daemon=True)
    killer.start()
    disturbed = run_ray(given, prepared, tmp_path / "killed", _Once(listen))
    killer.join()
    assert killed
    undisturbed = run_ray(given, prepared, tmp_path / "whole", whole)
    same(undisturbed, disturbed)
    same_history(undisturbed, disturbed)
    assert listen.series("loss") == whole.series("loss")


class _Once:
    """As the tracker: what was told before is left out."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._last: dict[str, int] = {}

    def points(self, new: Any) -> None:
        for point in new:
            if point.step > self._last.get(point.key, -1):
                self._listen.points([point])
                self._last[point.key] = point.step

    def progress(self, state: Any) -> None:
        self._listen.progress(state)


def test_going_on_with_another_number_of_workers_says_so(
    source: Path, prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Begun in this process, cut, gone on with by an elastic group; without dropout equal to the last bits."""
    training = {"precision": "fp64", "checkpoints": {"every_steps": 1}}
    with pytest.raises(KeyboardInterrupt):
        run_here(experiment(source, training=training), prepared, tmp_path / "cut", Listen(6))
    with caplog.at_level(logging.WARNING):
        resources = {"workers": [1, 2], "cpus_per_worker": 0.5}
        resumed = run_ray(experiment(source, training=training, resources=resources), prepared, tmp_path / "cut")
    assert resumed.state["world_size"] in (1, 2)
    if resumed.state["world_size"] == 2:
        assert "going on with 2 workers instead of 1" in caplog.text
    undisturbed = run_here(experiment(source, training=training), prepared, tmp_path / "whole")
    same(undisturbed, resumed, "weights/", tolerance=1e-6)
    same_history(undisturbed, resumed, tolerance=1e-6)


def test_a_nan_on_one_worker_stops_all(source: Path, tmp_path: Path) -> None:
    given = experiment(
        source, "regression", resources={"workers": 2, "cpus_per_worker": 0.5},
        training={"batch_size": 8, "accumulate": 2, "checkpoints": {"every_steps": 1}},
    )  # fmt: skip
    prepared = prepare(given.data, given.task)
    targets = prepared.train.targets.copy()  # type: ignore[union-attr]
    targets[40] = np.nan
    poisoned = dataclasses.replace(prepared, train=dataclasses.replace(prepared.train, targets=targets))
    with pytest.raises(DivergedError) as caught:
        run_ray(given, poisoned, tmp_path)
    order = torch.randperm(len(prepared.train.rows), generator=torch.Generator().manual_seed(0))
    step = int((order == 40).nonzero()) // 8
    rows = prepared.train.rows[order[step * 8 : (step + 1) * 8].numpy()]
    assert f"at step {step} (learning rate" in caught.value.message
    assert f"rows of the batch: {', '.join(map(str, sorted(rows)))}." in caught.value.message  # those of both workers
    last = Checkpoints(Storage(str(tmp_path))).latest()
    assert last is not None
    assert last.state["step"] == step
    assert all(torch.isfinite(v).all() for v in last.group("weights").values())


def test_an_error_on_one_worker_ends_the_run(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    """Its peer waits for it in vain; it must not wait for ever, and another try would meet the error again."""
    given = experiment(source, family="odd_families:FailsOnLastRank", resources={"workers": 2, "cpus_per_worker": 0.5})
    began = time.monotonic()
    with pytest.raises(SeekrayError, match="worker 1: ValueError: rank one has had enough"):
        run_ray(given, prepared, tmp_path)
    assert time.monotonic() - began < 60


# ---- resources


def test_what_the_cluster_does_not_have_is_refused(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ResourcesError) as caught:
        run_ray(experiment(source, resources={"workers": 3}), prepared, tmp_path)
    assert time.monotonic() - began < 10
    assert "asked: 3 workers of 1 CPU; there: 2 CPU and 0 GPU on 1 node(s), room for 2 such workers" in caught.value.message
    with pytest.raises(ResourcesError, match="1 workers of 1 CPU and 1 GPU"):
        ray_train.require(Resources(workers=1, gpus_per_worker=1, wait=0), Progress(quiet=True))


def test_waiting_for_resources_is_told_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(ResourcesError):
        ray_train.require(Resources.model_validate({"workers": 3, "wait": "3s"}), Progress())
    assert 3 <= time.monotonic() - began < 8
    assert capsys.readouterr().err.count("waiting for resources: asked 3 workers") == 1


def test_resources_that_come_free_are_taken() -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Holder:
        def there(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.there.remote())
    with After(1.5, lambda: ray.kill(holder)):
        began = time.monotonic()
        assert ray_train.require(Resources(workers=2, wait=30), Progress(quiet=True)) == 0
        assert time.monotonic() - began > 1


class _Handle:
    """Like Ray's handles: it has a finalizer, in which Python drops whatever is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_is_lost_in_a_finalizer_is_heard_at_the_next_poll() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.check()
        handle = _Handle()
        del handle
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is before
