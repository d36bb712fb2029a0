"""An answer comes in one piece, whatever the method and the way it ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import uvicorn.protocols.http.httptools_impl as uvicorn_http
from tests.serving import Server

from seekray_serve import one_write
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
    monkeypatch.setattr(uvicorn_http.RequestResponseCycle, "send", uvicorn_http.RequestResponseCycle.send)
    one_write.install()
    one_write.install()
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
