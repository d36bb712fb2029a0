"""Where models are served: a head of our own in a home, or a cluster that somebody else runs."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import ClusterError, UserError
from seekray_serve.keys import operators_key
from seekray_serve.lifecycle import configuration, haproxy
from seekray_serve.lifecycle import instance as instances
from seekray_serve.lifecycle.cluster import Target, find_cluster
from seekray_serve.lifecycle.dashboard import Dashboard

if TYPE_CHECKING:
    from seekray.settings import Settings

DEFAULT_HOST, DEFAULT_PORT = instances.LOOPBACK, 8000


def deployed(target: Target) -> dict[str, dict[str, Any]]:
    """The configuration of every application that is there, also of others' on a shared cluster."""
    described = target.dashboard.applications()["applications"]
    return {name: app["deployed_app_config"] for name, app in described.items() if app.get("deployed_app_config")}


def deploy(target: Target, applications: list[dict[str, Any]]) -> None:
    """Make these the whole of what is deployed."""
    if target.limits_file is not None:  # before the replicas, with which HAProxy reads it
        limits = {app["route_prefix"]: most for app in applications if (most := configuration.in_flight(app)) is not None}
        draft = target.limits_file.with_suffix(".draft")
        draft.write_text(json.dumps(limits))
        draft.replace(target.limits_file)
    target.dashboard.deploy(configuration.whole(applications, target.host, target.port, target.grpc_port))


def check_grpc(port: int | None, address: str | None, consent: bool) -> None:
    """Raises UserError where gRPC is asked for and cannot be served, or was not consented to."""
    if port is None:
        return
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


def attach(
    settings: Settings,
    host: str | None,
    port: int | None,
    address: str | None,
    grpc_port: int | None,
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
        stop(settings.home)
    instance = instances.start(settings.home, host or DEFAULT_HOST, port or DEFAULT_PORT, grpc_port=grpc_port or 0)
    instances.save(state, instance)
    return _own(instance), True


def stop(home: Path) -> None:
    """End the instance of a home, whatever is left of it."""
    state = _state(home)
    instance = instances.load(state)
    if instance is not None:
        instances.stop(instance)
    state.unlink(missing_ok=True)


def running(settings: Settings, address: str | None) -> Target | None:
    """Where models are served, None where nothing runs."""
    if address:
        return find_cluster(address, None, None)
    instance = instances.load(_state(settings.home))
    return _own(instance) if instance and _alive(instance) else None


def _own(instance: instances.Instance) -> Target:
    # Serve itself is told loopback, for its replicas; HAProxy's wrapper opens the public address.
    inner = instances.LOOPBACK if haproxy.find_binary() else instance.host
    dashboard = Dashboard(instance.dashboard, instance.token)
    key = operators_key(instance.token)
    limits = Path(instance.folder) / "h" / haproxy.LIMITS
    file = limits if limits.parent.is_dir() else None
    return Target(
        dashboard, inner, instance.port, instance.url, instance.url, instance.host, instance.grpc_port, key, file
    )  # fmt: skip


def _alive(instance: instances.Instance) -> bool:
    # Asked first, since the dashboard of a dead GCS takes long to say so.
    if not instances.listens(instance.gcs):
        return False
    try:
        _own(instance).dashboard.applications(10)
    except (ClusterError, OSError):
        return False
    return True


def _state(home: Path) -> Path:
    return home / "serve.json"


@contextmanager
def lock(home: Path) -> Iterator[None]:
    """One `up` or `down` at a time in a home."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.lock").open("w") as stream:
        os.set_inheritable(stream.fileno(), False)
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
