"""A bundle with every kind of column, runs in a folder of their own, and a real tracking server."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seekray.session import Point
from seekray.settings import Settings, read_settings
from seekray.storage import Storage
from seekray.tracking import client as mlflow_client
from seekray.tracking import registry
from seekray.tracking.spool import Tracker

ROOT = Path(__file__).parents[2]
EXPERIMENT = {"name": "pets", "training": {"epochs": 2, "lr": 0.01}, "model": {"hidden_size": [8]}}


def rows(count: int = 120) -> list[dict[str, Any]]:
    """Rows with whole numbers that are missing here and there, and one column of each kind."""
    draw = random.Random(0)
    return [
        {
            "age": None if i % 11 == 3 else draw.randint(1, 15),
            "weight": round(draw.uniform(1, 40), 3),
            "breed": None if i % 13 == 5 else draw.choice(["cat", "dog", "hen"]),
            "chip": draw.choice([7, 8, 9]),
            "tame": None if i % 17 == 2 else draw.random() < 0.5,
            "seen": f"2026-0{1 + i % 9}-11T10:00:00",
            "place": [draw.random(), draw.random()],
            "label": "yes" if draw.random() < 0.5 else "no",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `net` bundle of the mixed table, untrained."""
    import torch

    from seekray import bundle as bundles
    from seekray.checkpoint import named_tensors
    from seekray.data.options import Data
    from seekray.data.tables.prepare import prepare
    from seekray.models import get_family
    from seekray.predictor import Predictor

    folder = tmp_path_factory.mktemp("bundle")
    (folder / "pets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    kinds = {
        "age": "numeric", "weight": "numeric", "breed": "categorical", "chip": "categorical", "tame": "boolean",
        "seen": "timestamp", "place": "vector",
    }  # fmt: skip
    prepared = prepare(Data(source=str(folder / "pets.jsonl"), target="label", features=kinds), "classification")
    torch.manual_seed(0)
    family = get_family("net")
    config = family.Config(hidden_size=[8])
    modules = family.build(config, prepared.schema)
    info = {
        "name": "pets", "run_id": "20261124-000000-pets-0000", "family": "net", "task": "classification",
        "model": config.model_dump(mode="json"), "fingerprint": prepared.fingerprint,
        "held_out": prepared.held_out_name, "metrics": {"accuracy": 0.5, "log_loss": 0.7}, "intervals": {}, "serve": {},
    }  # fmt: skip
    predictor = Predictor(modules, prepared.schema, info, {})
    sample = bundles.sample_rows(prepared.held_out.slice(0, 8).to_pylist(), list(kinds))
    answers = predictor.predict(predictor.schema.columns_from_rows(sample)).columns()
    tensors = named_tensors(modules)
    bundles.write(Storage(str(folder)), "bundle", info, prepared.schema, tensors, {"rows": sample, "answers": answers})
    return folder / "bundle"


def variant(bundle: Path, target: Path, **info: Any) -> Path:
    """A bundle of its own hash: `info` changed, the manifest anew."""
    import hashlib

    shutil.copytree(bundle, target)
    head = json.loads((target / "bundle.json").read_text()) | info
    (target / "bundle.json").write_text(json.dumps(head))
    files = {
        n: hashlib.sha256((target / n).read_bytes()).hexdigest() for n in ("bundle.json", "model.safetensors", "sample.json")
    }
    (target / "manifest.json").write_text(json.dumps({"files": files}))
    return target


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded store whose tables are made: that takes MLflow two seconds, once is enough."""
    home = tmp_path_factory.mktemp("home")
    mlflow_client.client(read_settings({"SEEKRAY_HOME": str(home)})).search_experiments()
    return home


@pytest.fixture
def where(tmp_path: Path, empty_home: Path) -> Settings:
    """Settings of an embedded store of the test's own."""
    shutil.copytree(empty_home, tmp_path / "home")
    return read_settings({"SEEKRAY_HOME": str(tmp_path / "home")})


@dataclasses.dataclass
class Run:
    """A run's storage, its pen, and what it wrote."""

    storage: Storage
    tracker: Tracker
    run_id: str

    def write(self, bundle: Path | None = None, register: str | None = "pets", steps: int = 6) -> None:
        """A whole run."""
        self.begin()
        for step in range(1, steps + 1):
            self.step(step)
        self.end(bundle, register)

    def begin(self) -> None:
        self.tracker.start("pets", EXPERIMENT, {"git_commit": "abc", "family": "net"})

    def step(self, step: int) -> None:
        now = int(time.time() * 1000)
        self.tracker.points([Point("loss", 1 / step, step, now), Point("validation_accuracy", step / 10, step, now)])

    def end(self, bundle: Path | None = None, register: str | None = "pets") -> None:
        self.tracker.text("model_card.md", "# pets")
        if bundle is not None:
            self.tracker.file(bundle / "sample.json", "plots/sample.json")
            self.storage.upload(bundle, "bundle")
            self.tracker.model("bundle", register)
        self.tracker.finish("finished")


def make_run(where: Settings, run_id: str = "20261124-000000-pets-0000") -> Run:
    """A run of an id, or its pen again."""
    storage = Storage(where.storage).child("runs").child(run_id)
    return Run(storage, Tracker(storage, run_id), run_id)


def promote(number: str, where: Settings, **more: Any) -> None:
    """Make a version of `pets` the champion."""
    registry.set_alias("pets", "champion", number, more.pop("action", "promote"), more.pop("reason", None), where, **more)


def found(where: Settings, run_id: str) -> dict[str, Any]:
    """All that the server has of a run, failing where anything is there twice."""
    client = mlflow_client.client(where)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`seekray.run_id` = '{run_id}'")
    assert len(runs) == 1, f"{len(runs)} runs"
    run = runs[0]
    points = {k: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics}
    for key, values in points.items():
        assert len(values) == len({step for step, _ in values}), f"{key}: a step twice"
    versions = [v for m in client.search_registered_models() for v in client.search_model_versions(f"name = '{m.name}'")]

    def files(path: str | None = None) -> list[str]:
        listed = client.list_artifacts(run.info.run_id, path)
        return [f for a in listed for f in (files(a.path) if a.is_dir else [a.path])]

    return {
        "run": run, "status": run.info.status, "points": {k: sorted(v) for k, v in points.items()},
        "versions": [v for v in versions if v.run_id == run.info.run_id], "files": files(),
    }  # fmt: skip


def check_whole(where: Settings, run_id: str, steps: int = 6) -> dict[str, Any]:
    """Everything of `Run.write` is there, once."""
    there = found(where, run_id)
    assert there["status"] == "FINISHED"
    assert there["points"]["loss"] == [(s, 1 / s) for s in range(1, steps + 1)]
    assert there["points"]["validation_accuracy"] == [(s, s / 10) for s in range(1, steps + 1)]
    assert {"experiment.json", "model_card.md", "plots/sample.json", "model/MLmodel"} <= set(there["files"])
    assert "model/data/bundle/model.safetensors" in there["files"]
    assert len(there["versions"]) == 1
    return there


class Server:
    """A real `mlflow server` that can be killed and brought back with its database and port."""

    def __init__(self, folder: Path, database: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        shutil.copy(database, folder / "server.db")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            # The jobs of MLflow's own are four more processes, of no use here.
            quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=quiet, start_new_session=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.uri + "/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """As a crash would, all its processes at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, empty_home: Path) -> Iterator[Server]:
    """A server that is not started yet."""
    folder = tmp_path / "server"
    folder.mkdir()
    made = Server(folder, empty_home / "mlflow.db")
    yield made
    made.kill()


@pytest.fixture
def remote(where: Settings, server: Server) -> Settings:
    """Settings of that server."""
    return dataclasses.replace(where, tracking_uri=server.uri, tracking_is_embedded=False)
