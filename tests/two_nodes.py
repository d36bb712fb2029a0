"""Real clusters on this one machine, for tests: a head, or two nodes in two network namespaces.

Every process that a cluster starts, and every one that those start later, carries `MARK` in its
environment; `Marked.end` finds them in /proc and ends them by pid, so that nothing else on the
machine is touched. A node of `two_nodes` has an address, a mount namespace and disks of its own:
/tmp and /root are in its memory, so a path that one node writes is not there for the other.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "SEEKRAY_TEST_CLUSTER"
BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]
BUCKET = "seekray"


@dataclass
class Marked:
    """Processes with a mark of their own."""

    name: str = field(default_factory=lambda: secrets.token_hex(4))

    def pids(self) -> list[int]:
        """The processes that live."""
        wanted = f"{MARK}={self.name}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def end(self, timeout_s: float = 20) -> None:
        """Kill them all, those too that appear meanwhile."""
        deadline = time.monotonic() + timeout_s
        while living := self.pids():
            assert time.monotonic() < deadline, f"processes {living} do not end"
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would lead to another cluster, with this venv's programs first."""
    dropped = ("RAY_", "SEEKRAY_", "MLFLOW_", "AWS_", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return kept | {"PATH": f"{BIN}:{kept.get('PATH', '/usr/bin')}", "RAY_USAGE_STATS_ENABLED": "0"} | extra


def seekray(
    *arguments: str, cwd: Path, env: Mapping[str, str], timeout: float = 180, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    command = [*prefix, str(BIN / "seekray"), *arguments]
    return subprocess.run(command, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=timeout, check=False)


# -- one head -------------------------------------------------------------------------------


@dataclass
class Head:
    """A running head of one machine."""

    address: str
    token_file: Path
    environment: dict[str, str]
    marked: Marked


def _head_options(ports: Sequence[int], folder: Path, host: str) -> list[str]:
    names = (
        "--port",
        "--dashboard-port",
        "--ray-client-server-port",
        "--dashboard-agent-listen-port",
        "--dashboard-agent-grpc-port",
        "--runtime-env-agent-port",
        "--metrics-export-port",
    )
    options = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    options += [f"--node-ip-address={host}", f"--dashboard-host={host}", f"--temp-dir={folder}"]
    return [*options, "--object-store-memory=200000000", "--include-log-monitor=false", "--disable-usage-stats"]


@contextlib.contextmanager
def one_head(cpus: int = 2) -> Iterator[Head]:
    """`ray start --head` on loopback with token authentication, ports and folder of its own."""
    marked = Marked()
    folder = Path(tempfile.mkdtemp(prefix="skh-"))
    token_file = folder / "token"
    token_file.write_text(secrets.token_hex(32))
    token_file.chmod(0o600)
    ports = free_ports(9)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    env = clean_environment(**token)
    own = {
        MARK: marked.name,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "AUTOSCALER_METRIC_PORT": str(ports[7]),
        "DASHBOARD_METRIC_PORT": str(ports[8]),
    }
    try:
        subprocess.run(
            [BIN / "ray", "start", "--head", f"--num-cpus={cpus}", *_head_options(ports[:7], folder / "r", "127.0.0.1")],
            env=env | own,
            stdin=subprocess.DEVNULL,
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
            timeout=120,
            check=True,
        )
        yield Head(f"http://127.0.0.1:{ports[1]}", token_file, env, marked)
    except subprocess.CalledProcessError as error:
        raise AssertionError((folder / "log").read_text()) from error
    finally:
        marked.end()
        shutil.rmtree(folder, ignore_errors=True)
