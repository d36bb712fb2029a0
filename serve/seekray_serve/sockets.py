"""A WebSocket of an ASGI application: messages as texts, errors as JSON, before it is accepted as an HTTP answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from seekray.errors import TooLargeError

GOING_AWAY, WRONG, BROKEN = 1001, 1008, 1011
_DENIAL = "websocket.http.response"


class SocketClosedError(Exception):
    """The other side has closed; there is nobody to answer."""


class Socket:
    """One connection. Nothing is accepted until `accept`, so that a wrong address or model is an HTTP status."""

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self._accepted = False

    async def accept(self) -> None:
        """Open the connection."""
        if (await self._receive())["type"] != "websocket.connect":
            raise SocketClosedError
        await self._send({"type": "websocket.accept"})
        self._accepted = True

    async def messages(self, limit: int) -> AsyncIterator[bytes]:
        """Each message until the other side closes, texts as UTF-8. Raises TooLargeError over `limit` bytes."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            if data is None:
                data = (message.get("text") or "").encode()
            if len(data) > limit:
                raise TooLargeError(f"the message is over the limit of {limit:,} bytes")
            yield data

    async def send(self, text: bytes) -> None:
        """One message, as text."""
        await self._send({"type": "websocket.send", "text": text.decode()})

    async def close(self, code: int = 1000) -> None:
        """End the connection."""
        await self._send({"type": "websocket.close", "code": code})

    async def fail(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """End the connection with an error: an HTTP answer before it was accepted, else a message and a close."""
        if self._accepted:
            await self.send(body)
            await self.close(BROKEN if status >= 500 else WRONG)
        elif _DENIAL in (self.scope.get("extensions") or {}):
            await self._send({"type": f"{_DENIAL}.start", "status": status, "headers": headers})
            await self._send({"type": f"{_DENIAL}.body", "body": body})
        else:  # the server can say 403 alone
            await self.close(WRONG)
