"""Training over two nodes that share a network and object storage, no disk, and have no seekray installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.two_nodes import BIN, ROOT, Cluster, can_have_namespaces, seekray, two_nodes

from seekray import bundle
from seekray.storage import Storage

pytestmark = [
    pytest.mark.ray,
    pytest.mark.e2e,
    pytest.mark.skipif(not can_have_namespaces(), reason="needs root, iproute2 and namespaces"),
]
SETTINGS = ["resources.workers=2", "training.epochs=12", "training.checkpoints.min_interval=0", "report.importances=false"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: one experiment."""
    folder = tmp_path_factory.mktemp("laptop")
    shutil.copy(ROOT / "examples" / "digits.yaml", folder)
    return folder


@pytest.fixture
def objects(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The cluster's storage as this process sees it."""
    for name, value in cluster.laptop.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    return Storage(cluster.storage)


def command(cluster: Cluster, *settings: str) -> list[str]:
    sets = [part for s in settings for part in ("--set", s)]
    return ["submit", "train", "digits.yaml", "--address", cluster.address, *sets]


def answer(log: str) -> dict[str, Any]:
    """The document that the job printed into its log."""
    found: dict[str, Any] = json.loads(log[log.index("\n{\n") : log.rindex("\n}\n") + 3])
    return found


class Watch(threading.Thread):
    """On which node each Ray Train worker was seen."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.seen, self.over = cluster, dict[int, int](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.3):
            self.seen |= self.cluster.train_workers()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster, laptop: Path) -> tuple[dict[str, Any], dict[int, int]]:
    """What a training with one worker on each node answers, and where its workers were."""
    with Watch(cluster) as watch:
        env = cluster.laptop | {"SEEKRAY_STORAGE": cluster.storage}
        done = seekray(*command(cluster, *SETTINGS), cwd=laptop, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return answer(done.stderr), watch.seen


def test_a_worker_on_each_node_leaves_a_whole_bundle_in_storage(
    uninterrupted: tuple[dict[str, Any], dict[int, int]], objects: Storage, tmp_path: Path
) -> None:
    result, workers = uninterrupted
    assert sorted(workers.values()) == [0, 1]
    assert result["metrics"]["accuracy"] > 0.9
    assert result["bundle"] == f"{objects.uri}/runs/{result['run_id']}/bundle"
    objects.download(f"runs/{result['run_id']}/bundle", tmp_path / "bundle")
    bundle.check(tmp_path / "bundle")


def test_sync_brings_the_run_into_the_laptops_registry(
    uninterrupted: tuple[dict[str, Any], dict[int, int]], cluster: Cluster, laptop: Path
) -> None:
    synced = seekray("sync", cluster.storage, "--json", cwd=laptop, env=cluster.laptop)
    assert synced.returncode == 0, synced.stderr
    run_id = uninterrupted[0]["run_id"]
    assert run_id in [r["run_id"] for r in json.loads(synced.stdout)["runs"] if r["version"]]
    models = seekray("models", "list", "--json", cwd=laptop, env=cluster.laptop)
    assert [m["name"] for m in json.loads(models.stdout)["models"]] == ["digits"], models.stderr
    runs = seekray("runs", "list", "--json", cwd=laptop, env=cluster.laptop)
    found = {r["run_id"]: r for r in json.loads(runs.stdout)["runs"]}
    assert found[run_id]["status"].lower() == "finished"
    again = seekray("sync", cluster.storage, "--json", cwd=laptop, env=cluster.laptop)
    assert sum(r["sent"] for r in json.loads(again.stdout)["runs"]) == 0


@pytest.mark.slow
def test_storage_on_a_nodes_own_disk_is_refused(cluster: Cluster, laptop: Path) -> None:
    env = cluster.laptop | {"SEEKRAY_STORAGE": "/tmp/seekray-storage"}
    done = seekray(*command(cluster, "resources.workers=2", "training.epochs=1"), cwd=laptop, env=env)
    assert done.returncode == 1, done.stderr[-4000:]
    assert "is not visible from node" in done.stderr
    assert "s3://" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_storage_nothing_is_sent(cluster: Cluster, laptop: Path) -> None:
    done = seekray(*command(cluster), cwd=laptop, env=cluster.laptop)
    assert done.returncode == 2
    assert "SEEKRAY_STORAGE" in done.stderr
    assert "raysubmit" not in done.stderr


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_metrics_are_the_same(
    uninterrupted: tuple[dict[str, Any], dict[int, int]], cluster: Cluster, laptop: Path, objects: Storage
) -> None:
    before = set(objects.list("runs"))
    env = cluster.laptop | {"SEEKRAY_STORAGE": cluster.storage}
    with Watch(cluster) as watch:
        process = subprocess.Popen(
            [BIN / "seekray", *command(cluster, *SETTINGS)], cwd=laptop, env=env, stderr=subprocess.PIPE, text=True
        )
        victim = _victim(cluster, objects, before)
        os.kill(victim, signal.SIGKILL)
        _, log = process.communicate(timeout=180)
    assert process.returncode == 0, log[-4000:]
    assert len([node for node in watch.seen.values() if node == 1]) == 2, "no second worker on the node of the killed one"
    assert answer(log)["metrics"] == uninterrupted[0]["metrics"]


def _victim(cluster: Cluster, objects: Storage, before: set[str]) -> int:
    """The worker on the second node, once the run has a checkpoint and is not over."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for run in set(objects.list("runs")) - before:
            there = [pid for pid, node in cluster.train_workers().items() if node == 1]
            if there and len(objects.list(f"runs/{run}/checkpoints")) >= 2:
                return there[0]
        time.sleep(0.1)
    raise AssertionError("the run left no checkpoint in two minutes")
