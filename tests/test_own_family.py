"""A user's own family: the one that docs/families.md shows, exactly as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks import forked
from tests.two_nodes import one_head, seekray
from training_kit import Listen, run_here, same

from seekray import experiment_file, parcel
from seekray.checkpoint import Checkpoints
from seekray.config import Experiment
from seekray.errors import ConfigError
from seekray.models import FAMILIES, get_family, module_folder
from seekray.predictor import Predictor
from seekray.report import conclude
from seekray.storage import Storage
from seekray.tracking.spool import Tracker
from seekray.verify import local_doors, verify
from seekray_serve.lifecycle.deploy import build
from seekray_serve.lifecycle.ready import ModelToServe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
BLOCKS = {m[2] or m[1]: m[3] for m in BLOCK.finditer(PAGE.read_text())}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with the page's files, as the command sees it."""
    for name in ("radial.py", "radial.yaml"):
        (tmp_path / name).write_text(BLOCKS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    yield tmp_path
    sys.modules.pop("radial", None)
    get_family.cache_clear()


def _experiment(*changes: str) -> Experiment:
    return experiment_file.load("radial.yaml", ["resources.workers=0", "training.epochs=30", *changes])


def test_the_page_lists_every_family_with_its_tasks() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE.read_text(), re.M)
    assert {name: tuple(tasks.split(", ")) for name, tasks in rows} == {name: get_family(name).tasks for name in FAMILIES}


def test_it_has_forty_lines() -> None:
    assert len(BLOCKS["radial.py"].splitlines()) <= 40


@pytest.mark.parametrize(("source", "target", "task", "metric", "least"), [
    ("sample:wine", "label", "classification", "accuracy", 0.9),
    ("sample:diabetes", "progression", "regression", "r2", 0.3),
])  # fmt: skip
def test_it_trains_resumes_and_leaves_a_bundle_that_every_door_reads(
    folder: Path, source: str, target: str, task: str, metric: str, least: float
) -> None:
    changes = [f"data.source={source}", f"data.target={target}", f"task={task}", "report.importances=false"]
    changes += ["data.split.kind=random", "training.checkpoints.every_steps=5"]
    given = _experiment(*changes)
    prepared = given.prepare()
    with pytest.raises(KeyboardInterrupt):
        run_here(given, prepared, folder / "run", Listen(stop_after=12))
    resumed = run_here(given, prepared, folder / "run")
    same(run_here(given, prepared, folder / "whole"), resumed)
    run = Storage(str(folder / "run"))
    concluded = conclude(given, "0" * 12, run, prepared, resumed, Tracker(run, "t"))
    assert concluded.metrics[metric] >= least
    predictor = Predictor.load(folder / "run" / "bundle")
    assert verify(local_doors(folder / "run" / "bundle"), predictor.sample)["passed"]


def test_two_ranks_equal_one(folder: Path) -> None:
    given = _experiment("training.precision=fp64", "training.batch_size=23")
    forked([{"kind": "run", "experiment": given.as_json(), "folder": str(folder / "two"), "world": 2}])
    ranks = Checkpoints(Storage(str(folder / "two"))).latest()
    assert ranks is not None
    same(run_here(given, None, folder / "one"), ranks, "weights/", tolerance=1e-6)


def test_its_settings_are_checked(folder: Path) -> None:
    with pytest.raises(ConfigError, match="centres"):
        _experiment("model.centres=0")
    with pytest.raises(ConfigError, match="center"):
        _experiment("model.center=3")


def test_replicas_and_jobs_are_told_where_its_module_is(folder: Path, tmp_path: Path) -> None:
    assert module_folder("radial:Radial") == folder
    for installed in ("net", "torch.nn:Linear", "json:loads"):
        assert module_folder(installed) is None
    assert parcel.files(folder)["radial.py"] == folder / "radial.py"
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"family": "radial:Radial", "schema": {"targets": ["y"]}}))
    config = build([ModelToServe("radial", "1", bundle)], tmp_path / "serve.yaml")
    assert config["applications"][-1]["args"]["modules"] == str(folder)


def test_a_module_that_is_nowhere_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot import 'nowhere:Mine': No module named 'nowhere'; .* current folder"):
        get_family("nowhere:Mine")
    assert module_folder("nowhere:Mine") is None


def test_one_without_build_is_refused_by_name(folder: Path) -> None:
    with (folder / "radial.py").open("a") as file:
        file.write("\n\nclass Half(Supervised):\n    pass\n")
    with pytest.raises(ConfigError, match=r"family: cannot import 'radial:Half': .*\bHalf\b.*\bbuild\b") as refused:
        _experiment("family=radial:Half")
    assert refused.value.field == "family"
    assert _experiment().family == "radial:Radial"  # of the same module, with it


# ---- the page's commands, and a job


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _without(folder: Path) -> str:
    return os.pathsep.join(p for p in os.environ["PYTHONPATH"].split(os.pathsep) if p != str(folder))


def _run(script: str, folder: Path, environment: dict[str, str]) -> Any:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.e2e
def test_the_pages_commands_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Trained on a Ray worker, evaluated, predicted, and served by a head that was started from another folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SEEKRAY_", "RAY_", "MLFLOW_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = _without(folder)
    environment["SEEKRAY_HOME"] = str(folder / ".seekray")
    shutil.copy(Path(PAGE.parents[1]) / "examples" / "wine.yaml", elsewhere)
    first = f"seekray train wine.yaml --set resources.workers=0\nseekray serve up wine/1 --port {_port()}\n"
    try:
        started = _run(first, elsewhere, environment)
        assert started.returncode == 0, started.stderr[-3000:]
        done = _run(BLOCKS["sh"], folder, environment)
    finally:
        _run("seekray serve down", folder, environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "on 1 Ray Train worker" in done.stderr
    assert (folder / "answers.parquet").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.e2e
def test_it_goes_along_with_a_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", _without(folder))  # the cluster must not find it here
    with one_head() as head:
        environment = dict(head.environment)
        at = ["--address", head.address]
        done = seekray("submit", "train", "radial.yaml", *at, "--set", "training.epochs=3", cwd=folder, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        (bundle,) = folder.glob(".seekray/storage/runs/*/bundle")
        data = ["--data", "sample:wine"]
        measured = seekray("submit", "evaluate", str(bundle), *data, *at, cwd=folder, env=environment)
        assert measured.returncode == 0, measured.stderr[-4000:]
        assert '"balanced_accuracy"' in measured.stderr
