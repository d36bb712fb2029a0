"""A WebSocket of the front door, passed on to the model's own, where no HAProxy has rewritten its path."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from seekray_serve.http import RequestError
from seekray_serve.sockets import GOING_AWAY, Socket

if TYPE_CHECKING:
    import aiohttp


async def relay(socket: Socket, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], limit: int) -> None:
    """Pass messages both ways until either side closes. Raises RequestError where the model takes no connection."""
    import aiohttp

    try:
        inner = await session.ws_connect(url, headers=headers, max_msg_size=limit)
    except aiohttp.WSServerHandshakeError as error:
        raise RequestError(
            error.status, "no_stream", f"the model takes no steps here ({error.status}); its /v1/stream says why to a POST"
        ) from error
    except aiohttp.ClientError as error:
        raise RequestError(503, "unavailable", f"the ingress does not answer: {error}") from error
    async with inner:
        await socket.accept()
        up = asyncio.ensure_future(_up(socket, inner, limit))
        down = asyncio.ensure_future(_down(socket, inner))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if down.done() and not up.done():  # the model's side has ended; the client may go on elsewhere with its state
                await socket.close(inner.close_code or GOING_AWAY)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)


async def _up(socket: Socket, inner: aiohttp.ClientWebSocketResponse, limit: int) -> None:
    async for message in socket.messages(limit):
        await inner.send_bytes(message)


async def _down(socket: Socket, inner: aiohttp.ClientWebSocketResponse) -> None:
    async for message in inner:
        await socket.send(message.data.encode())
