"""Answers that are sent while they are made, and work that ends when nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from seekray_serve.http import ClientGoneError, Headers, Receive, RequestError, Response, Send, error_response

Result = TypeVar("Result")

EVENTS = b"text/event-stream"


def replica_ended() -> RequestError:
    """What a client is told of a stream that was broken off."""
    return RequestError(503, "unavailable", "the replica that made this answer has ended; ask again")


def error_event(error: Exception, path: str) -> bytes:
    """The event that ends a stream with an error, in the form of the path's errors."""
    return b"data: " + error_response(error, path).body + b"\n\n"


class EventStream(Response):
    """Server-sent events as they come, and an end to the work behind them when the client hangs up.

    events: the body's parts; a failure among them becomes an event of its own. end: called once, however it ends.
    """

    __slots__ = ("_end", "_events", "_path", "_receive")

    def __init__(self, events: AsyncIterator[bytes], receive: Receive, end: Callable[[], None], path: str = "") -> None:
        super().__init__(b"", content_type=EVENTS, headers=[(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])
        self._events, self._receive, self._end, self._path = events, receive, end, path

    async def send(self, send: Send) -> None:
        """Write the response."""
        headers: Headers = [(b"content-type", self.content_type), *(self.headers or [])]
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            with contextlib.suppress(ClientGoneError):
                await unless_gone(self._receive, self._write(send))
        finally:
            self._end()

    async def _write(self, send: Send) -> None:
        try:
            async for part in self._events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except Exception as error:
            await send({"type": "http.response.body", "body": error_event(error, self._path), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up: ClientGoneError then.

    For a request whose body has been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and gone.exception() is None and gone.result()["type"] == "http.disconnect":
            raise ClientGoneError
        return await task
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
