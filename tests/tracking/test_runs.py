"""Runs as lists and side by side, with a server, without one, and of other machines."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from seekray.errors import ModelNotFoundError
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking import places, runs
from seekray.tracking.carrier import send
from seekray.tracking.pages import ui_command
from seekray.tracking.spool import Tracker
from seekray.tracking.sync import sync

from . import conftest as kit


def test_sent_unsent_and_running(where: Settings) -> None:
    for number in (1, 2):
        run = kit.make_run(where, f"20261124-00000{number}-pets-0000")
        run.write()
        if number == 1:
            send(run.storage, where)
    kit.make_run(where, "20261124-000003-pets-0000").begin()
    listed = runs.list_runs(where)
    assert [r["run_id"][14] for r in listed] == ["3", "2", "1"]
    assert [r["status"] for r in listed] == ["running", "finished", "finished"]
    assert listed[1]["metrics"] == {"validation_accuracy": 0.6}
    assert set(listed[0]) == {"run_id", "name", "status", "started", "metrics"}


def test_a_run_of_another_machine(where: Settings) -> None:
    run = kit.make_run(where)
    run.write()
    send(run.storage, where)
    shutil.rmtree(run.storage.path())
    assert runs.list_runs(where)[0]["run_id"] == run.run_id
    shown = runs.show_run(run.run_id, where)
    assert shown["settings"]["training.lr"] == "0.01"
    assert shown["history"]["loss"][:2] == [(1, 1.0), (2, 0.5)]


def test_without_a_server(remote: Settings) -> None:
    kit.make_run(remote).write()
    assert [r["status"] for r in runs.list_runs(remote)] == ["finished"]


def test_a_look_makes_no_database(where: Settings) -> None:
    fresh = dataclasses.replace(where, home=where.home.parent / "fresh", storage=str(where.home.parent / "fresh" / "storage"))
    assert runs.list_runs(fresh) == []
    assert not fresh.home.exists()


def test_compare(where: Settings) -> None:
    kit.make_run(where, "a").write(steps=3)
    other = kit.make_run(where, "b")
    other.tracker.start("pets", kit.EXPERIMENT | {"training": {"epochs": 2, "lr": 0.5}}, {})
    other.step(1)
    found = runs.compare("a", "b", where)
    assert found["settings"] == {"training.lr": {"a": 0.01, "b": 0.5}}
    assert found["metrics"]["validation_accuracy"] == {"a": 0.3, "b": 0.1}
    assert len(found["history"]["a"]["loss"]) == 3


def test_not_there(where: Settings) -> None:
    kit.make_run(where, "20261124-000001-pets-0000").write()
    with pytest.raises(ModelNotFoundError, match="did you mean '20261124-000001-pets-0000'"):
        runs.show_run("20261124-000001-pets-000", where)
    with pytest.raises(ModelNotFoundError):
        runs.show_run("../..", where)


def test_runs_of_an_experiment_with_its_own_storage_are_found(where: Settings, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "own")).child("runs").child("r1")
    run = kit.Run(storage, Tracker(storage, "r1"), "r1")
    run.write()
    assert runs.list_runs(where) == []
    places.remember(storage, where)
    assert [r["run_id"] for r in runs.list_runs(where)] == ["r1"]
    assert [s.run_id for s in sync(where)] == ["r1"]
    assert sync(where) == []


def test_the_pages_bind_loopback(where: Settings) -> None:
    command = ui_command(where, 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert where.tracking_uri in command
