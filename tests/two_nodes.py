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
import urllib.request
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
        """The processes that live, and what they started: a title of Ray's may be written over the mark.

        Ray's agent of a dead node would keep a CPU busy for a minute.
        """
        wanted = f"{MARK}={self.name}".encode()
        parents, found = dict[int, int](), set[int]()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        found.add(int(entry.name))
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

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
    dropped = ("RAY_", "SEEKRAY_", "MLFLOW_", "AWS_")
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
    """A running head of one machine; its dashboard's URL is its address, `gcs` what drivers join."""

    address: str
    gcs: str
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
        yield Head(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", token_file, env, marked)
    except subprocess.CalledProcessError as error:
        raise AssertionError((folder / "log").read_text()) from error
    finally:
        marked.end()
        shutil.rmtree(folder, ignore_errors=True)


# -- two nodes ------------------------------------------------------------------------------


@dataclass
class Cluster:
    """Two nodes of one CPU each that share a network and nothing else, and object storage beside them.

    laptop: the environment of the command line outside of both, which reaches the head's dashboard.
    """

    address: str
    storage: str
    laptop: dict[str, str]
    namespaces: tuple[str, str]
    marked: Marked

    def node_of(self, pid: int) -> int | None:
        """0 for a process on the head, 1 on the worker node, None outside."""
        here = os.readlink(f"/proc/{pid}/ns/net")
        for number, name in enumerate(self.namespaces):
            if here == f"net:[{os.stat(f'/run/netns/{name}').st_ino}]":
                return number
        return None

    def train_workers(self) -> dict[int, int]:
        """Living Ray Train workers: pid → node."""
        found = {}
        for pid in self.marked.pids():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                node = self.node_of(pid)
                if title.startswith(b"ray::RayTrainWorker") and node is not None:
                    found[pid] = node
        return found


def can_have_namespaces() -> bool:
    """True where this process may make network and mount namespaces (root, with iproute2 and util-linux)."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    name = f"sk{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def _network() -> Iterator[tuple[str, tuple[str, str], tuple[str, str]]]:
    """A bridge, two namespaces on it: the bridge's address, the namespaces and their addresses."""
    name = secrets.token_hex(3)
    bridge, spaces = f"sk{name}", (f"sk{name}a", f"sk{name}b")
    net = f"10.{secrets.randbelow(150) + 60}.{secrets.randbelow(250) + 1}"
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{net}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, space in enumerate(spaces):
            outside, inside = f"{space}o", f"{space}i"
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            _ip("link", "set", outside, "master", bridge, "up")
            _ip("link", "set", inside, "netns", space)
            _ip("-n", space, "addr", "add", f"{net}.{number + 1}/24", "dev", inside)
            _ip("-n", space, "link", "set", inside, "up")
            _ip("-n", space, "link", "set", "lo", "up")
        yield f"{net}.254", spaces, (f"{net}.1", f"{net}.2")
    finally:
        for space in spaces:
            subprocess.run(["ip", "link", "del", f"{space}o"], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)


def _on_node(space: str, command: str, env: Mapping[str, str], log: Path, timeout: float = 120) -> None:
    """Run in a namespace with /tmp and /dev/shm of its own, and without seekray's sources."""
    hide = " && ".join(f"mount -t tmpfs none {ROOT / part}" for part in ("platform", "jobs", "serve"))
    disk = "mount -t tmpfs none /tmp"
    if ROOT.is_relative_to("/tmp"):  # a checkout there keeps its environment
        disk = f"mount --bind {ROOT} /mnt && {disk} && mkdir -p {ROOT} && mount --bind /mnt {ROOT}"
    script = f"{disk} && mount -t tmpfs none /dev/shm && {hide} && mkdir /tmp/home && cd /tmp/home && {command}"
    with log.open("wb") as output:
        done = subprocess.run(
            ["ip", "netns", "exec", space, "unshare", "-m", "sh", "-c", script],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            timeout=timeout,
            check=False,
        )
    assert done.returncode == 0, f"{command}\n{log.read_text()[-3000:]}"


@contextlib.contextmanager
def _object_storage(host: str, marked: Marked, folder: Path) -> Iterator[str]:
    """moto's S3 server with an empty bucket; its address."""
    with socket.create_server((host, 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [BIN / "moto_server", "-H", host, "-p", str(port)],
        env=clean_environment(**{MARK: marked.name}),
        stdin=subprocess.DEVNULL,
        stdout=(folder / "moto.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://{host}:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "moto.log").read_text()
                assert process.poll() is None, (folder / "moto.log").read_text()
                time.sleep(0.3)
        yield url
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A head and a worker node with token authentication, each in namespaces of its own, and S3 beside them."""
    marked = Marked()
    folder = Path(tempfile.mkdtemp(prefix="sk2-"))
    token = secrets.token_hex(32)
    token_file = folder / "token"
    token_file.write_text(token)
    token_file.chmod(0o600)
    try:
        with _network() as (host, spaces, addresses), _object_storage(host, marked, folder) as s3:
            keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
            # The token goes as a value: the file is on the laptop's disk, which the nodes do not see.
            node = clean_environment(
                **keys, **{MARK: marked.name}, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, HOME="/tmp/home"
            )
            common = "--num-cpus=1 --object-store-memory=150000000 --disable-usage-stats --temp-dir=/tmp/ray"
            for space, address, role in zip(
                spaces, addresses, ("--head --dashboard-host={0}", "--address={1}:6379"), strict=True
            ):
                place = role.format(address, addresses[0])
                _on_node(space, f"ray start {place} --node-ip-address={address} {common}", node, folder / f"{space}.log")
            laptop = clean_environment(**keys, AWS_ENDPOINT_URL=s3, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_file))
            yield Cluster(f"http://{addresses[0]}:8265", f"s3://{BUCKET}/lab", laptop, spaces, marked)
            marked.end()
    finally:
        marked.end()
        shutil.rmtree(folder, ignore_errors=True)
