"""A Ray head of our own on this machine, for serving: started detached, found again, ended whole.

Everything it needs is chosen for it alone (ports, folders, HAProxy's files), so two of them on
one machine do not meet. Every process carries `SEEKRAY_INSTANCE` in its environment, also those
that Ray starts later and those that outlive a crash: that is how `stop` finds them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from seekray.errors import ClusterError, UserError
from seekray_serve.lifecycle import haproxy
from seekray_serve.options import DRAIN_S
from seekray_serve.options import INSTANCE_MARK as MARK

LOOPBACK = "127.0.0.1"
WILDCARDS = ("0.0.0.0", "::", "")
# Ray replaces 127.0.0.1 by the machine's address unless this says that it will never be a cluster;
# with it the GCS, the raylet, the workers and the metrics exporters all stay on loopback. A driver
# that joins needs it too, or it looks for the GCS at the machine's address.
STAY_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
REPLICA_PORTS = 200
# Request bodies up to this size are kept by HAProxy until they are answered, so that it can ask another replica.
RETRIED_BYTES = 2**17
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Instance:
    """What is known of a running head; kept in `serve.json`. grpc_port: of Serve's gRPC; 0: it has none."""

    name: str
    folder: str
    host: str
    port: int
    dashboard: str
    gcs: str
    token_file: str
    grpc_port: int = 0

    @property
    def url(self) -> str:
        """Where clients go. A wildcard host is reached through loopback from here."""
        host = LOOPBACK if self.host in WILDCARDS else self.host
        return f"http://{host}:{self.port}"

    @property
    def token(self) -> str:
        """Ray's authentication token of this head."""
        return Path(self.token_file).read_text().strip()


def load(state: Path) -> Instance | None:
    """The instance of a state file, None where there is none or it cannot be read."""
    try:
        return Instance(**json.loads(state.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def save(state: Path, instance: Instance) -> None:
    """Write the state file, whole or not at all."""
    draft = state.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(instance), indent=2))
    draft.replace(state)


def pids(name: str) -> list[int]:
    """The processes of an instance that live, also those that lost their parent.

    They inherit its mark in their environment. A process of Ray that shows a title of its own may have written it over
    the mark: then the logs in the instance's folder that it holds open tell.
    """
    mark, files = f"{MARK}={name}".encode(), f"/sk-{name}/"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            titled = (entry / "cmdline").read_bytes().startswith(b"ray::")
            if mark in (entry / "environ").read_bytes().split(b"\0") or (
                titled and any(files in _target(fd) for fd in (entry / "fd").iterdir())
            ):
                found.append(int(entry.name))
    return found


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""


def start(home: Path, host: str, port: int, *, ingress: bool = True, grpc_port: int = 0) -> Instance:
    """Start a head with token authentication and, for Serve, HAProxy where the platform has it.

    ingress: False leaves Serve its own Python proxy. Raises UserError, ClusterError.
    """
    check_port(host, port)
    if grpc_port:
        check_port(host, grpc_port, "grpc-port")
    home.mkdir(parents=True, exist_ok=True)
    name = secrets.token_hex(4)
    # Short, since a socket's path has at most 107 characters and HAProxy's lies two folders below,
    # one of which Serve names by the node's 56 characters.
    folder = Path(tempfile.gettempdir()) / f"sk-{name}"
    folder.mkdir(mode=0o700)
    token_file = _token(home)
    gcs, dashboard, *ports = free_ports(12)
    instance = Instance(
        name=name,
        folder=str(folder),
        host=host,
        port=port,
        dashboard=f"http://{LOOPBACK}:{dashboard}",
        gcs=f"{LOOPBACK}:{gcs}",
        token_file=str(token_file),
        grpc_port=grpc_port,
    )
    options = [
        ("--port", gcs),
        ("--dashboard-port", dashboard),
        ("--ray-client-server-port", ports[0]),
        ("--dashboard-agent-listen-port", ports[1]),
        ("--dashboard-agent-grpc-port", ports[2]),
        ("--runtime-env-agent-port", ports[3]),
        ("--metrics-export-port", ports[4]),
        ("--node-ip-address", LOOPBACK),
        ("--dashboard-host", LOOPBACK),
        ("--temp-dir", folder),
        ("--include-log-monitor", "false"),
        ("--no-monitor", None),
        # A platform's tensors travel through storage; the rest of /dev/shm stays the user's.
        ("--object-store-memory", 200_000_000),
    ]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    command += [option if value is None else f"{option}={value}" for option, value in options]
    log = folder / "ray-start.log"
    try:
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(instance, ports[5:], haproxy.find_binary() if ingress else None),
                start_new_session=True,
                timeout=START_TIMEOUT_S,
                check=False,
            )
    except BaseException as error:  # Ctrl-C too: what has started so far ends
        stop(instance)
        if isinstance(error, subprocess.TimeoutExpired):
            raise ClusterError(f"Ray did not start within {START_TIMEOUT_S:.0f} s") from error
        raise
    if done.returncode:
        text = log.read_text(errors="replace")[-2000:]
        stop(instance)
        raise ClusterError(f"Ray did not start:\n{text}")
    return instance


def stop(instance: Instance, timeout_s: float = 15.0) -> int:
    """End every process of the instance and remove its folder; how many processes there were.

    Works after a crash of any part of it, and for an instance that is already gone.
    """
    seen: set[int] = set()
    deadline = time.monotonic() + timeout_s
    kind = signal.SIGTERM
    patience = time.monotonic() + 2.0  # what Serve keeps on its way out, nobody will read
    while living := pids(instance.name):
        for pid in living:
            if pid not in seen or kind == signal.SIGKILL:
                _signal(pid, kind)
        seen.update(living)
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {living} of the server do not end")
        if time.monotonic() > patience:
            kind = signal.SIGKILL
        time.sleep(0.1)
    shutil.rmtree(instance.folder, ignore_errors=True)
    return len(seen)


def _signal(pid: int, kind: signal.Signals) -> None:
    try:
        os.kill(pid, kind)
    except ProcessLookupError:
        return


def listens(address: str) -> bool:
    """Whether anybody accepts connections at `host:port` of this machine."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def attach_environment(instance: Instance) -> dict[str, str]:
    """What a process needs in its environment, before it imports ray, to join this head."""
    return {
        "RAY_ADDRESS": instance.gcs,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": instance.token_file,
        **STAY_ON_LOOPBACK,
    }


def check_port(host: str, port: int, name: str = "port") -> None:
    """Raises UserError when another program listens on the public port, that of the option `name`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {host} cannot be used ({error.strerror}); end what listens there, or give another --{name}",
                field=name,
            ) from error


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now, different from one another."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports: list[int] = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _replica_ports() -> int:
    """The first of `REPLICA_PORTS` ports below the kernel's own range, which few else use."""
    for first in _shuffled(range(20_000, 32_000, REPLICA_PORTS)):
        try:
            for port in range(first, first + 8):
                socket.create_server((LOOPBACK, port)).close()
        except OSError:
            continue
        return first
    raise ClusterError(f"no {REPLICA_PORTS} free ports between 20000 and 32000")


def _shuffled(values: range) -> Iterator[int]:
    return iter(random.SystemRandom().sample(values, len(values)))


def _token(home: Path) -> Path:
    """Ray's token for this home: what the environment names, else a file only its user can read."""
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(given)
    path = home / "ray_token"
    if not path.exists():
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w") as stream:
            stream.write(os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
    return path


def source_roots() -> list[str]:
    """The folders that Ray's workers need on their path to import what this process imports."""
    import seekray
    import seekray_serve

    roots = [str(Path(module.__file__ or "").resolve().parents[1]) for module in (seekray, seekray_serve)]
    return list(dict.fromkeys(roots))


def _environment(instance: Instance, ports: list[int], binary: str | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SEEKRAY_INSTANCE"))}
    path = os.pathsep.join([*source_roots(), *filter(None, [kept.get("PYTHONPATH")])])
    folder = Path(instance.folder)
    first = _replica_ports()
    half = first + REPLICA_PORTS // 2
    environment = kept | {
        MARK: instance.name,
        "PYTHONPATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": instance.token_file,
        "AUTOSCALER_METRIC_PORT": str(ports[0]),
        "DASHBOARD_METRIC_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports[3]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(half),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(half),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + REPLICA_PORTS),
        # Time for HAProxy to leave a stopping replica; the default of 30 s is for far load balancers.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        # Ray runs its workers, so replicas and HAProxy too, at nice 15, behind whatever else the machine does.
        "RAY_worker_niceness": "0",
        "RAY_enable_metrics_collection": "0",
        **STAY_ON_LOOPBACK,
    }
    if binary:
        files = folder / "h"
        files.mkdir(mode=0o700)
        stats, metrics = free_ports(2)
        environment |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            # A datagram a request to a Python process that parses it, for some 9 % of the throughput
            # and 45 us of the latency on two busy cores. Without it the replicas count the same requests themselves.
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            # Direct ingress without a proxy in front is part of it, so it goes with HAProxy only.
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.write_wrapper(files, binary, instance.host)),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(files / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(files / "a.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(files),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(files / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(files / "m.sock"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            # A replica that dies before it answered anything: another one is asked. Nothing here changes anything by being
            # asked twice.
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(RETRIED_BYTES),
            # An HAProxy that was replaced by one with other replicas stays until its streams have ended.
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(DRAIN_S),
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        }
    return environment
