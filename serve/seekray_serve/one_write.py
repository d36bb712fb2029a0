"""An answer leaves a process in one write, not in one for its head and one for its body.

uvicorn writes them apart. A process that is killed in between (a tenth of its time is spent there) leaves a client with half an
answer, which nobody can ask again for it; and a write is dear beside a small model. uvicorn has no switch for this, so its
class of the pinned version is changed, here alone.
"""

from __future__ import annotations

from typing import Any

_MARK = "_seekray_one_write"


class _Held:
    """Takes what is written, for one write later."""

    __slots__ = ("_parts", "_to")

    def __init__(self, to: Any) -> None:
        self._to, self._parts = to, list[bytes]()

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> Any:
        if self._parts:
            self._to.write(b"".join(self._parts))
            self._parts.clear()
        return self._to

    def close(self) -> None:
        self.flush().close()

    def is_closing(self) -> bool:
        return bool(self._to.is_closing())


def install() -> None:
    """Change uvicorn's class in this process; again does nothing."""
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle as Cycle

    send: Any = Cycle.send
    if hasattr(send, _MARK):
        return

    async def in_one(self: Any, message: Any) -> None:
        transport = self.transport
        if message["type"] == "http.response.start":
            if type(transport) is not _Held:
                self.transport = _Held(transport)
            await send(self, message)
        elif type(transport) is _Held:
            try:
                await send(self, message)
            finally:
                self.transport = transport.flush()
        else:
            await send(self, message)

    setattr(in_one, _MARK, True)
    Cycle.send = in_one  # type: ignore[method-assign]
