"""What Serve is told: an application for each model and one for the front door, in its own declarative configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seekray.errors import UserError
from seekray_serve.lifecycle.ready import FRONT, ModelToServe, import_path
from seekray_serve.options import check_options, limits, own_module

FRONT_PATH = "seekray_serve.front:build"
# What Serve's gRPC servers are told to listen for; the replicas answer it (`predict/inference_service.py`).
SERVICER = "seekray_serve.predict.inference_service.add_to_server"
RUNNING = 16  # texts that are made together
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
# First segments of the front door's own paths, and its application's name.
_RESERVED = frozenset(("v1", "v2", "docs", "healthz", "openapi.json", "page.js", "page.css", FRONT))


def application(model: ModelToServe) -> dict[str, Any]:
    """A model's application. Raises UserError for a name that cannot be a path, or an option that does not exist."""
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
        "args": {"name": model.name, "version": model.version, "bundle": str(folder), **own_module(folder), **options}
        | ({"follow": dict(model.follow)} if model.follow else {}),
    }


def front(url: str) -> dict[str, Any]:
    """The front door's application."""
    return {"name": FRONT, "route_prefix": "/", "import_path": FRONT_PATH, "args": {"url": url}}


def in_flight(app: Mapping[str, Any]) -> int | None:
    """The requests that a replica of a model may have: those that wait, and those of the running batch. None: any number."""
    if app.get("import_path") in (None, FRONT_PATH) or not str(app["import_path"]).startswith("seekray_serve."):
        return None
    given = limits(app["args"])
    if given.max_queued_requests < 0:
        return None
    return given.max_queued_requests + max(RUNNING, min(given.max_queued_requests, given.max_batch_rows))


def whole(applications: list[dict[str, Any]], host: str, port: int, grpc_port: int = 0) -> dict[str, Any]:
    """All that is to be deployed."""
    grpc = {"grpc_options": {"port": grpc_port, "grpc_servicer_functions": [SERVICER]}} if grpc_port else {}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port, "keep_alive_timeout_s": 90},
        **grpc,
        # A line a request is dear beside a small model's answer; the metrics count them.
        "logging_config": {"enable_access_log": False},
        "applications": applications,
    }


def ours(described: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configurations of our applications among those that Serve describes."""
    found = {}
    for name, app in described.items():
        config = app.get("deployed_app_config") or {}
        if str(config.get("import_path", "")).startswith("seekray_serve."):
            found[name] = config
    return found


def settled(old: Mapping[str, Any] | None, new: Mapping[str, Any], version: str | None) -> bool:
    """Whether an endpoint that follows an alias is as it is wanted but for the version, and has come to that one by itself."""
    if old is None or not new["args"].get("follow") or new["args"]["version"] != version:
        return False
    return same(_without_version(old), _without_version(new))


def _without_version(app: Mapping[str, Any]) -> dict[str, Any]:
    args = {key: value for key, value in app["args"].items() if key not in ("version", "bundle", "modules")}
    return {**app, "args": args}


def same(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    """Whether an application is deployed as it is wanted."""
    return old is not None and all(old.get(key) == value for key, value in new.items())
