"""The model registry: versions with lineage, aliases, and who held which alias from when to when."""

from __future__ import annotations

import datetime as dt
import difflib
import getpass
import json
from typing import TYPE_CHECKING, Any

from seekray.errors import GateError, ModelNotFoundError
from seekray.settings import Settings
from seekray.tracking.client import client as connect
from seekray.tracking.client import pages

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PREFIX = "seekray.alias."


def list_models(where: Settings) -> list[dict[str, Any]]:
    """`{name, latest, aliases}` of every registered model."""
    client = connect(where)
    found = []
    for model in pages(client.search_registered_models):
        versions = [int(v.version) for v in client.search_model_versions(f"name = '{model.name}'")]
        found.append({"name": model.name, "latest": max(versions, default=None), "aliases": dict(model.aliases)})
    return found


def _model(client: MlflowClient, name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        known = [m.name for m in pages(client.search_registered_models)]
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
        raise ModelNotFoundError(f"no registered model {name!r}; {hint}") from error


def version(name: str, number: str, where: Settings) -> dict[str, Any]:
    """One version as `show` lists it. Raises ModelNotFoundError."""
    found = {v["version"]: v for v in show(name, where)["versions"]}
    if number not in found:
        raise ModelNotFoundError(f"{name} has no version {number}; there are: {', '.join(found) or 'none'}")
    return found[number]


def show(name: str, where: Settings) -> dict[str, Any]:
    """`{name, versions, aliases, history}`. Raises ModelNotFoundError."""
    client = connect(where)
    model = _model(client, name)
    versions = []
    for found in sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: -int(v.version)):
        tags = found.tags
        versions.append(
            {
                "version": str(found.version),
                "run_id": tags.get("seekray.run_id"),
                "mlflow_run_id": found.run_id,
                "source": found.source,
                "created": _time(found.creation_timestamp),
                "created_by": tags.get("seekray.created_by"),
                "git_commit": tags.get("seekray.git_commit"),
                "git_dirty": tags.get("seekray.git_dirty"),
                "metrics": json.loads(tags.get("seekray.metrics", "{}")),
                "fingerprint": json.loads(tags.get("seekray.fingerprint", "{}")),
                "bundle": tags.get("seekray.bundle"),
                "verified": json.loads(tags.get("seekray.verified", "null")),
                "forced": tags.get("seekray.forced"),
            }
        )
    return {"name": name, "versions": versions, "aliases": dict(model.aliases), "history": history(model.tags)}


def _time(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="seconds")


def events(tags: dict[str, str]) -> list[dict[str, Any]]:
    """Alias events, oldest first."""
    return [json.loads(tags[key]) for key in sorted(k for k in tags if k.startswith(PREFIX))]


def history(tags: dict[str, str]) -> list[dict[str, Any]]:
    """`{alias, version, from, to, by, action, reason}`: who held which alias, oldest first; `to` is null for today's."""
    held: list[dict[str, Any]] = []
    for event in events(tags):
        for entry in held:
            if entry["alias"] == event["alias"] and entry["to"] is None:
                entry["to"] = event["at"]
        held.append({**{k: event[k] for k in ("alias", "version", "by", "action", "reason")}, "from": event["at"], "to": None})
    return held


def set_alias(name: str, alias: str, number: str, action: str, reason: str | None, where: Settings) -> None:
    """Move an alias, and write down that it moved."""
    client = connect(where)
    tags = _model(client, name).tags
    now = dt.datetime.now(dt.UTC)
    event = {
        "alias": alias, "version": number, "at": now.isoformat(timespec="milliseconds"),
        "by": getpass.getuser(), "action": action, "reason": reason,
    }  # fmt: skip
    # Sorted by time; the count keeps two events of one millisecond apart.
    key = f"{PREFIX}{now:%Y%m%dT%H%M%S%f}.{len(events(tags)):06d}"
    client.set_registered_model_alias(name, alias, number)
    client.set_registered_model_tag(name, key, json.dumps(event))
    if action == "force":
        client.set_model_version_tag(name, number, "seekray.forced", reason or "")


def rollback(name: str, alias: str, where: Settings) -> dict[str, Any]:
    """Give an alias back to its previous holder. Raises GateError where there was none."""
    found = show(name, where)
    now = found["aliases"].get(alias)
    if now is None:
        raise ModelNotFoundError(f"{name} has no alias {alias!r}; there are: {', '.join(found['aliases']) or 'none'}")
    stack: list[str] = []
    for entry in (h for h in found["history"] if h["alias"] == alias):
        if entry["action"] == "rollback":
            stack.pop()
        elif not stack or stack[-1] != entry["version"]:
            stack.append(entry["version"])
    if len(stack) < 2:
        raise GateError(f"{name}@{alias} is version {now} and has had no other holder to go back to")
    set_alias(name, alias, stack[-2], "rollback", f"back from version {now}", where)
    return {"name": name, "alias": alias, "version": stack[-2], "from": str(now)}


def set_version_tag(name: str, number: str, key: str, value: Any, where: Settings) -> None:
    """Keep what is learned of a version later, as JSON."""
    connect(where).set_model_version_tag(name, number, f"seekray.{key}", json.dumps(value))
