"""Runs: those that MLflow knows, and those that are only in the spool yet."""

from __future__ import annotations

import datetime as dt
import difflib
import os
import subprocess
import sys
from typing import Any

from seekray.errors import ModelNotFoundError, SeekrayError
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking import spool
from seekray.tracking.client import ENVIRONMENT, pages
from seekray.tracking.client import client as connect
from seekray.tracking.sender import flat

SHOWN = ("validation_", "train_")


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="seconds")


def list_runs(where: Settings) -> list[dict[str, Any]]:
    """`{run_id, name, status, started, metrics}`, newest first; works without the server for this folder's runs."""
    found: dict[str, dict[str, Any]] = {}
    try:
        client = connect(where)
        ids = [e.experiment_id for e in pages(client.search_experiments)]
        for run in pages(client.search_runs, experiment_ids=ids, filter_string="tags.`seekray.run_id` != ''") if ids else []:
            name = run.data.tags["seekray.run_id"]
            metrics = {k: v for k, v in run.data.metrics.items() if k.startswith(SHOWN)}
            found[name] = {
                "run_id": name, "name": run.data.tags.get("mlflow.runName", name), "status": run.info.status.lower(),
                "started": _time(run.info.start_time), "metrics": metrics,
            }  # fmt: skip
    except SeekrayError:
        pass  # what is under the storage is shown all the same
    runs = Storage(where.storage).child("runs")
    for name in runs.list():
        state = spool.state(runs.child(name))
        if state["status"] == "unknown":
            continue
        metrics = {k: v for k, v in state["metrics"].items() if k.startswith(SHOWN)}
        found[name] = {
            "run_id": name, "name": state["name"], "status": state["status"], "started": _time(state["started"]),
            "metrics": metrics,
        }  # fmt: skip
    return sorted(found.values(), key=lambda r: r["run_id"], reverse=True)


def show_run(run_id: str, where: Settings) -> dict[str, Any]:
    """One run: settings, last metrics, history, files. Raises ModelNotFoundError."""
    runs = Storage(where.storage).child("runs")
    run = runs.child(run_id)
    state = spool.state(run)
    if state["status"] == "unknown":
        known = runs.list()
        close = difflib.get_close_matches(run_id, known, 1, 0.5)
        raise ModelNotFoundError(
            f"no run {run_id!r} under {runs.uri}" + (f"; did you mean {close[0]!r}?" if close else f"; newest: {known[-3:]}")
        )
    sent = spool.Spool(run).sent()
    return {
        "run_id": run_id, "name": state["name"], "status": state["status"], "message": state["message"],
        "started": _time(state["started"]), "storage": run.uri, "mlflow_run_id": sent["mlflow_run_id"],
        "version": sent["version"], "metrics": state["metrics"], "settings": flat(state["params"]),
        "history": history(run),
    }  # fmt: skip


def history(run: Storage) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) points, in order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in spool.Spool(run).events():
        for point in event["points"] if event["kind"] == "points" else ():
            found.setdefault(point["key"], []).append((point["step"], point["value"]))
    return found


def compare(a: str, b: str, where: Settings) -> dict[str, Any]:
    """`{a, b, settings, metrics, history}`: what differs, each as {a, b}, and both histories for a plot."""
    first, second = show_run(a, where), show_run(b, where)

    def differing(part: str) -> dict[str, Any]:
        keys = [*first[part], *(k for k in second[part] if k not in first[part])]
        pairs = {k: {"a": first[part].get(k), "b": second[part].get(k)} for k in keys}
        return {k: v for k, v in pairs.items() if v["a"] != v["b"] and not k.startswith("system/")}

    return {
        "a": a, "b": b, "settings": differing("settings"), "metrics": differing("metrics"),
        "history": {"a": first["history"], "b": second["history"]},
    }  # fmt: skip


def ui(where: Settings, port: int) -> None:
    """MLflow's pages in the foreground, on 127.0.0.1; Ctrl-C ends them."""
    where.home.mkdir(parents=True, exist_ok=True)
    if not where.tracking_is_embedded:
        print(f"the tracking server has its own pages: {where.tracking_uri}", file=sys.stderr)
        return
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", where.tracking_uri, "--default-artifact-root", where.artifacts_uri, "--workers", "1"]
    print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT})
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(20)
