"""The spool itself: quick, ordered, light to import."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from seekray.errors import TrackingError
from seekray.session import Point
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking.spool import NullTracker, Spool, Tracker, state

from . import conftest as kit


def test_events_keep_their_order(where: Settings, bundle: Path) -> None:
    run = kit.make_run(where)
    run.write(bundle, steps=2)
    kinds = [event["kind"] for event in Spool(run.storage).events()]
    assert kinds == ["start", "points", "points", "text", "file", "model", "finish"]


def test_state_without_a_server(where: Settings) -> None:
    run = kit.make_run(where, "r1")
    assert state(run.storage)["status"] == "unknown"
    run.begin()
    run.step(1)
    run.tracker.tags({"note": "x"})
    assert state(run.storage)["status"] == "running"
    run.tracker.finish("failed", "no luck")
    found = state(run.storage)
    assert (found["run_id"], found["name"], found["status"], found["message"]) == ("r1", "pets", "failed", "no luck")
    assert found["metrics"] == {"loss": 1.0, "validation_accuracy": 0.1}
    assert found["tags"]["note"] == "x"
    run.begin()
    assert (state(run.storage)["status"], state(run.storage)["message"]) == ("running", "")


def test_a_resume_tells_no_step_twice(where: Settings) -> None:
    run = kit.make_run(where)
    run.begin()
    for step in (1, 2, 3):
        run.step(step)
    again = kit.make_run(where)
    again.tracker.points([Point("loss", 9.0, step, 1) for step in (2, 3, 4)] + [Point("new", 1.0, 1, 1)])
    told = [(p["key"], p["step"]) for e in Spool(run.storage).events() if e["kind"] == "points" for p in e["points"]]
    assert len(told) == len(set(told))
    assert ("loss", 4) in told
    assert ("new", 1) in told


class Slow(Storage):
    """A storage that is not local, and takes its time."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.is_local = False
        self.hold = threading.Event()
        self.fails = 0

    def write_json(self, name: str, value: Any) -> None:
        assert self.hold.wait(10)
        if self.fails:
            self.fails -= 1
            raise OSError("the bucket is away")
        Storage(self.uri).write_json(name, value)


def test_a_remote_storage_does_not_hold_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seekray.tracking.spool.time.sleep", lambda seconds: None)
    storage = Slow(str(tmp_path / "run"))
    tracker = Tracker(storage, "run")
    began = time.monotonic()
    tracker.start("pets", {}, {})
    for step in range(100):
        tracker.points([Point("loss", 1.0, step, 1)])
    assert time.monotonic() - began < 1
    storage.fails = 3
    storage.hold.set()
    tracker.finish("finished")
    kinds = [e["kind"] for e in Spool(Storage(storage.uri)).events()]
    assert kinds == ["start", *["points"] * 100, "finish"]


def test_a_remote_storage_that_stays_away_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seekray.tracking.spool.time.sleep", lambda seconds: None)
    storage = Slow(str(tmp_path / "run"))
    storage.fails = 1000
    storage.hold.set()
    tracker = Tracker(storage, "run")
    tracker.start("pets", {}, {})
    with pytest.raises(TrackingError, match="the bucket is away"):
        tracker.finish("finished")


def test_the_null_tracker_writes_nothing(tmp_path: Path) -> None:
    tracker = NullTracker()
    tracker.start("pets", {}, {})
    tracker.points([Point("loss", 1.0, 1, 1)])
    tracker.text("a", "b")
    tracker.file(tmp_path / "nothing", "a")
    tracker.model("bundle", None)
    tracker.tags({})
    tracker.finish("finished")


@pytest.mark.parametrize("module", ["spool", "sender", "runs", "registry", "sync", "card", "artifacts", "versions"])
def test_light_to_import(module: str) -> None:
    """Neither MLflow nor torch is imported before it is needed: `--help` and a training's start are quick."""
    code = (
        f"import sys, seekray.tracking.{module}; print([m for m in ('mlflow', 'torch', 'pandas', 'ray') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
