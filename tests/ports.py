"""What listens, held to the table in docs/security.md, and what a port answers to whom."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from tests.serving import listening

from seekray_serve.lifecycle import instance

ROOT = Path(__file__).resolve().parents[1]
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
# A method of each service that Ray's processes offer; an empty request is a valid one.
METHODS = (
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.serve.ASGIService/HandleRequest",
)


@dataclass(frozen=True)
class Port:
    """A listening socket as the table describes it."""

    process: str
    speaks: str
    bound: str
    host: str
    number: int


def documented() -> list[tuple[str, str, str, str]]:
    """Rows (process, speaks, bound, asks) of the table, those of `serve up` alone."""
    text = (ROOT / "docs/security.md").read_text()
    table = text.split("<!-- ports -->")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")]
    return [(re.findall("`(.+?)`", row[0])[0], row[2], row[3], row[4]) for row in rows]


def opened(name: str, public: int) -> list[Port]:
    """Every listening socket of an instance, once it is the same twice: HAProxy starts anew as replicas come."""
    deadline = time.monotonic() + 30
    before: list[Port] = []
    while True:
        now: list[Port] = []
        with contextlib.suppress(psutil.NoSuchProcess, OSError):  # a process of HAProxy's that ends
            now = [_port(*entry) for entry in listening(instance.pids(name))]
        if now == before and public in {port.number for port in now}:
            return now
        assert time.monotonic() < deadline, now
        before = now
        time.sleep(0.3)


def _port(host: str, number: int, pid: int) -> Port:
    command = " ".join(psutil.Process(pid).cmdline())
    process = next((row[0] for row in documented() if row[0] in command), command)
    return Port(process, _speaks(number), "loopback" if host in LOOPBACK else "every interface", host, number)


def _speaks(number: int) -> str:
    """`HTTP` where a line of HTTP/1.1 is answered in kind, else `gRPC`."""
    with socket.create_connection(("127.0.0.1", number), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return "HTTP" if connection.recv(5) == b"HTTP/" else "gRPC"


def undocumented(ports: list[Port], public: int) -> list[str]:
    """What listens and is in no row, and rows that nothing of stands for."""
    rows = Counter((process, speaks, bound) for process, speaks, bound, _ in documented())
    wrong = []
    for port in ports:
        bound = "`--host`" if port.number == public else port.bound
        if (port.process, port.speaks, bound) not in rows:
            wrong.append(f"{port} is in no row")
    seen = {(p.process, p.speaks, "`--host`" if p.number == public else p.bound) for p in ports}
    return wrong + [f"{row} is nowhere" for row in rows if row not in seen and row[0] != "ray::"]  # those come and go


def grpc_statuses(number: int, token: str | None = None) -> dict[str, str]:
    """What each of Ray's services at a port says to a caller with this token, or with none."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    said = {}
    with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=5, metadata=metadata)
                said[method] = "OK"
            except grpc.RpcError as error:
                said[method] = error.code().name  # type: ignore[attr-defined]
    return said
