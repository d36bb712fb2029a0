"""`serve up`, `status`, `down` and `build`: models on Ray Serve, on our own head or a given cluster.

Everything goes through Serve's declarative configuration, the same that `serve build` writes and
plain `serve deploy` takes; so `up` needs no `import ray`, and what runs is what could be written down.
"""

from __future__ import annotations

import fcntl
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import ClusterError, UserError
from seekray_serve.lifecycle import instance as instances
from seekray_serve.lifecycle.cluster import Target, find_cluster
from seekray_serve.lifecycle.dashboard import Dashboard
from seekray_serve.lifecycle.ready import FRONT, ModelToServe, import_path, wait
from seekray_serve.options import check_options, own_module

if TYPE_CHECKING:
    from seekray.settings import Settings

FRONT_PATH = "seekray_serve.front:build"
# What Serve's gRPC servers are told to listen for; the replicas answer it (`predict/inference_service.py`).
SERVICER = "seekray_serve.predict.inference_service.add_to_server"
DEFAULT_HOST, DEFAULT_PORT = instances.LOOPBACK, 8000
READY_TIMEOUT_S = 180.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
# First segments of the front door's own paths, and its application's name.
_RESERVED = frozenset(("v1", "v2", "docs", "healthz", FRONT))


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
    `insecure_no_auth`. Raises UserError (names, ports, consent), ClusterError (did not come up).
    """
    applications = [_application(model) for model in models]
    if grpc_port is not None:
        _check_grpc(address, insecure_no_auth)
    with _lock(settings.home):
        target, fresh = _attach(settings, host, port, grpc_port, address)
        deployed: dict[str, dict[str, Any]] = {}
        changed = False
        try:
            deployed = _deployed(target)
            wanted = {**deployed, **{app["name"]: app for app in applications}}
            wanted.setdefault(FRONT, _front(target.inner_url))
            if any(not _same(deployed.get(name), app) for name, app in wanted.items()):
                changed = True
                target.dashboard.deploy(_config(list(wanted.values()), target.host, target.port, target.grpc_port))
            wait(target, models, lambda: _describe(target), timeout_s)
            return _status(target)
        except BaseException:  # Ctrl-C too: an `up` that did not come up leaves things as they were
            if fresh:
                _stop(settings.home)
            elif changed:
                target.dashboard.deploy(_config(list(deployed.values()), target.host, target.port, target.grpc_port))
            raise


def status(settings: Settings, *, address: str | None = None) -> dict[str, Any]:
    """`{url, models: [{name, version, url, state, replicas}]}`; url is None where nothing runs."""
    target = _running(settings, address)
    return _status(target) if target else {"url": None, "models": []}


def down(settings: Settings, *, address: str | None = None) -> dict[str, Any]:
    """End what `up` started. On a given cluster only our applications end; `{stopped: [names]}`."""
    with _lock(settings.home):
        if address:
            target = find_cluster(address, None, None)
            described = target.dashboard.applications()["applications"]
            ours = sorted(_ours(described))
            if ours and described.keys() == set(ours):
                target.dashboard.delete()
            elif ours:  # what `serve.run` deployed has no configuration, and stays without being named
                rest = [app for name, app in _deployed(target).items() if name not in ours]
                target.dashboard.deploy(_config(rest, target.host, target.port))
            return {"stopped": ours}
        running = _running(settings, None)  # None also after a crash: what is left of it ends too
        names = sorted(_describe(running)) if running else []
        _stop(settings.home)
        return {"stopped": names}


def build(
    models: Sequence[ModelToServe],
    path: str | Path,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    runtime_env: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the configuration file of `models` for plain `serve deploy`, and return it.

    The bundle folders must be readable, and `seekray` importable, on the cluster's nodes
    (`runtime_env` where it is not installed there).
    """
    import yaml

    local = instances.LOOPBACK if host in instances.WILDCARDS else host
    applications = [_front(f"http://{local}:{port}"), *map(_application, models)]
    for application in applications:
        if runtime_env:
            application["runtime_env"] = dict(runtime_env)
    config = _config(applications, host, port)
    Path(path).write_text(
        "# Written by `seekray serve build`; deploy it with `serve deploy`.\n" + yaml.safe_dump(config, sort_keys=False)
    )
    return config


def _application(model: ModelToServe) -> dict[str, Any]:
    if not _NAME.match(model.name) or model.name in _RESERVED:
        raise UserError(
            f"a served model's name is letters, digits, '_', '-', '.' and none of {', '.join(sorted(_RESERVED))}; "
            f"got {model.name!r}",
            field="name",
        )
    folder = Path(model.bundle_path).resolve()
    options = {key: value for key, value in model.serve_options.items() if value is not None}
    # Checked here and not only on the cluster, where a wrong key would be a failed deployment.
    check_options(options)
    return {
        "name": model.name,
        "route_prefix": f"/{model.name}",
        "import_path": import_path(folder),
        "args": {"name": model.name, "version": model.version, "bundle": str(folder), **own_module(folder), **options},
    }


def _front(url: str) -> dict[str, Any]:
    return {"name": FRONT, "route_prefix": "/", "import_path": FRONT_PATH, "args": {"url": url}}


def _config(applications: list[dict[str, Any]], host: str, port: int, grpc_port: int = 0) -> dict[str, Any]:
    grpc = {"grpc_options": {"port": grpc_port, "grpc_servicer_functions": [SERVICER]}} if grpc_port else {}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port, "keep_alive_timeout_s": 90},
        **grpc,
        # A line a request is dear beside a small model's answer; the metrics count them.
        "logging_config": {"enable_access_log": False},
        "applications": applications,
    }


def _ours(described: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, app in described.items():
        config = app.get("deployed_app_config") or {}
        if str(config.get("import_path", "")).startswith("seekray_serve."):
            found[name] = config
    return found


def _deployed(target: Target) -> dict[str, dict[str, Any]]:
    """The configuration of every application that is there, also of others' on a shared cluster."""
    described = target.dashboard.applications()["applications"]
    return {name: app["deployed_app_config"] for name, app in described.items() if app.get("deployed_app_config")}


def _same(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    return old is not None and all(old.get(key) == value for key, value in new.items())


def _check_grpc(address: str | None, consent: bool) -> None:
    """Raises UserError where gRPC cannot be served, or was not consented to."""
    if address:
        raise UserError(
            "--grpc-port is for a Ray of our own; on a given cluster its gRPC is Serve's configuration", field="grpc-port"
        )
    if not consent:
        raise UserError(
            "with --grpc-port Ray Serve 2.60 opens gRPC ports of each replica and of its proxy on every interface, and they "
            "ask for no key; say --insecure-no-auth as well if the machine's network may use the models, or use HTTP",
            field="grpc-port",
        )
    try:
        import tritonclient.grpc.service_pb2_grpc  # noqa: F401
    except ImportError as error:
        raise UserError("--grpc-port needs its extra: pip install 'seekray[grpc]'", field="grpc-port") from error


def _attach(
    settings: Settings, host: str | None, port: int | None, grpc_port: int | None, address: str | None
) -> tuple[Target, bool]:
    """The cluster to deploy on, and whether this call has started it."""
    if address:
        return find_cluster(address, host, port), False
    state = _state(settings.home)
    instance = instances.load(state)
    if instance is not None:
        if _alive(instance):
            asked_there = (
                ("host", host, instance.host),
                ("port", port, instance.port),
                ("grpc-port", grpc_port, instance.grpc_port),
            )
            for name, asked, there in asked_there:
                if asked is not None and asked != there:
                    raise UserError(
                        f"models are already served at {instance.url}; `seekray serve down` first, or leave out --{name}",
                        field=name,
                    )
            return _own(instance), False
        _stop(settings.home)
    instance = instances.start(settings.home, host or DEFAULT_HOST, port or DEFAULT_PORT, grpc_port=grpc_port or 0)
    instances.save(state, instance)
    return _own(instance), True


def _stop(home: Path) -> None:
    state = _state(home)
    instance = instances.load(state)
    if instance is not None:
        instances.stop(instance)
    state.unlink(missing_ok=True)


def _running(settings: Settings, address: str | None) -> Target | None:
    if address:
        return find_cluster(address, None, None)
    instance = instances.load(_state(settings.home))
    return _own(instance) if instance and _alive(instance) else None


def _own(instance: instances.Instance) -> Target:
    # Serve itself is told loopback, for its replicas; HAProxy's wrapper opens the public address.
    inner = instances.LOOPBACK if instances.haproxy_binary() else instance.host
    dashboard = Dashboard(instance.dashboard, instance.token)
    return Target(dashboard, inner, instance.port, instance.url, instance.url, instance.grpc_port)


def _alive(instance: instances.Instance) -> bool:
    # Asked first, since the dashboard of a dead GCS takes long to say so.
    if not instances.listens(instance.gcs):
        return False
    try:
        _own(instance).dashboard.applications(10)
    except (ClusterError, OSError):
        return False
    return True


def _status(target: Target) -> dict[str, Any]:
    models = []
    for name, app in sorted(_describe(target).items()):
        config = app["deployed_app_config"]
        if config["import_path"] == FRONT_PATH:
            continue
        replicas = [r for d in app["deployments"].values() for r in d["replicas"]]
        models.append(
            {
                "name": name,
                "version": config["args"].get("version"),
                "url": f"{target.url}{app['route_prefix']}",
                "state": app["status"].lower(),
                "replicas": sum(replica["state"] in ("RUNNING", "UPDATING") for replica in replicas),
            }
        )
    grpc = {"grpc": f"{urllib.parse.urlsplit(target.url).hostname}:{target.grpc_port}"} if target.grpc_port else {}
    return {"url": target.url, **grpc, "models": models}


def _describe(target: Target) -> dict[str, Any]:
    described = target.dashboard.applications()["applications"]
    return {name: described[name] for name in _ours(described)}


def _state(home: Path) -> Path:
    return home / "serve.json"


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """One `up` or `down` at a time in a home."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.lock").open("w") as stream:
        os.set_inheritable(stream.fileno(), False)
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
