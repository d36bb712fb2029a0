"""The model registry: versions with lineage, aliases, and who held which alias from when to when."""

from __future__ import annotations

import datetime as dt
import difflib
import getpass
import json
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seekray.errors import GateError, ModelNotFoundError, TrackingError
from seekray.settings import Settings
from seekray.tracking.card import with_verification
from seekray.tracking.client import client as connect
from seekray.tracking.client import is_gone, pages, told, versions_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PREFIX = "seekray.alias."
LONGEST_DESCRIPTION = 5000
CARD = "model_card.md"


def list_models(where: Settings) -> list[dict[str, Any]]:
    """`{name, latest, versions, aliases}` of every registered model."""
    client = connect(where)
    with told(where):
        numbers: dict[str, list[int]] = {}
        for found in pages(client.search_model_versions):
            numbers.setdefault(found.name, []).append(int(found.version))
        return [
            {
                "name": model.name,
                "latest": max(numbers.get(model.name, []), default=None),
                "versions": len(numbers.get(model.name, [])),
                "aliases": {k: str(v) for k, v in model.aliases.items()},
            }
            for model in pages(client.search_registered_models)
        ]


def _model(client: MlflowClient, name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if not is_gone(error):
            raise
        known = [m.name for m in pages(client.search_registered_models)]
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
        raise ModelNotFoundError(f"no registered model {name!r}; {hint}") from error


def version(name: str, number: str, where: Settings) -> dict[str, Any]:
    """One version as `show` lists it. Raises ModelNotFoundError."""
    return _pick(show(name, where), number)


def _pick(shown: Mapping[str, Any], number: str) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {v["version"]: v for v in shown["versions"]}
    if str(number) not in found:
        there = ", ".join(found) or "none"
        raise ModelNotFoundError(f"{shown['name']} has no version {number}; there are: {there}")
    return found[str(number)]


def holder(name: str, alias: str, where: Settings) -> str | None:
    """The version that holds an alias now, in one question to the server; None where none does."""
    client = connect(where)
    with told(where):
        number = _model(client, name).aliases.get(alias)
    return None if number is None else str(number)


def show(name: str, where: Settings) -> dict[str, Any]:
    """`{name, versions, aliases, history}`, versions newest first. Raises ModelNotFoundError."""
    client = connect(where)
    with told(where):
        model = _model(client, name)
        aliases = {alias: str(number) for alias, number in model.aliases.items()}
        found = sorted(versions_of(client, name), key=lambda v: -int(v.version))
    versions = [_entry(v) | {"aliases": sorted(a for a, n in aliases.items() if n == str(v.version))} for v in found]
    return {"name": name, "versions": versions, "aliases": aliases, "history": history(model.tags, aliases)}


def _entry(found: Any) -> dict[str, Any]:
    tags = found.tags
    return {
        "version": str(found.version),
        "run_id": tags.get("seekray.run_id"),
        "mlflow_run_id": found.run_id,
        "source": found.source,
        "created": _time(found.creation_timestamp),
        "created_by": tags.get("seekray.created_by"),
        "trained": tags.get("seekray.trained"),
        "git_commit": tags.get("seekray.git_commit"),
        "git_dirty": tags.get("seekray.git_dirty"),
        "metrics": _loaded(tags.get("seekray.metrics"), {}),
        "fingerprint": _loaded(tags.get("seekray.fingerprint"), {}),
        "bundle": tags.get("seekray.bundle"),
        "verified": _loaded(tags.get("seekray.verified"), None),
        "forced": tags.get("seekray.forced"),
    }


def _loaded(text: str | None, default: Any) -> Any:
    """A tag's JSON; a tag that someone else wrote is no reason to fail."""
    try:
        return json.loads(text) if text else default
    except ValueError:
        return default


def _time(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="seconds")


def events(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Alias events, oldest first."""
    found = (_loaded(tags[key], None) for key in sorted(k for k in tags if k.startswith(PREFIX)))
    return [event for event in found if isinstance(event, dict)]


def history(tags: Mapping[str, str], aliases: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """`{alias, version, from, to, by, action, reason, …}`: who held which alias, oldest first; `to` is null for today's.

    aliases: what holds now. Where that is not the last event's version, someone moved the alias past
    seekray (or two moved it in the same moment), and a last entry `outside` says so.
    """
    held: list[dict[str, Any]] = []
    last: dict[str, dict[str, Any]] = {}
    for event in events(tags):
        alias = event["alias"]
        if alias in last:
            last[alias]["to"] = event["at"]
        entry = {k: v for k, v in event.items() if k != "at"} | {"from": event["at"], "to": None}
        held.append(entry)
        last[alias] = entry
    if aliases is None:
        return held
    for alias in sorted({*last, *aliases}):
        now = aliases.get(alias)
        if alias in last and last[alias]["version"] == now:
            continue
        if alias in last:
            last[alias]["to"] = "unknown"
        if now is not None:
            unknown = {"from": "unknown", "to": None, "by": None, "reason": "moved outside seekray"}
            held.append({"alias": alias, "version": now, "action": "outside", **unknown})
    return held


def set_alias(
    name: str,
    alias: str,
    number: str,
    action: str,
    reason: str | None,
    where: Settings,
    *,
    gate: Mapping[str, Any] | None = None,
    held_by: str | None = None,
) -> None:
    """Move an alias, and write down that it moved: `action` promote, force (with its reason) or rollback.

    gate: the numbers that were compared, kept in the history. held_by: the version that the decision
    was made against; where another holds the alias by now, someone moved it in the meantime, and this
    raises TrackingError rather than undo that unseen.
    """
    client = connect(where)
    with told(where):
        holder = _model(client, name).aliases.get(alias)
        if held_by is not None and holder is not None and str(holder) != held_by:
            raise TrackingError(f"{name}@{alias} went from version {held_by} to {holder} in the meantime; look, and try again")
        now = dt.datetime.now(dt.UTC)
        event = {
            "alias": alias, "version": str(number), "at": now.isoformat(timespec="milliseconds"),
            "by": getpass.getuser(), "action": action, "reason": reason,
        }  # fmt: skip
        if gate:
            event["gate"] = dict(gate)  # type: ignore[assignment]
        # A tag of its own for each event, sorted by time: two that promote at once both stay in the history.
        client.set_registered_model_alias(name, alias, str(number))
        client.set_registered_model_tag(name, f"{PREFIX}{now:%Y%m%dT%H%M%S%f}.{secrets.token_hex(3)}", json.dumps(event))
        if action == "force":
            client.set_model_version_tag(name, str(number), "seekray.forced", reason or "")


def rollback(name: str, alias: str, where: Settings) -> dict[str, Any]:
    """Give an alias back to its previous holder; again, to the one before it. Raises GateError where there was none."""
    found = show(name, where)
    now = found["aliases"].get(alias)
    if now is None:
        raise ModelNotFoundError(f"{name} has no alias {alias!r}; there are: {', '.join(found['aliases']) or 'none'}")
    there = {v["version"] for v in found["versions"]}
    earlier = [number for number in _holders(found["history"], alias) if number in there and number != now]
    if not earlier:
        raise GateError(f"{name}@{alias} is version {now} and has had no other holder to go back to")
    set_alias(name, alias, earlier[-1], "rollback", f"back from version {now}", where, held_by=now)
    return {"name": name, "alias": alias, "version": earlier[-1], "from": now}


def _holders(held: list[dict[str, Any]], alias: str) -> list[str]:
    """Versions that held an alias and were not taken back, oldest first."""
    stack: list[str] = []
    for entry in (h for h in held if h["alias"] == alias):
        if entry["action"] == "rollback":
            while stack and stack[-1] != entry["version"]:
                stack.pop()
        if not stack or stack[-1] != entry["version"]:
            stack.append(entry["version"])
    return stack


def set_version_tag(name: str, number: str, key: str, value: Any, where: Settings) -> None:
    """Keep what is learned of a version later, as JSON. `verified` also goes into its model card."""
    client = connect(where)
    with told(where):
        client.set_model_version_tag(name, str(number), f"seekray.{key}", json.dumps(value))
        if key == "verified":
            _verify_card(client, client.get_model_version(name, str(number)), value)


def _verify_card(client: MlflowClient, found: Any, result: Mapping[str, Any]) -> None:
    """The card is the run's artifact and, as far as it fits, the version's description."""
    from mlflow.artifacts import load_text
    from mlflow.exceptions import MlflowException

    run = client.get_run(found.run_id)
    try:
        card = load_text(f"{run.info.artifact_uri}/{CARD}")
    except (MlflowException, OSError):
        card = f"# {found.name}\n"
    card = with_verification(card, result)
    client.log_text(found.run_id, card, CARD)
    client.update_model_version(found.name, found.version, card[:LONGEST_DESCRIPTION])
