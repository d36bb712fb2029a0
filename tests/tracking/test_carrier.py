"""From the spool to MLflow: all of it, in order, once, whatever breaks on the way."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from seekray.errors import TrackingError
from seekray.settings import Settings
from seekray.tracking import carrier
from seekray.tracking import client as mlflow_client
from seekray.tracking.carrier import is_settled, send

from . import conftest as kit


def test_a_run_arrives_whole(where: Settings, bundle: Path) -> None:
    run = kit.make_run(where)
    run.write(bundle)
    sent = send(run.storage, where)
    assert (sent.version, sent.remaining, sent.problems) == ("1", 0, ())
    there = kit.check_whole(where, run.run_id)
    params = there["run"].data.params
    assert params["training.lr"] == "0.01"
    assert params["model.hidden_size"] == "[8]"
    assert there["run"].data.tags["seekray.git_commit"] == "abc"
    assert there["versions"][0].tags["seekray.run_id"] == run.run_id
    assert is_settled(run.storage, where)
    assert send(run.storage, where).sent == 0


def test_sending_all_again_changes_nothing(where: Settings, bundle: Path) -> None:
    run = kit.make_run(where)
    run.write(bundle)
    send(run.storage, where)
    for name in run.storage.list("spool"):
        if name.startswith("sent-"):
            run.storage.delete(f"spool/{name}")
    assert send(run.storage, where).version == "1"
    kit.check_whole(where, run.run_id)


def test_a_crash_after_any_event_doubles_nothing(where: Settings, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = kit.make_run(where)
    run.write(bundle, steps=3)
    carry = carrier.Carrier.carry
    crashes = 0

    def crash_once_each(self: carrier.Carrier, event: Any) -> None:
        nonlocal crashes
        carry(self, event)
        if str(event) not in seen:
            seen.add(str(event))
            crashes += 1
            raise OSError("the sender died here")

    seen: set[str] = set()
    monkeypatch.setattr(carrier.Carrier, "carry", crash_once_each)
    while True:
        try:
            send(run.storage, where)
            break
        except TrackingError:
            pass
    assert crashes == len(run.tracker._spool.events())
    kit.check_whole(where, run.run_id, steps=3)


def test_two_senders_at_once(where: Settings, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the lock does not reach the other one, as between machines."""
    import contextlib

    run = kit.make_run(where)
    run.write(bundle)
    meet = threading.Barrier(2)

    @contextlib.contextmanager
    def no_lock(path: Path) -> Any:
        if path.name != "store.lock":
            meet.wait(10)
        yield

    monkeypatch.setattr(carrier, "locked", no_lock)
    errors: list[Exception] = []

    def work() -> None:
        try:
            send(run.storage, where)
        except TrackingError as error:  # SQLite may be busy; the next try goes on
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    monkeypatch.undo()
    send(run.storage, where)
    kit.check_whole(where, run.run_id)


def test_the_lock_lets_one_sender_at_a_time(where: Settings) -> None:
    run = kit.make_run(where)
    run.write()
    code = "import sys, fcntl, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    code += "print('held', flush=True); time.sleep(60)"
    path = Path(run.storage.path("spool/.lock"))
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    done = threading.Event()
    thread = threading.Thread(target=lambda: (send(run.storage, where), done.set()))
    thread.start()
    assert not done.wait(0.5)
    holder.kill()  # its lock goes with it
    holder.wait()
    thread.join(30)
    assert done.is_set()


def test_a_resume_goes_on_in_the_same_run(where: Settings, bundle: Path) -> None:
    run = kit.make_run(where)
    run.begin()
    for step in range(1, 5):
        run.step(step)
    run.tracker.finish("killed", "interrupted")
    send(run.storage, where)
    assert kit.found(where, run.run_id)["status"] == "KILLED"
    again = kit.make_run(where)
    again.begin()
    for step in range(3, 7):  # the checkpoint was of step 2
        again.step(step)
    send(run.storage, where)
    assert kit.found(where, run.run_id)["status"] == "RUNNING"
    again.end(bundle)
    send(run.storage, where)
    kit.check_whole(where, run.run_id)


def test_a_driver_that_is_gone_leaves_a_killed_run(where: Settings) -> None:
    script = (
        "import sys; from seekray.storage import Storage; from seekray.tracking.spool import Tracker; "
        "Tracker(Storage(sys.argv[1]), 'r1').start('pets', {}, {}); import os; os.kill(os.getpid(), 9)"
    )
    run = kit.make_run(where, "r1")
    subprocess.run([sys.executable, "-c", script, run.storage.uri], check=False)
    assert not is_settled(run.storage, where)
    send(run.storage, where)
    assert kit.found(where, "r1")["status"] == "KILLED"
    assert is_settled(run.storage, where)
    again = kit.make_run(where, "r1")
    again.begin()
    again.end()
    send(run.storage, where)
    assert kit.found(where, "r1")["status"] == "FINISHED"


def test_what_the_server_refuses_is_noted_and_passed(where: Settings) -> None:
    run = kit.make_run(where)
    run.begin()
    run.tracker.model("no-such-bundle", "pets")
    run.tracker.text("../outside", "x")
    run.step(1)
    run.tracker.finish("finished")
    sent = send(run.storage, where)
    assert sent.remaining == 0
    assert len(sent.problems) == 2
    assert "no-such-bundle" in sent.problems[0]
    assert kit.found(where, run.run_id)["status"] == "FINISHED"


def test_odd_names_and_long_values_arrive(where: Settings) -> None:
    from seekray.session import Point

    run = kit.make_run(where)
    run.tracker.start("pets", {"data": {"π @ x": "y" * 10_000}}, {"note": "z" * 20_000})
    now = int(time.time() * 1000)
    run.tracker.points([Point("recall@0.5 (dog)", 0.5, 1, now), Point("loss", float("nan"), 1, now)])
    run.tracker.finish("failed", "m" * 20_000)
    assert send(run.storage, where).problems == ()
    there = kit.found(where, run.run_id)
    assert there["status"] == "FAILED"
    assert len(there["points"]) == 2


def test_a_server_that_lost_its_memory_is_told_all_again(where: Settings, bundle: Path) -> None:
    run = kit.make_run(where)
    run.write(bundle)
    name = f"spool/sent-{mlflow_client.server_key(where)}.json"
    lost = {"segment": 5, "mlflow_run_id": "0" * 32, "version": "7", "status": "running", "driver": None, "problems": []}
    run.storage.write_json(name, lost)
    assert send(run.storage, where).version == "1"
    kit.check_whole(where, run.run_id)


def test_a_new_embedded_database_has_nothing_yet(where: Settings) -> None:
    run = kit.make_run(where)
    run.write()
    send(run.storage, where)
    assert is_settled(run.storage, where)
    (where.home / "mlflow.db").unlink()
    assert not is_settled(run.storage, where)
    assert run.storage.exists("spool/00000001.json")


def test_nobody_answers(where: Settings, remote: Settings) -> None:
    run = kit.make_run(where)
    run.write()
    began = time.monotonic()
    with pytest.raises(TrackingError, match="does not answer"):
        send(run.storage, remote)
    assert time.monotonic() - began < 3
    assert not is_settled(run.storage, remote)
    assert not mlflow_client.reachable(remote)
