"""The spool: what should reach MLflow, as ordered events in a run's storage. Imports no MLflow.

`spool/00000001.json`, … are lists of events, never changed once written; `sent.json` says how far
the sender has come. Points carry their own times, so that sending one twice changes nothing.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seekray.session import Point
from seekray.storage import Storage

Event = dict[str, Any]


class Spool:
    """The events of one run."""

    def __init__(self, run: Storage) -> None:
        self.run = run
        self._next = max(self.segments(), default=0) + 1

    def segments(self) -> list[int]:
        """Numbers of the segments there are, in order."""
        return [int(n.removesuffix(".json")) for n in self.run.list("spool") if n.endswith(".json") and n[0].isdigit()]

    def append(self, *events: Event) -> None:
        """Write one segment."""
        self.run.write_json(f"spool/{self._next:08d}.json", list(events))
        self._next += 1

    def read(self, number: int) -> list[Event]:
        """The events of a segment."""
        found: list[Event] = self.run.read_json(f"spool/{number:08d}.json")
        return found

    def events(self) -> list[Event]:
        """All events."""
        return [event for number in self.segments() for event in self.read(number)]

    def sent(self) -> dict[str, Any]:
        """`{segment, mlflow_run_id, version}` of what the server has."""
        try:
            found: dict[str, Any] = self.run.read_json("spool/sent.json.state")
        except FileNotFoundError:
            return {"segment": 0, "mlflow_run_id": None, "version": None}
        return found

    def mark_sent(self, state: Mapping[str, Any]) -> None:
        """Remember how far the server is."""
        self.run.write_json("spool/sent.json.state", dict(state))

    def remaining(self) -> int:
        """Segments that the server has not got."""
        done = self.sent()["segment"]
        return sum(number > done for number in self.segments())


class Tracker:
    """A run's pen: every call is a quick write to the spool."""

    def __init__(self, run: Storage, run_id: str) -> None:
        self._run, self._run_id = run, run_id
        self._spool = Spool(run)
        self._last: dict[str, int] = {}
        earlier = self._spool.events()
        self._files = sum(event["kind"] == "file" for event in earlier)
        for event in earlier:
            if event["kind"] == "points":
                self._note(Point(**p) for p in event["points"])

    def _note(self, points: Any) -> None:
        for point in points:
            self._last[point.key] = max(point.step, self._last.get(point.key, -1))

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """The run begins, or goes on."""
        self._spool.append(
            {
                "kind": "start",
                "run_id": self._run_id,
                "name": name,
                "params": dict(params),
                "tags": dict(tags),
                "user": getpass.getuser(),
                "time_ms": int(time.time() * 1000),
            }
        )

    def points(self, new: Sequence[Point]) -> None:
        """Points; those of steps that were told before (a resume goes over them again) are left out."""
        fresh = [p for p in new if p.step > self._last.get(p.key, -1)]
        if fresh:
            self._spool.append({"kind": "points", "points": [vars(p) for p in fresh]})
            self._note(fresh)

    def text(self, name: str, content: str) -> None:
        """A text artifact."""
        self._spool.append({"kind": "text", "name": name, "content": content})

    def file(self, path: Path, artifact: str) -> None:
        """A file artifact, copied into the run's storage."""
        self._files += 1
        kept = f"spool/files/{self._files:04d}-{path.name}"
        self._run.write_bytes(kept, path.read_bytes())
        self._spool.append({"kind": "file", "path": kept, "artifact": artifact})

    def model(self, bundle: str, register: str | None) -> None:
        """The bundle, a folder in the run's storage; `register` names it in the registry."""
        self._spool.append({"kind": "model", "bundle": bundle, "register": register})

    def finish(self, status: str, message: str = "") -> None:
        """The end: finished, failed or killed."""
        self._spool.append({"kind": "finish", "status": status, "message": message, "time_ms": int(time.time() * 1000)})


def state(run: Storage) -> dict[str, Any]:
    """A run as its spool tells it: `{run_id, name, status, started, metrics, params}`, without any server."""
    found: dict[str, Any] = {"status": "unknown", "metrics": {}, "params": {}, "name": "", "started": None, "message": ""}
    for event in Spool(run).events():
        if event["kind"] == "start":
            found |= {"run_id": event["run_id"], "name": event["name"], "params": event["params"], "status": "running"}
            found["started"] = found["started"] or event["time_ms"]
        elif event["kind"] == "points":
            found["metrics"] |= {p["key"]: p["value"] for p in event["points"]}
        elif event["kind"] == "finish":
            found |= {"status": event["status"], "message": event["message"]}
    return found
