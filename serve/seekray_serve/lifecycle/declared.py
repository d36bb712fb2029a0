"""`serve up models.yaml`: what the file says is what runs, and what would change is known before it does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import ClusterError
from seekray_serve.lifecycle import configuration, models_file, place
from seekray_serve.lifecycle.consent import auth_of, with_auth
from seekray_serve.lifecycle.deploy import READY_TIMEOUT_S
from seekray_serve.lifecycle.ready import FRONT, wait
from seekray_serve.lifecycle.status import describe
from seekray_serve.lifecycle.status import status as status_of

if TYPE_CHECKING:
    from seekray.settings import Settings
    from seekray_serve.lifecycle.cluster import Target

SETTLE_S = 60.0
Applications = dict[str, dict[str, Any]]
# What a version is found by; `version` alone is what a reader wants to see of it.
_UNSEEN = frozenset(("bundle", "modules", "follow", "name"))


def apply(
    file: str | Path,
    settings: Settings,
    host: str | None = None,
    port: int | None = None,
    *,
    address: str | None = None,
    dry_run: bool = False,
    timeout_s: float = READY_TIMEOUT_S,
    grpc_port: int | None = None,
    insecure_no_auth: bool = False,
) -> dict[str, Any]:
    """Serve what a models file says: models are added, changed and removed. What `status` says, and `{changes, failed}`.

    changes: `{added: [names], changed: {name: {key: [before, after]}}, removed: [names]}`. failed: name → why, of a model
    that was not found or does not start; it stays as it was, or is not there, and the others are served. dry_run: only say
    what would change. host, port: before those of the file. Raises ConfigError, UserError, and ClusterError where nothing at
    all could be served.
    """
    given = models_file.load(file)
    wanted = models_file.find(given, settings)
    applications = {model.name: configuration.application(model) for model in wanted.models}
    place.check_grpc(grpc_port, address, insecure_no_auth)
    host, port = host or wanted.host, port or wanted.port
    auth_of(host or place.DEFAULT_HOST, settings, insecure_no_auth)  # refused before anything starts
    with place.lock(settings.home):
        if dry_run:
            running = place.running(settings, address)
            before = _ours(place.deployed(running)) if running else {}
            auth = auth_of(running.public if running else host or place.DEFAULT_HOST, settings, insecure_no_auth)
            applications = with_auth(applications, auth)
            new = _next(before, applications, status_of(running) if running else {"models": []}, wanted.missing)
            return {"changes": changes(before, new), "failed": wanted.missing}
        target, fresh = place.attach(settings, host, port, address, grpc_port)
        deployed = place.deployed(target)
        before = _ours(deployed)
        others = {name: app for name, app in deployed.items() if name not in before and name != FRONT}
        front = {FRONT: deployed.get(FRONT) or configuration.front(target.inner_url)}
        auth = auth_of(target.public, settings, insecure_no_auth)
        new = _next(before, with_auth(applications, auth), status_of(target), wanted.missing)

        def deploy(models: Applications) -> None:
            whole = with_auth({**others, **front, **models}, auth)
            if whole.keys() != deployed.keys() or any(
                not configuration.same(deployed[name], app) for name, app in whole.items()
            ):
                place.deploy(target, list(whole.values()))
                deployed.clear()
                deployed.update(whole)

        try:
            deploy(new)
            failed = wait(target, wanted.models, lambda: describe(target), timeout_s)
            if failed:
                deploy(
                    {n: before.get(n, app) if n in failed else app for n, app in new.items() if n not in failed or n in before}
                )
                _settle(target, failed.keys() & before.keys())
            if not new.keys() - failed.keys() and (failed or wanted.missing):
                raise ClusterError("; ".join([*failed.values(), *wanted.missing.values()]))
        except BaseException:  # Ctrl-C too
            if fresh:
                place.stop(settings.home)
            else:
                deploy(before)
            raise
        return {**status_of(target), "changes": changes(before, new), "failed": {**wanted.missing, **failed}}


def _settle(target: Target, names: Set[str]) -> None:
    """Wait until models that are as they were run as they did, so that nothing is said of them in between."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        described = describe(target)
        if all(name in described and described[name]["status"] == "RUNNING" for name in names):
            return
        time.sleep(0.2)


def changes(before: Applications, after: Applications) -> dict[str, Any]:
    """`{added, changed, removed}`; of what changed each option with its value before and after."""
    found = {name: _options(before[name], after[name]) for name in sorted(before.keys() & after.keys())}
    return {
        "added": sorted(after.keys() - before.keys()),
        "changed": {name: options for name, options in found.items() if options},
        "removed": sorted(before.keys() - after.keys()),
    }


def _options(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    alias = [(app["args"].get("follow") or {}).get("alias") for app in (old, new)]
    found = {"alias": alias} if alias[0] != alias[1] else {}
    for key in sorted((old["args"].keys() | new["args"].keys()) - _UNSEEN):
        pair = [old["args"].get(key), new["args"].get(key)]
        if pair[0] != pair[1]:
            found[key] = pair
    if not found and not configuration.same(old, new):  # the same version of another bundle, or another registry
        found["bundle"] = [old["args"].get("bundle"), new["args"].get("bundle")]
    return found


def _next(before: Applications, wanted: Applications, status: Mapping[str, Any], missing: Mapping[str, str]) -> Applications:
    """What is to run: what is wanted; what came to its version by following, and what could not be found, as it is."""
    live = {model["name"]: model["version"] for model in status["models"]}
    kept = {name: app for name, app in before.items() if name in missing}
    settled = {n: before[n] for n, app in wanted.items() if configuration.settled(before.get(n), app, live.get(n))}
    return {**wanted, **settled, **kept}


def _ours(deployed: Applications) -> Applications:
    """The models among what is deployed."""
    ours = configuration.ours({name: {"deployed_app_config": app} for name, app in deployed.items()})
    return {name: app for name, app in ours.items() if app["import_path"] != configuration.FRONT_PATH}
