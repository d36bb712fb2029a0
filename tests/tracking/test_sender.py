"""The sending process with real processes: a driver that dies, a real `mlflow server` that is killed and comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from seekray.errors import TrackingError
from seekray.model_ref import resolve
from seekray.settings import Settings
from seekray.tracking import client
from seekray.tracking.carrier import progress, result, send
from seekray.tracking.runs import list_runs
from seekray.tracking.sender import start_sender
from seekray.tracking.sync import sync

from . import conftest as kit

pytestmark = pytest.mark.e2e

DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from seekray.settings import read_settings
from seekray.tracking.sender import start_sender
from tracking import conftest as kit
where = read_settings({"SEEKRAY_HOME": sys.argv[2]})
run = kit.make_run(where)
run.begin()
with start_sender(run.storage, where) as sender:
    for step in range(1, 4):
        run.step(step)
    print(sender.pid, flush=True)
    time.sleep(120)
"""


def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def test_beside_a_run_with_the_embedded_store(where: Settings, bundle: Path) -> None:
    run = kit.make_run(where)
    run.begin()
    with start_sender(run.storage, where) as sender:
        process = psutil.Process(sender.pid)
        assert os.getsid(sender.pid) == sender.pid  # no terminal: Ctrl-C is the driver's
        for step in range(1, 7):
            run.step(step)
        until(lambda: progress(run.storage, where)["mlflow_run_id"] is not None)  # while the run goes on
        assert process.nice() == min(19, psutil.Process().nice() + 15)  # as Ray's workers: it does not go before them
        process.send_signal(signal.SIGINT)
        run.end(bundle)
        sent = sender.wait()
    assert (sent.version, sent.remaining) == ("1", 0)
    assert not process.is_running()
    kit.check_whole(where, run.run_id)


def test_a_driver_killed_leaves_no_sender_and_a_killed_run(where: Settings, bundle: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DRIVER, str(kit.ROOT / "tests"), str(where.home)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert driver.stdout is not None
    sender = psutil.Process(int(driver.stdout.readline()))
    driver.kill()
    driver.wait()
    driver.stdout.close()  # the sender holds no pipe of the driver
    until(lambda: not sender.is_running() or sender.status() == psutil.STATUS_ZOMBIE)
    run = kit.make_run(where)
    there = kit.found(where, run.run_id)
    assert there["status"] == "KILLED"
    assert [step for step, _ in there["points"]["loss"]] == [1, 2, 3]
    run.begin()
    for step in range(3, 7):
        run.step(step)
    run.end(bundle)
    sync(where)
    kit.check_whole(where, run.run_id)


@pytest.mark.slow  # a sender goes on by itself in the middle as at the start, which the next test has
def test_a_server_away_at_the_start_killed_in_the_middle_and_back_before_the_end(
    remote: Settings, server: kit.Server, bundle: Path
) -> None:
    run = kit.make_run(remote)
    run.begin()
    with start_sender(run.storage, remote) as sender:
        began = time.monotonic()
        run.step(1)
        assert time.monotonic() - began < 0.5
        time.sleep(1)
        server.start()
        until(lambda: progress(run.storage, remote)["segment"] >= 2)
        run.step(2)
        server.kill()
        for step in (3, 4):
            run.step(step)
            time.sleep(0.5)
        server.start()
        for step in (5, 6):
            run.step(step)
        run.end(bundle)
        sent = sender.wait()
    assert (sent.version, sent.remaining) == ("1", 0)
    kit.check_whole(remote, run.run_id)


def test_a_server_away_at_the_start_killed_in_the_middle_and_back_after_the_end(
    remote: Settings, server: kit.Server, bundle: Path
) -> None:
    run = kit.make_run(remote)
    run.begin()
    with start_sender(run.storage, remote) as sender:
        began = time.monotonic()
        run.step(1)
        assert time.monotonic() - began < 0.5
        time.sleep(1)
        server.start()
        for step in (2, 3):
            run.step(step)
        until(lambda: progress(run.storage, remote)["segment"] >= 2)
        server.kill()
        for step in (4, 5, 6):
            run.step(step)
        run.end(bundle)
        began = time.monotonic()
        sent = sender.wait()
        assert time.monotonic() - began < 25  # a server that is away is not waited for
    assert sent.remaining > 0
    assert sent.version is None
    assert sync(remote)[0].error is not None
    server.start()
    assert sync(remote)[0].version == "1"
    assert sync(remote) == []
    kit.check_whole(remote, run.run_id)


def test_a_whole_run_without_a_server_then_sync_from_another_place(
    remote: Settings, server: kit.Server, bundle: Path, tmp_path: Path
) -> None:
    """A cluster's job that had an embedded store of its own: the laptop's server has nothing of it yet."""
    import dataclasses

    elsewhere = dataclasses.replace(remote, storage=str(tmp_path / "shared"))
    run = kit.make_run(elsewhere)
    run.write(bundle)
    assert result(run.storage, remote).remaining > 0
    server.start()
    sent = sync(remote, str(tmp_path / "shared"))
    assert [(s.run_id, s.version, s.remaining) for s in sent] == [(run.run_id, "1", 0)]
    kit.check_whole(remote, run.run_id)
    # The laptop sees nothing of that storage: the bundle comes from the server, into the cache.
    model = resolve("pets/1", remote)
    assert model.bundle.parent == remote.home / "cache" / "bundles"
    (model.bundle / "manifest.json").unlink()  # as a download that was cut off
    assert resolve(f"runs:/{run.run_id}", remote).bundle == model.bundle


def test_ctrl_c_leaves_no_process(where: Settings) -> None:
    run = kit.make_run(where)
    run.begin()
    pid = 0
    with contextlib.suppress(KeyboardInterrupt), start_sender(run.storage, where) as sender:
        pid = sender.pid
        run.tracker.finish("killed", "interrupted by the user")
        raise KeyboardInterrupt
    assert not psutil.pid_exists(pid)
    assert kit.found(where, run.run_id)["status"] == "KILLED"


def test_a_server_that_hangs_costs_seconds(where: Settings, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts and never answers: the run ends soon, its points wait, and a real store gets them later."""
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = dataclasses.replace(
            where, tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}", tracking_is_embedded=False
        )
        began = time.monotonic()
        assert not client.reachable(hung)
        run = kit.make_run(hung, "r9")
        run.write(bundle)
        with pytest.raises(TrackingError, match="does not answer"):
            send(run.storage, hung)
        assert [r["run_id"] for r in list_runs(hung)] == ["r9"]
        assert [r.error for r in sync(hung)] == [f"{hung.tracking_uri} does not answer"]
        assert time.monotonic() - began < 10
    assert [r.remaining for r in sync(where)] == [0]
    kit.check_whole(where, "r9")
