"""Finding a Ray cluster that somebody else runs, and how to speak with it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from seekray.errors import ClusterError
from seekray_serve.keys import operators_key, ray_token
from seekray_serve.lifecycle.dashboard import Dashboard

ASK_TIMEOUT_S = 30
# The GCS is asked itself, and no driver joins: that would have to run on a node of the cluster.
_ASK = (
    "import sys; from ray._raylet import GcsClient;"
    "found = GcsClient(address=sys.argv[1]).internal_kv_get(b'dashboard', b'dashboard', timeout=20);"
    "print('dashboard', (found or b'').decode())"
)


@dataclass(frozen=True)
class Target:
    """Where to deploy: the dashboard, what Serve is told to bind, the address for clients, the one by which a process in the
    cluster reaches the ingress, what is bound for clients, the port of its gRPC (0: none), the key that its endpoints take
    from whoever deploys, and the file of its HAProxy's limits, if that is ours."""

    dashboard: Dashboard
    host: str
    port: int
    url: str
    inner_url: str
    public: str
    grpc_port: int = 0
    key: str | None = None
    limits_file: Path | None = None


def find_cluster(address: str, host: str | None, port: int | None) -> Target:
    """The cluster at a dashboard's URL (`http://head:8265`) or at a GCS address (`head:6379`).

    Serve's own address is kept where it runs already, since it cannot change. Raises ClusterError.
    """
    base = address if address.startswith(("http://", "https://")) else _dashboard_of(address)
    token = ray_token(os.environ)
    dashboard = Dashboard(base, token)
    there = dashboard.applications().get("http_options") or {}
    host = there.get("host") or host or "127.0.0.1"
    port = int(there.get("port") or port or 8000)
    head = urllib.parse.urlsplit(base).hostname or "127.0.0.1"
    url = f"http://{head}:{port}"
    # An ingress on every node listens on loopback too, unless it was bound to one address.
    inner = "127.0.0.1" if host in ("127.0.0.1", "0.0.0.0", "::", "localhost") else host
    key = operators_key(token) if token else None
    return Target(dashboard, host, port, url, f"http://{inner}:{port}", host, key=key)


def _dashboard_of(address: str) -> str:
    # In a process of its own: it imports ray, and the GCS client retries for minutes.
    mode = {"RAY_AUTH_MODE": "token"} if ray_token(os.environ) else {}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, address],
            env=os.environ | mode, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"no Ray answers at {address} within {ASK_TIMEOUT_S} s") from error
    for line in done.stdout.splitlines():
        if line.startswith("dashboard ") and (found := line.removeprefix("dashboard ").strip()):
            return found if "://" in found else f"http://{found}"
    reason = done.stderr.strip().splitlines()[-1:] or ["it has no dashboard"]
    raise ClusterError(f"no Ray cluster with a dashboard at {address}: {reason[0]}")
