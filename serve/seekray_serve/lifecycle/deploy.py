"""`serve up`, `status`, `down` and `build`: models on Ray Serve, on our own head or a given cluster.

Everything goes through Serve's declarative configuration, the same that `serve build` writes and
plain `serve deploy` takes; so `up` needs no `import ray`, and what runs is what could be written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import ClusterError
from seekray_serve.lifecycle import configuration, place
from seekray_serve.lifecycle import instance as instances
from seekray_serve.lifecycle.cluster import find_cluster
from seekray_serve.lifecycle.consent import auth_of, with_auth
from seekray_serve.lifecycle.place import DEFAULT_HOST, DEFAULT_PORT
from seekray_serve.lifecycle.ready import FRONT, ModelToServe, wait
from seekray_serve.lifecycle.status import describe
from seekray_serve.lifecycle.status import status as status_of

if TYPE_CHECKING:
    from seekray.settings import Settings

READY_TIMEOUT_S = 180.0


def up(
    models: Sequence[ModelToServe],
    settings: Settings,
    host: str | None = None,
    port: int | None = None,
    *,
    address: str | None = None,
    timeout_s: float = READY_TIMEOUT_S,
    grpc_port: int | None = None,
    insecure_no_auth: bool = False,
) -> dict[str, Any]:
    """Serve `models` beside what is served already; return when each has answered its own sample.

    On `address` (Ray's dashboard or GCS) where given, else on the head that an earlier `up` left
    running, else on a new one. grpc_port: also the Open Inference Protocol over gRPC there, which needs the consent
    `insecure_no_auth`: none of the endpoints asks for a key then. Raises UserError (names, ports, consent), ClusterError
    (did not come up).
    """
    applications = [configuration.application(model) for model in models]
    place.check_grpc(grpc_port, address, insecure_no_auth)
    auth_of(host or DEFAULT_HOST, settings, insecure_no_auth)  # refused before anything starts
    with place.lock(settings.home):
        target, fresh = place.attach(settings, host, port, address, grpc_port)
        deployed: dict[str, dict[str, Any]] = {}
        changed = False
        try:
            deployed = place.deployed(target)
            auth = auth_of(target.public, settings, insecure_no_auth)
            wanted = with_auth({app["name"]: app for app in applications}, auth)
            live = {model["name"]: model["version"] for model in status_of(target)["models"]}
            new = {n: app for n, app in wanted.items() if not configuration.settled(deployed.get(n), app, live.get(n))}
            wanted = with_auth({FRONT: configuration.front(target.inner_url), **deployed, **new}, auth)
            if any(not configuration.same(deployed.get(name), app) for name, app in wanted.items()):
                changed = True
                place.deploy(target, list(wanted.values()))
            if failed := wait(target, models, lambda: describe(target), timeout_s):
                raise ClusterError("; ".join(failed.values()))
            return status_of(target)
        except BaseException:  # Ctrl-C too: an `up` that did not come up leaves things as they were
            if fresh:
                place.stop(settings.home)
            elif changed:
                place.deploy(target, list(deployed.values()))
            raise


def status(settings: Settings, *, address: str | None = None) -> dict[str, Any]:
    """`{url, models: [{name, version, url, state, replicas}]}`; url is None where nothing runs."""
    target = place.running(settings, address)
    return status_of(target) if target else {"url": None, "models": []}


def down(settings: Settings, *, address: str | None = None) -> dict[str, Any]:
    """End what `up` started. On a given cluster only our applications end; `{stopped: [names]}`."""
    with place.lock(settings.home):
        if address:
            target = find_cluster(address, None, None)
            described = target.dashboard.applications()["applications"]
            ours = sorted(configuration.ours(described))
            if ours and described.keys() == set(ours):
                target.dashboard.delete()
            elif ours:  # what `serve.run` deployed has no configuration, and stays without being named
                rest = [app for name, app in place.deployed(target).items() if name not in ours]
                place.deploy(target, rest)
            return {"stopped": ours}
        running = place.running(settings, None)  # None also after a crash: what is left of it ends too
        names = sorted(describe(running)) if running else []
        place.stop(settings.home)
        return {"stopped": names}


def build(
    models: Sequence[ModelToServe],
    path: str | Path,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    runtime_env: Mapping[str, Any] | None = None,
    auth: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the configuration file of `models` for plain `serve deploy`, and return it.

    The bundle folders must be readable, and `seekray` importable, on the cluster's nodes
    (`runtime_env` where it is not installed there). auth: whose keys are asked for, `consent.auth_of`.
    """
    import yaml

    local = instances.LOOPBACK if host in instances.WILDCARDS else host
    applications = [configuration.front(f"http://{local}:{port}"), *map(configuration.application, models)]
    for application in applications:
        if runtime_env:
            application["runtime_env"] = dict(runtime_env)
    config = configuration.whole(list(with_auth({app["name"]: app for app in applications}, auth).values()), host, port)
    Path(path).write_text(
        "# Written by `seekray serve build`; deploy it with `serve deploy`.\n" + yaml.safe_dump(config, sort_keys=False)
    )
    return config
