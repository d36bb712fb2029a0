"""Carries the events of a spool to MLflow: in order, resumable anywhere, nothing twice."""

from __future__ import annotations

import json
import logging
import random
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import CorruptError, ModelNotFoundError
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking import events
from seekray.tracking.client import client as connect
from seekray.tracking.client import is_gone, is_refused, locked, server_key, told
from seekray.tracking.spool import Spool, is_dead

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
MOST_POINTS, MOST_PARAMS = 1000, 100  # of one request, MLflow's limits
LONGEST_PARAM, LONGEST_TAG = 6000, 5000
UNSENT: dict[str, Any] = {
    "segment": 0, "mlflow_run_id": None, "version": None, "status": "unknown", "driver": None, "problems": [],
}  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SendResult:
    """What the server has of a run: segments sent now, segments that remain, what it refused for good."""

    run_id: str
    mlflow_run_id: str | None
    version: str | None
    sent: int
    remaining: int
    problems: tuple[str, ...] = ()
    error: str | None = None


def progress(run: Storage, where: Settings) -> dict[str, Any]:
    """How far the server is with a run."""
    try:
        found: dict[str, Any] = run.read_json(f"spool/sent-{server_key(where)}.json")
    except FileNotFoundError:
        return dict(UNSENT)
    return dict(UNSENT) | found


def result(run: Storage, where: Settings, sent: int = 0, error: str | None = None) -> SendResult:
    """What the server has of a run now."""
    state = progress(run, where)
    remaining = sum(number > state["segment"] for number in Spool(run).segments())
    return SendResult(
        run.uri.rsplit("/", 1)[-1], state["mlflow_run_id"], state["version"], sent, remaining, tuple(state["problems"]), error
    )


def is_settled(run: Storage, where: Settings) -> bool:
    """True where the server has all of a run, and knows how it ended."""
    state = progress(run, where)
    return not any(n > state["segment"] for n in Spool(run).segments()) and not _abandoned(state)


def _abandoned(state: dict[str, Any]) -> bool:
    return state["status"] == "running" and state["driver"] is not None and is_dead(state["driver"])


def send(run: Storage, where: Settings) -> SendResult:
    """Send all that the server has not got. Raises TrackingError; calling again goes on where it ended.

    Safe at any moment against a crash and against other senders: a run, a version and a point are
    each looked for before they are made, and one sender of a run works at a time on one machine.
    """
    lock = Path(run.path("spool/.lock")) if run.is_local else where.home / "locks" / f"{server_name(run)}.lock"
    with locked(lock):
        if is_settled(run, where):
            return result(run, where)
        client = connect(where)
        with told(where):
            return _send(client, run, where)


def server_name(run: Storage) -> str:
    """A run's URI as a file name."""
    return re.sub(r"[^\w.-]+", "_", run.uri)[-150:]


def _send(client: MlflowClient, run: Storage, where: Settings) -> SendResult:
    state, spool, sent = progress(run, where), Spool(run), 0
    if state["mlflow_run_id"] and not _is_there(client, state["mlflow_run_id"]):
        state = dict(UNSENT)  # the server has lost its memory: tell it all again
    key = server_key(where)
    carrier = Carrier(client, run, where, state)
    for number in [n for n in spool.segments() if n > state["segment"]]:
        for event in spool.read(number):
            carrier.carry(event)
        state["segment"] = number
        run.write_json(f"spool/sent-{key}.json", state)
        sent += 1
    if _abandoned(state):
        client.set_terminated(state["mlflow_run_id"], "KILLED")
        state["status"] = "killed"
        run.write_json(f"spool/sent-{key}.json", state)
    return result(run, where, sent)


def _is_there(client: MlflowClient, mlflow_run: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(mlflow_run)
    except MlflowException as error:
        if is_gone(error):
            return False
        raise
    return True


class Carrier:
    """Carries one event after another; `state` is what must survive between them."""

    def __init__(self, client: MlflowClient, run: Storage, where: Settings, state: dict[str, Any]) -> None:
        self._client, self._run, self._where, self._state = client, run, where, state

    def carry(self, event: events.Event) -> None:
        """Make one event true on the server. What it refuses for good is noted and passed, not tried for ever."""
        try:
            getattr(self, f"_{event['kind']}")(event)
        except Exception as error:
            lost = isinstance(error, FileNotFoundError | CorruptError | ModelNotFoundError)
            if not (lost or is_refused(error)):
                raise
            problem = f"{event['kind']}: {str(error).strip().splitlines()[0][:300]}"
            _log.warning("not taken by the tracking server: %s", problem)
            self._state["problems"] = [*self._state["problems"], problem][-20:]

    @property
    def _id(self) -> str:
        return str(self._state["mlflow_run_id"])

    def _start(self, event: events.Start) -> None:
        if self._state["mlflow_run_id"] is None:
            experiment = self._experiment(event["name"])
            self._state["mlflow_run_id"] = self._find_or_create(experiment, event)
        self._client.update_run(self._id, status="RUNNING")
        self._state |= {"status": "running", "driver": event["driver"]}
        from mlflow.entities import Param

        known = self._client.get_run(self._id).data.params
        params = {_key(k): str(v)[:LONGEST_PARAM] for k, v in flat(event["params"]).items()}
        fresh = [Param(k, v) for k, v in params.items() if k and k not in known]
        for start in range(0, len(fresh), MOST_PARAMS):
            self._client.log_batch(self._id, params=fresh[start : start + MOST_PARAMS])
        self._client.log_text(self._id, json.dumps(event["params"], indent=1), "experiment.json")

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = f"{self._where.artifacts_uri}/{name}" if self._where.tracking_is_embedded else None
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException:  # another sender was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_or_create(self, experiment: str, event: events.Start) -> str:
        """The run with our id. A sender on another machine, where the lock does not reach, may make one in the same
        moment: whoever sees two takes its own back, and looks again a little later."""
        while True:
            if there := self._find(experiment, event):
                return there[0]
            made = self._create(experiment, event)
            if self._find(experiment, event) == [made]:
                return made
            self._client.delete_run(made)
            time.sleep(random.uniform(0.2, 0.8))

    def _find(self, experiment: str, event: events.Start) -> list[str]:
        found = self._client.search_runs([experiment], f"tags.`seekray.run_id` = '{event['run_id']}'")
        return sorted(run.info.run_id for run in found)

    def _create(self, experiment: str, event: events.Start) -> str:
        tags = {f"seekray.{k}": v for k, v in event["tags"].items()}
        tags |= {"mlflow.user": event["user"], "mlflow.source.type": "JOB", "mlflow.source.name": "seekray"}
        if parent := event["tags"].get("parent"):  # a trial's: sent after the search's own start
            found = self._client.search_runs([experiment], f"tags.`seekray.run_id` = '{parent}'")
            tags |= {"mlflow.parentRunId": found[0].info.run_id if found else ""}
        tags |= {"mlflow.source.git.commit": event["tags"].get("git_commit", ""), "seekray.run_id": event["run_id"]}
        short = {k: str(v)[:LONGEST_TAG] for k, v in tags.items() if v}
        made = self._client.create_run(experiment, start_time=event["time_ms"], tags=short, run_name=event["run_id"])
        return str(made.info.run_id)

    def _points(self, event: events.Points) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_key(p["key"]), p["value"], p["time_ms"], p["step"]) for p in event["points"]]
        for start in range(0, len(metrics), MOST_POINTS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MOST_POINTS])

    def _text(self, event: events.Text) -> None:
        self._client.log_text(self._id, event["content"], event["name"])

    def _file(self, event: events.File) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / Path(event["artifact"]).name
            local.write_bytes(self._run.read_bytes(event["path"]))
            parent = Path(event["artifact"]).parent.as_posix()
            self._client.log_artifact(self._id, str(local), None if parent == "." else parent)

    def _tags(self, event: events.Tags) -> None:
        for key, value in event["tags"].items():
            self._client.set_tag(self._id, f"seekray.{key}", str(value)[:LONGEST_TAG])

    def _model(self, event: events.Model) -> None:
        from seekray.tracking.versions import log_model

        version = log_model(self._client, self._id, self._run, event["bundle"], event["register"])
        self._state["version"] = version or self._state["version"]

    def _finish(self, event: events.Finish) -> None:
        if event["message"]:
            self._client.set_tag(self._id, "seekray.message", event["message"][:LONGEST_TAG])
        self._client.set_terminated(self._id, STATUS[event["status"]], event["time_ms"])
        self._state["status"] = event["status"]


def _key(name: str) -> str:
    """A name that MLflow takes: other characters become `_`."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out
