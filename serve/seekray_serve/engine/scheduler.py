"""One thread that gives every text its next token; requests join and leave between two steps. Knows no Ray and no HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from seekray.errors import TooBusyError

if TYPE_CHECKING:
    from seekray.models.text_engine import Job, Piece, TextEngine

# The engine takes the interpreter's lock after every kernel. At Python's 5 ms the event loop holds it for too long: 7 % fewer
# tokens with 16 streams.
SWITCH_S = 1e-4

Command = Callable[["TextEngine"], None]
Key = tuple["Ticket", int]


class Ticket:
    """A request's texts in the making."""

    def __init__(self, owner: EngineThread, jobs: Sequence[Job]) -> None:
        self.keys: list[Key] = [(self, number) for number in range(len(jobs))]
        self.jobs = [dataclasses.replace(job, key=key) for job, key in zip(jobs, self.keys, strict=True)]
        self.loop = asyncio.get_running_loop()
        self.open = len(jobs)  # as the event loop knows
        self.unfinished = len(jobs)  # as the engine's thread knows
        self._owner = owner
        self._events: asyncio.Queue[list[Piece] | Exception] = asyncio.Queue()

    async def pieces(self) -> list[Piece]:
        """What the last steps added, of each text in its order; `key[1]` of a piece's job is the text's number.

        [] when every text has ended. Raises what the engine says of these texts.
        """
        if not self.open and self._events.empty():
            return []
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        while not self._events.empty():
            later = self._events.get_nowait()
            if isinstance(later, Exception):
                raise later
            event += later
        return event

    def cancel(self) -> None:
        """Forget the texts that are not finished; their rows are free before the next step."""
        if self.open:
            self.close()
            self._owner.forget(self)

    def close(self) -> None:
        """Take no more pieces."""
        self._owner.texts -= self.open
        self.open = 0

    def take(self, event: list[Piece] | Exception) -> None:
        """An event of the engine's, in the event loop."""
        if not self.open:
            return
        if isinstance(event, Exception):
            self.close()
        else:
            ended = sum(piece.finish is not None for piece in event)
            self.open -= ended
            self._owner.texts -= ended
            self._owner.tokens += len(event)
        self._events.put_nowait(event)


class EngineThread:
    """Runs the engine that `make` gives. rows: texts made together; max_queued: texts that may wait behind them, -1 any number.

    texts: unfinished now, those that wait included; tokens: made since it started; failures: engines that broke.
    """

    def __init__(self, make: Callable[[], TextEngine], *, rows: int, max_queued: int = -1) -> None:
        self._make, self._rows, self._max_queued = make, rows, max_queued
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._begun: set[Ticket] = set()  # the thread's own
        self._engine: TextEngine | None = None
        self.texts = self.tokens = self.failures = 0
        self._thread.start()

    @property
    def queued(self) -> int:
        """Texts that wait for a row."""
        return max(0, self.texts - self._rows)

    def counters(self) -> dict[str, int]:
        """Of the engine (`TextEngine.counters`), as of its last step, for whoever shows them; `failures` is there always."""
        engine = self._engine
        return {"failures": self.failures} | ({} if engine is None else engine.counters())

    def submit(self, jobs: Sequence[Job]) -> Ticket:
        """Begin with the next step. Raises TooBusyError when too many texts wait."""
        if 0 <= self._max_queued <= self.texts - self._rows:
            raise TooBusyError.of(self.queued, "texts")
        ticket = Ticket(self, jobs)
        self.texts += ticket.open

        def begin(engine: TextEngine) -> None:
            try:
                for job in ticket.jobs:
                    engine.submit(job)
            except Exception as error:  # of this request alone: a prompt that leaves no room
                _cancel(engine, ticket)
                self._tell({ticket: error})
            else:
                self._begun.add(ticket)

        self._inbox.put(begin)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """Cancel a ticket's texts before the next step."""

        def cancel(engine: TextEngine) -> None:
            _cancel(engine, ticket)
            self._begun.discard(ticket)

        self._inbox.put(cancel)

    def close(self) -> None:
        """End the thread after its step."""
        self._inbox.put(None)

    def _run(self) -> None:
        sys.setswitchinterval(SWITCH_S)
        engine = self._engine = self._make()
        while self._obey(engine):
            try:
                pieces = engine.step()
            except Exception as error:  # a bug: everyone hears of it, and the next request finds a sound engine
                self._tell(dict.fromkeys(self._begun, error))
                self._begun.clear()
                self.failures += 1
                engine = self._engine = self._make()
                continue
            events: dict[Ticket, list[Piece]] = {}
            for piece in pieces:
                ticket = piece.job.key[0]
                events.setdefault(ticket, []).append(piece)
                ticket.unfinished -= piece.finish is not None
            self._begun.difference_update([ticket for ticket in events if not ticket.unfinished])
            errors: dict[Ticket, Exception] = {piece.job.key[0]: piece.error for piece in pieces if piece.error}
            for ticket in errors:  # a text that cannot go on: of its request alone
                _cancel(engine, ticket)
                self._begun.discard(ticket)
            self._tell({ticket: errors.get(ticket) or event for ticket, event in events.items()})

    def _obey(self, engine: TextEngine) -> bool:
        """Commands that wait, and where there is nothing to do the next one; False to end."""
        while True:
            try:
                command = self._inbox.get(block=not len(engine))
            except queue.Empty:
                return True
            if command is None:
                return False
            command(engine)

    @staticmethod
    def _tell(events: Mapping[Ticket, list[Piece] | Exception]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, list[Piece] | Exception]]] = {}
        for ticket, event in events.items():
            loops.setdefault(ticket.loop, []).append((ticket, event))
        for loop, told in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_take, told)


def _cancel(engine: TextEngine, ticket: Ticket) -> None:
    for key in ticket.keys:
        engine.cancel(key)


def _take(told: Sequence[tuple[Ticket, list[Piece] | Exception]]) -> None:
    for ticket, event in told:
        ticket.take(event)
