"""What a running Ray has, asked in a process of its own: Ray's client may hang or abort where something is wrong.

`python -m seekray.inspect.ask_cluster host:port` prints one JSON document: `{nodes, versions}`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seekray.cluster import Address
from seekray.ray_environment import STAY_ON_LOOPBACK


@dataclass(frozen=True)
class Node:
    """One living node. total, free: resources by name. here: it is this machine."""

    address: str
    total: dict[str, float]
    free: dict[str, float]
    here: bool


@dataclass(frozen=True)
class Cluster:
    """A cluster's answer, or why there is none (`error`). versions: ray and python, where they were told."""

    address: str
    nodes: list[Node] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""

    def total(self, name: str) -> float:
        """A resource over all nodes."""
        return sum(n.total.get(name, 0.0) for n in self.nodes)

    def free(self, name: str) -> float:
        """A resource that nobody uses now, over all nodes."""
        return sum(n.free.get(name, 0.0) for n in self.nodes)

    @property
    def here(self) -> bool:
        """True where every node is this machine."""
        return bool(self.nodes) and all(n.here for n in self.nodes)


def ask(place: Address, timeout_s: float = 4.0) -> Cluster:
    """Ask a cluster; never raises and never waits longer than `timeout_s`. No Ray is started."""
    if place.gcs.startswith(("http://", "https://")):
        return _ask_dashboard(place, timeout_s)
    host, _, port = place.gcs.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        if place.gcs != "auto":
            return Cluster(place.gcs, error=f"{place.gcs} is not an address; expected host:port, for example 10.0.0.1:6379")
    else:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=min(2.0, timeout_s)).close()
        except OSError as error:
            return Cluster(place.gcs, error=f"nothing answers at {place.gcs} ({error.strerror or error}); is the cluster up?")
    if place.gcs.startswith("ray://"):
        return Cluster(place.gcs, error="it answers; what it has cannot be asked through ray://, give the head's host:port")
    environment = dict(os.environ)
    if place.token_file:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": place.token_file} | STAY_ON_LOOPBACK
    try:
        done = subprocess.run(
            [sys.executable, "-m", "seekray.inspect.ask_cluster", place.gcs],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Cluster(place.gcs, error=f"{place.gcs} takes connections but did not answer in {timeout_s:g} s; {_token_hint()}")
    except (OSError, ValueError, IndexError):
        return Cluster(place.gcs, error=f"{place.gcs} did not answer as a Ray of this version does; {_token_hint()}")
    if answer.get("error"):
        return Cluster(place.gcs, error=f"{place.gcs}: {answer['error']}; {_token_hint()}")
    return Cluster(place.gcs, [Node(**n) for n in answer["nodes"]], answer["versions"])


def _token_hint() -> str:
    given = os.environ.get("RAY_AUTH_TOKEN_PATH") or ("RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else "")
    if not given and not Path("~/.ray/auth_token").expanduser().exists():
        return "there is no token here: copy the head's (`ray get-auth-token` there) to ~/.ray/auth_token, mode 600"
    return f"is the token ({given or '~/.ray/auth_token'}) the head's (`ray get-auth-token` there)?"


def _ask_dashboard(place: Address, timeout_s: float) -> Cluster:
    url = place.gcs.rstrip("/")
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = place.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    if not token:
        try:
            token = Path(file).expanduser().read_text().strip()
        except OSError:
            token = ""

    def get(path: str) -> Any:
        request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.urlopen(request, timeout=timeout_s / 2) as response:
            return json.load(response)

    try:
        version = get("/api/version")
        summary = get("/nodes?view=summary")["data"]["summary"]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Cluster(url, error=f"{url} refuses: {_token_hint()}")
        return Cluster(url, error=f"{url} answers {error.code}; expected Ray's dashboard")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Cluster(url, error=f"no Ray dashboard answers at {url} ({error}); is the cluster up, the tunnel open?")
    nodes = []
    for entry in summary:
        raylet = entry.get("raylet") or {}
        if raylet.get("state", "ALIVE") == "ALIVE":
            total = {k: float(v) for k, v in (raylet.get("resourcesTotal") or {}).items() if k in ("CPU", "GPU", "memory")}
            here = Path(raylet.get("sessionDir") or "/nowhere").is_dir()
            nodes.append(Node(str(entry.get("ip", "?")), total, total, here))
    return Cluster(url, nodes, {"ray": str(version.get("ray_version", "?"))})


def _told(address: str) -> dict[str, Any]:
    """In the child: the cluster's nodes and versions."""
    from ray._private import services
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]

    if address == "auto":
        address = services.canonicalize_bootstrap_address_or_die("auto")
    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    table = [node for node in state.node_table() if node["Alive"]]
    free = state.available_resources_per_node()
    own = _own_addresses()
    kept = ("CPU", "GPU", "memory")
    nodes = [
        {
            "address": node["NodeManagerAddress"],
            "total": {k: float(v) for k, v in node["Resources"].items() if k in kept},
            "free": {k: float(v) for k, v in free.get(node["NodeID"], {}).items() if k in kept},
            "here": node["NodeManagerAddress"] in own and node.get("NodeManagerHostname") == socket.gethostname(),
        }
        for node in table
    ]
    return {"nodes": nodes, "versions": _versions(address)}


def _versions(address: str) -> dict[str, str]:
    """What the head wrote into its key-value store when it started."""
    from ray._common.usage import usage_lib
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    told = usage_lib.get_cluster_metadata(GcsClient(address=address)) or {}
    return {k: told[f"{k}_version"] for k in ("ray", "python") if f"{k}_version" in told}


def _own_addresses() -> set[str]:
    import psutil

    return {a.address for all_of in psutil.net_if_addrs().values() for a in all_of} | {"127.0.0.1", "localhost"}


if __name__ == "__main__":
    try:
        print(json.dumps(_told(sys.argv[1])))
    except Exception as error:
        print(json.dumps({"error": (str(error).splitlines() or [type(error).__name__])[0][:300]}))
