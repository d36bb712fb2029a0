"""An answer comes in one piece, whatever the method and the way it ends; a stream has last words when its process is killed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import uvicorn.protocols.http.httptools_impl as uvicorn_http
from tests.serving import Server, until

from seekray_serve import uvicorn_cycle
from seekray_serve.http import Application, Receive, Response, Scope, read_body
from seekray_serve.streaming import EventStream


class Echo(Application):
    """Gives back what it gets, whole or in events."""

    def __init__(self) -> None:
        super().__init__()
        self.add("GET", "/", self.echo)
        self.add("POST", "/", self.echo)
        self.add("GET", "/events", self.events)

    async def echo(self, scope: Scope, receive: Receive) -> Response:
        return Response(await read_body(scope, receive, 2**20) or b"nothing")

    async def events(self, scope: Scope, receive: Receive) -> Response:
        async def made():
            for number in range(3):
                yield b"data: %d\n\n" % number

        return EventStream(made(), receive, lambda: None)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes]]]:
    """The address of an application, and what its transports were told to write."""
    for name in ("send", "run_asgi"):
        monkeypatch.setattr(uvicorn_http.RequestResponseCycle, name, getattr(uvicorn_http.RequestResponseCycle, name))
    uvicorn_cycle.install()
    uvicorn_cycle.install()
    written: list[bytes] = []
    made = uvicorn_http.HttpToolsProtocol.connection_made

    def connection_made(self, transport):
        class Spy:
            def __getattr__(self, name):
                return getattr(transport, name)

            def write(self, data):
                written.append(bytes(data))
                transport.write(data)

        made(self, Spy())

    monkeypatch.setattr(uvicorn_http.HttpToolsProtocol, "connection_made", connection_made)
    with Server(Echo()) as server:
        yield server.url.removeprefix("http://"), written


def ask(address: str, request: bytes, ends: bytes = b"") -> bytes:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(request)
        got = b""
        while part := client.recv(65536):
            got += part
            if ends and got.endswith(ends):
                break
        return got


def test_head_and_body_are_one_write(writes):
    address, written = writes
    keep = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    assert ask(address, keep, b"abc").endswith(b"\r\n\r\nabc")
    assert len(written) == 1
    written.clear()
    last = keep.replace(b"Host", b"Connection: close\r\nHost")
    assert ask(address, keep + last).count(b"\r\n\r\nabc") == 2  # pipelined
    assert len(written) == 2
    written.clear()
    close = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert ask(address, close).endswith(b"\r\n\r\nnothing")
    assert len(written) == 1
    head = b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b"content-length: 0" in ask(address, head).lower()
    continued = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    assert b"100 Continue" in ask(address, continued)


def test_events_come_as_they_are_made_the_first_with_the_head(writes):
    address, written = writes
    found = ask(address, b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert found.count(b"data: ") == 3
    assert written[0].startswith(b"HTTP/1.1 200")
    assert written[0].endswith(b"data: 0\n\n\r\n")
    assert len(written) == 4


STREAMS = """
import asyncio, sys
from seekray_serve import uvicorn_cycle
from seekray_serve.http import Application, read_body
from seekray_serve.streaming import EventStream
from tests.serving import Server

class Streams(Application):
    def __init__(self):
        super().__init__()
        self.add("GET", "/endless", self.events)
        self.add("GET", "/v1/completions", self.events)
        self.add("GET", "/short", self.events)

    async def events(self, scope, receive):
        await read_body(scope, receive, 100)

        async def made():
            yield b"data: 0\\n\\n"
            while scope["path"] != "/short":
                await asyncio.sleep(3600)
        return EventStream(made(), receive, lambda: None)

uvicorn_cycle.install()
with Server(Streams()) as server:
    print(server.url.removeprefix("http://"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def streams() -> Iterator[tuple[psutil.Process, tuple[str, int]]]:
    """A process that streams, and its address."""
    command = [sys.executable, "-c", STREAMS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        host, _, port = process.stdout.readline().strip().partition(":")
        yield psutil.Process(process.pid), (host, int(port))
        process.kill()


def begun(address: tuple[str, int], path: str, ends: bytes = b"data: 0\n\n\r\n") -> socket.socket:
    """A connection on which the stream's first event has come."""
    client = socket.create_connection(address, timeout=20)
    client.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
    got = b""
    while ends not in got:  # the end of a short one may come with it
        part = client.recv(65536)
        assert part, got
        got += part
    return client


def rest(client: socket.socket) -> bytes:
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_streams_of_a_killed_process_end_with_an_error_each_in_the_form_of_its_path(streams):
    process, address = streams
    mine, openai, ended = begun(address, "/endless"), begun(address, "/v1/completions"), begun(address, "/short", b"0\r\n\r\n")
    [attendant] = process.children()
    process.kill()
    size, event, last = rest(mine).split(b"\r\n", 2)
    assert int(size, 16) == len(event)
    assert last == b"0\r\n\r\n"
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "unavailable"
    _, event, _ = rest(openai).split(b"\r\n", 2)
    assert json.loads(event.removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert rest(ended) == b""  # it has had its end
    attendant.wait(10)


def test_a_connection_whose_client_hangs_up_is_held_by_nobody(streams):
    process, address = streams
    for path in ("/endless", "/short"):
        begun(address, path).close()
    [attendant] = process.children()
    until(lambda: len(attendant.net_connections("tcp")), 0)
    process.kill()
    attendant.wait(10)
