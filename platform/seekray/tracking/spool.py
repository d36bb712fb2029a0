"""The spool: what should reach MLflow, as ordered events in a run's storage. Imports no MLflow and no torch.

`spool/00000001.json`, … are lists of events, never changed once written; `spool/sent-KEY.json` says
how far the server KEY is. Points carry their own times, so that sending one twice changes nothing.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from seekray.errors import TrackingError
from seekray.storage import Storage
from seekray.tracking.events import Driver, Event, PointJson, Start, Status

if TYPE_CHECKING:
    from seekray.session import Point

WRITE_TRIES = 5


class Spool:
    """The events of one run."""

    def __init__(self, run: Storage) -> None:
        self.run = run

    def segments(self) -> list[int]:
        """Numbers of the segments there are, in order."""
        return [int(n.removesuffix(".json")) for n in self.run.list("spool") if n.endswith(".json") and n[0].isdigit()]

    def append(self, *events: Event) -> None:
        """Write one segment after the last."""
        number = max(self.segments(), default=0) + 1
        self.run.write_json(_segment(number), list(events))

    def read(self, number: int) -> list[Event]:
        """The events of a segment."""
        found: list[Event] = self.run.read_json(_segment(number))
        return found

    def events(self) -> list[Event]:
        """All events."""
        return [event for number in self.segments() for event in self.read(number)]


def _segment(number: int) -> str:
    return f"spool/{number:08d}.json"


class Tracker:
    """A run's pen: every call is a quick write to the spool, and never waits for a server.

    On a remote storage a thread of its own writes, so that a training step does not wait for that
    network either; `finish` waits for it.

    start: the run's first event as its driver told it, for a process that is not the driver; it goes with the first word.
    """

    def __init__(self, run: Storage, run_id: str, start: Start | None = None) -> None:
        self._run, self._run_id = run, run_id
        self._spool = Spool(run)
        self._last: dict[str, int] = {}
        earlier = self._spool.events()
        self._number = max(self._spool.segments(), default=0)
        self._files = sum(event["kind"] == "file" for event in earlier)
        for event in earlier:
            if event["kind"] == "points":
                self._note(event["points"])
        drivers = [event["driver"] for event in earlier if event["kind"] == "start"]
        self._before: list[Event] = [start] if start is not None and drivers[-1:] != [start["driver"]] else []
        self._writer = None if run.is_local else ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._pending: list[Future[None]] = []

    def _note(self, points: Sequence[PointJson]) -> None:
        for point in points:
            self._last[point["key"]] = max(point["step"], self._last.get(point["key"], -1))

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """The run begins, or goes on: after earlier events the same MLflow run continues."""
        self._append(start_of(self._run_id, name, params, tags))

    def points(self, new: Sequence[Point]) -> None:
        """Points; those of steps that were told before (a resume goes over them again) are left out."""
        fresh: list[PointJson] = [
            {"key": p.key, "value": p.value, "step": p.step, "time_ms": p.time_ms}
            for p in new
            if p.step > self._last.get(p.key, -1)
        ]
        if fresh:
            self._append({"kind": "points", "points": fresh})
            self._note(fresh)

    def text(self, name: str, content: str) -> None:
        """A text artifact."""
        self._append({"kind": "text", "name": name, "content": content})

    def file(self, path: Path, artifact: str) -> None:
        """A file artifact, copied into the run's storage."""
        self._files += 1
        kept = f"spool/files/{self._files:04d}-{path.name}"
        self._run.write_bytes(kept, path.read_bytes())
        self._append({"kind": "file", "path": kept, "artifact": artifact})

    def tags(self, tags: Mapping[str, str]) -> None:
        """What is learned of the run on its way, kept as `seekray.<key>`."""
        self._append({"kind": "tags", "tags": dict(tags)})

    def model(self, bundle: str, register: str | None) -> None:
        """The bundle, a folder in the run's storage; `register` names it in the registry."""
        self._append({"kind": "model", "bundle": bundle, "register": register})

    def finish(self, status: Status, message: str = "") -> None:
        """The end. Raises TrackingError where something could not be written to a remote storage."""
        self._append({"kind": "finish", "status": status, "message": message, "time_ms": _now()})
        if self._writer is not None:
            self._writer.shutdown(wait=True)
        self.flush()

    def flush(self) -> None:
        """Wait until all is written. Raises TrackingError where something could not be."""
        failed = [error for future in self._pending if (error := future.exception()) is not None]
        if failed:
            raise TrackingError(f"{len(failed)} events could not be written to {self._run.uri}/spool: {failed[0]}")

    def _append(self, event: Event) -> None:
        self._number += 1
        events, self._before = [*self._before, event], []
        if self._writer is None:
            self._run.write_json(_segment(self._number), events)
            return
        self._pending = [f for f in self._pending if not f.done() or f.exception() is not None]
        self._pending.append(self._writer.submit(self._write, self._number, events))

    def _write(self, number: int, events: list[Event]) -> None:
        for attempt in range(WRITE_TRIES):
            try:
                return self._run.write_json(_segment(number), events)
            except OSError:
                if attempt == WRITE_TRIES - 1:
                    raise
                time.sleep(2**attempt)
        return None


class NullTracker(Tracker):
    """Tells nobody."""

    def __init__(self) -> None:
        self._run_id = ""

    def points(self, new: Sequence[Point]) -> None:
        """Nothing."""

    def file(self, path: Path, artifact: str) -> None:
        """Nothing."""

    def finish(self, status: Status, message: str = "") -> None:
        """Nothing."""

    def _append(self, event: Event) -> None:
        pass


def start_of(run_id: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Start:
    """The event with which this process begins a run, or goes on with it."""
    return {
        "kind": "start", "run_id": run_id, "name": name, "params": dict(params), "tags": dict(tags),
        "user": getpass.getuser(), "time_ms": _now(), "driver": this_process(),
    }  # fmt: skip


def _now() -> int:
    return int(time.time() * 1000)


def this_process() -> Driver:
    """This process, as `is_dead` knows it again."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time()}


def is_dead(driver: Driver) -> bool:
    """True where the driver ran on this host and is gone; of other hosts nothing can be said."""
    if driver["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(driver["pid"])
        return abs(process.create_time() - driver["began"]) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def state(run: Storage) -> dict[str, Any]:
    """A run as its spool tells it, without any server.

    `{run_id, name, status, started, metrics, params, tags, message}`; status: unknown, running,
    finished, failed or killed (also where the driver is gone without a word).
    """
    found: dict[str, Any] = {"status": "unknown", "metrics": {}, "params": {}, "tags": {}, "name": "", "message": ""}
    found |= {"run_id": run.uri.rsplit("/", 1)[-1], "started": None}
    driver: Driver | None = None
    for event in Spool(run).events():
        if event["kind"] == "start":
            driver = event["driver"]
            found |= {"run_id": event["run_id"], "name": event["name"], "params": event["params"], "status": "running"}
            found["started"] = found["started"] or event["time_ms"]
            found["tags"] |= event["tags"]
            found["message"] = ""
        elif event["kind"] == "points":
            found["metrics"] |= {p["key"]: p["value"] for p in event["points"]}
        elif event["kind"] == "tags":
            found["tags"] |= event["tags"]
        elif event["kind"] == "finish":
            found |= {"status": event["status"], "message": event["message"]}
    if found["status"] == "running" and driver is not None and is_dead(driver):
        found |= {"status": "killed", "message": "its process is gone"}
    return found
