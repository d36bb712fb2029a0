"""Runs: those that MLflow knows, and those that are only in a spool yet."""

from __future__ import annotations

import datetime as dt
import difflib
import logging
from typing import Any

from seekray.errors import ModelNotFoundError, SeekrayError
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking import spool
from seekray.tracking.carrier import flat, progress
from seekray.tracking.client import client as connect
from seekray.tracking.client import pages, told
from seekray.tracking.pages import ui
from seekray.tracking.places import find_run, runs_of

SHOWN = ("test_", "validation_", "train_")


def _time(milliseconds: int | None) -> str | None:
    return (
        None if milliseconds is None else dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="seconds")
    )


def list_runs(where: Settings) -> list[dict[str, Any]]:
    """`{run_id, name, status, started, metrics}`, newest first; works without the server for this folder's runs."""
    found: dict[str, dict[str, Any]] = {}
    try:
        for run, experiment in _tracked(where):
            run_id = run.data.tags["seekray.run_id"]
            found[run_id] = {
                "run_id": run_id, "name": experiment, "status": run.info.status.lower(),
                "started": _time(run.info.start_time), "metrics": _shown(run.data.metrics),
            }  # fmt: skip
    except SeekrayError as error:
        logging.getLogger(__name__).warning("%s; only the runs of this storage are listed", error.message)
    for run in runs_of(where):
        state = spool.state(run)
        if state["status"] == "unknown":
            continue
        found[state["run_id"]] = {k: state[k] for k in ("run_id", "name", "status")} | {
            "started": _time(state["started"]), "metrics": _shown(state["metrics"]),
        }  # fmt: skip
    return sorted(found.values(), key=lambda r: (r["started"] or "", r["run_id"]), reverse=True)


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    """What a list has room for: held-out numbers first."""
    return {k: v for prefix in SHOWN for k, v in metrics.items() if k.startswith(prefix)}


def _tracked(where: Settings) -> list[tuple[Any, str]]:
    """MLflow's runs that are ours, with their experiment's name."""
    if where.tracking_is_embedded and not (where.home / "mlflow.db").exists():
        return []  # nothing was ever sent: no database is made for a look
    client = connect(where)
    with told(where):
        names = {e.experiment_id: e.name for e in pages(client.search_experiments)}
        if not names:
            return []
        runs = pages(client.search_runs, experiment_ids=list(names), filter_string="tags.`seekray.run_id` != ''")
    return [(run, names[run.info.experiment_id]) for run in runs]


def show_run(run_id: str, where: Settings) -> dict[str, Any]:
    """One run: settings, last metrics, history, tags, where its files are. Raises ModelNotFoundError."""
    run = find_run(run_id, where)
    state = spool.state(run) if run is not None else None
    if run is None or state is None or state["status"] == "unknown":
        return _show_tracked(run_id, where)
    sent = progress(run, where)
    return {
        "run_id": run_id, "name": state["name"], "status": state["status"], "message": state["message"],
        "started": _time(state["started"]), "storage": run.uri, "mlflow_run_id": sent["mlflow_run_id"],
        "version": sent["version"], "metrics": state["metrics"], "settings": flat(state["params"]),
        "tags": state["tags"], "history": history(run),
    }  # fmt: skip


def _show_tracked(run_id: str, where: Settings) -> dict[str, Any]:
    """A run of another machine, as the server tells it."""
    tracked = _tracked(where)
    match = next(((r, n) for r, n in tracked if run_id in (r.data.tags["seekray.run_id"], r.info.run_id)), None)
    if match is None:
        known = [r["run_id"] for r in list_runs(where)]
        close = difflib.get_close_matches(run_id, known, 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"the newest: {', '.join(known[:3]) or 'none'}"
        raise ModelNotFoundError(f"no run {run_id!r}; {hint}")
    run, name = match
    client = connect(where)
    with told(where):
        points = {
            key: [(p.step, p.value) for p in sorted(client.get_metric_history(run.info.run_id, key), key=lambda p: p.step)]
            for key in run.data.metrics
        }
    return {
        "run_id": run.data.tags["seekray.run_id"], "name": name, "status": run.info.status.lower(),
        "message": run.data.tags.get("seekray.message", ""), "started": _time(run.info.start_time), "storage": None,
        "mlflow_run_id": run.info.run_id, "version": None, "metrics": dict(run.data.metrics),
        "settings": dict(run.data.params), "history": points,
        "tags": {k.removeprefix("seekray."): v for k, v in run.data.tags.items() if k.startswith("seekray.")},
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
        # A server keeps settings as text, a spool as they are.
        return {k: v for k, v in pairs.items() if str(v["a"]) != str(v["b"]) and not k.startswith("system/")}

    return {
        "a": a, "b": b, "settings": differing("settings"), "metrics": differing("metrics"),
        "history": {"a": first["history"], "b": second["history"]},
    }  # fmt: skip


__all__ = ["compare", "history", "list_runs", "show_run", "ui"]
