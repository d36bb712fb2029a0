"""Carries a run's spool to MLflow: in order, resumable, nothing twice.

`python -m seekray.tracking.sender URI --parent PID` runs beside a training in a process of its
own, so that neither MLflow's import nor a slow server takes a moment of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from seekray.errors import SeekrayError
from seekray.settings import Settings, settings
from seekray.storage import Storage
from seekray.tracking.spool import Event, Spool

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class SendResult:
    """What the server has of a run: segments sent now, segments that remain."""

    run_id: str
    mlflow_run_id: str | None
    version: str | None
    sent: int
    remaining: int


def send(run: Storage, where: Settings) -> SendResult:
    """Send all that the server has not got. Raises what MLflow raises; calling again goes on there."""
    spool = Spool(run)
    with _lock(run, where):
        state = spool.sent()
        todo = [n for n in spool.segments() if n > state["segment"]]
        if todo:
            from seekray.tracking.client import client

            carrier = _Carrier(client(where), run, where, state)
            for number in todo:
                for event in spool.read(number):
                    carrier.carry(event)
                state["segment"] = number
                spool.mark_sent(state)
    run_id = run.uri.rsplit("/", 1)[-1]
    return SendResult(run_id, state["mlflow_run_id"], state["version"], len(todo), spool.remaining())


class _Carrier:
    def __init__(self, client: MlflowClient, run: Storage, where: Settings, state: dict[str, Any]) -> None:
        self._client, self._run, self._where, self._state = client, run, where, state
        self._params: dict[str, Any] = {}

    def carry(self, event: Event) -> None:
        getattr(self, f"_{event['kind']}")(event)

    @property
    def _id(self) -> str:
        return str(self._state["mlflow_run_id"])

    def _start(self, event: Event) -> None:
        if self._state["mlflow_run_id"] is None:
            self._state["mlflow_run_id"] = self._find(event) or self._create(event)
        self._client.update_run(self._id, status="RUNNING")
        params = [(k, str(v)[:6000]) for k, v in flat(event["params"]).items()]
        known = self._client.get_run(self._id).data.params
        from mlflow.entities import Param

        fresh = [Param(k, v) for k, v in params if k not in known]
        for start in range(0, len(fresh), 100):
            self._client.log_batch(self._id, params=fresh[start : start + 100])
        self._text({"name": "experiment.json", "content": json.dumps(event["params"], indent=1)})

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = f"{self._where.artifacts_uri}/{name}" if self._where.tracking_is_embedded else None
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except Exception:  # another sender was faster
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _find(self, event: Event) -> str | None:
        experiment = self._experiment(event["name"])
        found = self._client.search_runs([experiment], f"tags.`seekray.run_id` = '{event['run_id']}'")
        return str(found[0].info.run_id) if found else None

    def _create(self, event: Event) -> str:
        tags = {"seekray.run_id": event["run_id"], "mlflow.user": event["user"]}
        tags |= {f"seekray.{k}": v for k, v in event["tags"].items()}
        tags |= {"mlflow.source.git.commit": event["tags"].get("git_commit", ""), "mlflow.source.type": "JOB"}
        made = self._client.create_run(
            self._experiment(event["name"]), start_time=event["time_ms"], tags=tags, run_name=event["run_id"]
        )
        return str(made.info.run_id)

    def _points(self, event: Event) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(p["key"], p["value"], p["time_ms"], p["step"]) for p in event["points"]]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def _text(self, event: Event) -> None:
        self._client.log_text(self._id, event["content"], event["name"])

    def _file(self, event: Event) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / Path(event["artifact"]).name
            local.write_bytes(self._run.read_bytes(event["path"]))
            self._client.log_artifact(self._id, str(local), str(Path(event["artifact"]).parent))

    def _model(self, event: Event) -> None:
        from seekray.tracking.versions import log_model

        version = log_model(self._client, self._id, self._run, event["bundle"], event["register"])
        self._state["version"] = version or self._state["version"]

    def _finish(self, event: Event) -> None:
        if event["message"]:
            self._client.set_tag(self._id, "seekray.message", event["message"][:5000])
        self._client.set_terminated(self._id, STATUS[event["status"]], event["time_ms"])


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out


@contextlib.contextmanager
def _lock(run: Storage, where: Settings) -> Iterator[None]:
    """One sender of a run at a time on this machine."""
    folder = where.home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run.uri.rsplit('/', 1)[-1]}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Sender:
    """The sending process of a run."""

    def __init__(self, run: Storage, process: subprocess.Popen[bytes]) -> None:
        self._run, self._process = run, process

    def wait(self, timeout: float = 600) -> SendResult:
        """Until all is sent, or the server is found to be away."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        spool = Spool(self._run)
        state = spool.sent()
        run_id = self._run.uri.rsplit("/", 1)[-1]
        return SendResult(run_id, state["mlflow_run_id"], state["version"], state["segment"], spool.remaining())


@contextlib.contextmanager
def start_sender(run: Storage, where: Settings) -> Iterator[Sender]:
    """A sender beside this process; at the end it gets time to send the last events."""
    log = where.home / "logs" / f"{run.uri.rsplit('/', 1)[-1]}.sender.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "seekray.tracking.sender", run.uri, "--parent", str(os.getpid())]
    environment = {**os.environ, "SEEKRAY_HOME": str(where.home)}
    if not where.tracking_is_embedded:
        environment["MLFLOW_TRACKING_URI"] = where.tracking_uri
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    sender = Sender(run, process)
    try:
        yield sender
    finally:
        if process.poll() is None:
            sender.wait(60)
        if process.poll() is None:
            process.terminate()


def main(arguments: list[str] | None = None) -> None:
    """Tail a spool until its end has been sent, the server is away at the end, or the parent has died."""
    parser = argparse.ArgumentParser(prog="seekray.tracking.sender", description=main.__doc__)
    parser.add_argument("uri")
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run; its last events come after it
    os.nice(5)
    run, where = Storage(given.uri), settings()
    began, since_end = psutil.Process(given.parent).create_time(), None
    while True:
        alive = _alive(given.parent, began)
        ended = _ended(run)
        if not alive and not ended:
            Spool(run).append(
                {"kind": "finish", "status": "killed", "message": "the driver died", "time_ms": int(time.time() * 1000)}
            )
            ended = True
        since_end = since_end or (time.monotonic() if ended else None)
        try:
            send(run, where)
        except Exception as error:  # whatever it is, the spool keeps all; told in the log
            reason = error.message if isinstance(error, SeekrayError) else f"{type(error).__name__}: {error}"
            print(f"{time.strftime('%H:%M:%S')} not sent: {reason}", flush=True)
            if since_end is not None and time.monotonic() - since_end > GRACE_SECONDS:
                sys.exit(1)
            time.sleep(1)
        if ended and Spool(run).remaining() == 0:
            return
        time.sleep(POLL_SECONDS)


def _ended(run: Storage) -> bool:
    """True when the newest event is an end; a resume writes a start after it, before its sender runs."""
    spool = Spool(run)
    newest = spool.segments()[-1:]
    return bool(newest) and spool.read(newest[0])[-1]["kind"] == "finish"


def _alive(pid: int, began: float) -> bool:
    try:
        return psutil.Process(pid).create_time() == began
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
