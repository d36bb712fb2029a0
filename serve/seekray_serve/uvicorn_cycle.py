"""What is changed of uvicorn's class for an answer, in the pinned version and here alone.

An answer leaves in one write, not in one for its head and one for its body: a process that is killed in between (a tenth of its
time is spent there) leaves a client with half an answer, which nobody can ask again for it; and a write is dear beside a small
model. uvicorn has no switch for this.

A stream of events has last words: what its client is told if this process is killed (`last_words.py`).
"""

from __future__ import annotations

from typing import Any

from seekray_serve.last_words import LastWords
from seekray_serve.streaming import EVENTS, error_event, replica_ended

_MARK = "_seekray"


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
    run: Any = Cycle.run_asgi
    if hasattr(send, _MARK):
        return
    last_words = LastWords()

    async def in_one(self: Any, message: Any) -> None:
        transport = self.transport
        if message["type"] == "http.response.start":
            if type(transport) is not _Held:
                self.transport = _Held(transport)
            await send(self, message)
            if self.chunked_encoding and (b"content-type", EVENTS) in message["headers"]:
                words = error_event(replica_ended(), self.scope["path"])
                chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(words), words)
                self.last_words = last_words.leave(transport.get_extra_info("socket").fileno(), chunks)
        elif type(transport) is _Held:
            try:
                await send(self, message)
            finally:
                self.transport = transport.flush()
        else:
            await send(self, message)

    async def attended(self: Any, app: Any) -> None:
        try:
            await run(self, app)
        finally:
            if hasattr(self, "last_words"):
                last_words.take_back(self.last_words)

    setattr(in_one, _MARK, True)
    Cycle.send = in_one  # type: ignore[method-assign]
    Cycle.run_asgi = attended  # type: ignore[method-assign]
