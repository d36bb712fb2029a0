"""An application whose model is replaced while it answers: each request is wholly of the version that it began with.

Knows no Ray and no registry. A new version is an application of its own, loaded and warmed up beside the old one; a request
holds the application that was there when it came, so that replacing one is an assignment. The old one ends when its last
request has.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from seekray.errors import CorruptError
from seekray_serve.http import Application, Receive, Response, Scope, Send
from seekray_serve.metrics import CONTENT_TYPE, Families, Measures, Meter, add, joined, process, text

# Versions whose counts are told: of older ones nobody's rate is asked.
KEPT_VERSIONS = 8

if TYPE_CHECKING:
    from seekray.generator import Generator
    from seekray.loaded import LoadedModel
    from seekray.predictor import Predictor
    from seekray_serve.board import Exporter
    from seekray_serve.following import Follower


class ModelApplication(Application):
    """The application of one version of a model."""

    loaded: Predictor | Generator

    def measures(self) -> Measures:
        """What it counts beside its answers."""
        return Measures()

    def close(self) -> None:
        """Let go of everything: handlers are bound to the application, and memory should not wait for the garbage collector."""
        vars(self).clear()


class _Held:
    """An application and its requests in flight."""

    __slots__ = ("application", "idle", "requests")

    def __init__(self, application: ModelApplication) -> None:
        self.application = application
        self.requests = 0
        self.idle: asyncio.Event | None = None

    def release(self) -> None:
        """A request has ended."""
        self.requests -= 1
        if self.idle is not None and not self.requests:
            self.idle.set()


class Versions(Application):
    """Answers with the version that is current. follower: what brings others, if anything does; replica: its name."""

    def __init__(
        self,
        application: ModelApplication,
        follower: Follower | None = None,
        *,
        replica: str = "0",
        exporter: Exporter | None = None,
    ) -> None:
        super().__init__()
        self._replica, self._follower, self._exporter = replica, follower, exporter
        self._meters: dict[str | None, Meter] = {}
        self._leaving: set[_Held] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._current = self._held(application)

    @property
    def current(self) -> ModelApplication:
        """The application that the next request meets."""
        return self._current.application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or Serve's start and stop."""
        if scope["type"] == "lifespan":
            await self._other(scope, receive, send)
            return
        held = self._current
        held.requests += 1
        try:
            await held.application(scope, receive, send)
        finally:
            held.release()

    @contextlib.contextmanager
    def held(self) -> Iterator[ModelApplication]:
        """The current application, which does not end before the block does: for calls that are no ASGI."""
        held = self._current
        held.requests += 1
        try:
            yield held.application
        finally:
            held.release()

    async def startup(self) -> None:
        """Warm up, begin to follow, and to tell what is counted."""
        await self.current.startup()
        if self._follower is not None:
            self._task(self._follower.follow(self))
        if self._exporter is not None:
            self._task(self._exporter.export(self.families))

    async def shutdown(self) -> None:
        """Follow no more, and let go."""
        for task in self._tasks:
            task.cancel()
        await self.current.shutdown()

    async def replace(self, application: ModelApplication) -> None:
        """Warm `application` up, and answer with it from the next request on."""
        try:
            await application.startup()
        except BaseException:
            await application.shutdown()
            application.close()
            raise
        old, self._current = self._current, self._held(application)
        self._leaving.add(old)
        self._task(self._end(old))

    def families(self) -> Families:
        """What is counted in this replica, of each version."""
        own = {"model": str(self.current.loaded.name), "replica": self._replica}
        now = {version: Measures() for version in self._meters}
        for held in (self._current, *self._leaving):
            measures = held.application.measures()
            measures.gauges["requests_running"] = held.requests
            now.setdefault(held.application.loaded.version, Measures()).take(measures)
        parts = [self._meters[v].families({**own, "version": str(v)}, m) for v, m in now.items() if v in self._meters]
        found = joined([*parts, process(own)])
        loaded = self.current.loaded
        info = {**own, "version": str(loaded.version), "bundle": loaded.hash[:12]}
        add(found, "seekray_version_info", [["", info, 1]])
        return found

    async def metrics(self, scope: Scope, receive: Receive) -> Response:
        """All replicas' counts for Prometheus: this one's now, the others' of a few seconds ago."""
        others = await self._exporter.others() if self._exporter else []
        return Response(text(joined([self.families(), *others])), content_type=CONTENT_TYPE)

    def _held(self, application: ModelApplication) -> _Held:
        """An application that goes on counting where one of the same version ended."""
        version = application.loaded.version
        self._meters[version] = application.meter = self._meters.pop(version, application.meter)
        while len(self._meters) > KEPT_VERSIONS:
            del self._meters[next(iter(self._meters))]
        application.add("GET", "/metrics", self.metrics)
        return _Held(application)

    def _task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, held: _Held) -> None:
        """Shut an application down when its last request has ended."""
        if held.requests:
            held.idle = asyncio.Event()
            await held.idle.wait()
        await held.application.shutdown()
        measures = held.application.measures()
        held.application.meter.past.take(Measures(measures.counters, {}, measures.histograms))
        self._leaving.discard(held)
        held.application.close()
        del held
        await asyncio.get_running_loop().run_in_executor(None, _give_back)


def _give_back() -> None:
    """Return what was freed to the machine: glibc keeps it for a thread to come, and each version has threads of its own."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def checked(application: ModelApplication) -> ModelApplication:
    """The application, if its model answers its own sample as it did when it was saved. Raises CorruptError."""
    from seekray.verify import unlike_kept

    if words := unlike_kept(application.loaded):
        discard(application)
        raise CorruptError(f"its answers are not those kept in its bundle: {words}")
    return application


def discard(application: ModelApplication) -> None:
    """End an application that never served; called in any thread."""
    with contextlib.suppress(Exception):  # nothing of it has run
        asyncio.run(application.shutdown())
    application.close()


def incompatible(old: LoadedModel, new: LoadedModel) -> str | None:
    """Why the callers of one model would not get on with another; None where they would."""
    parts: list[tuple[str, Callable[[LoadedModel], Any]]] = [
        ("family", lambda m: m.info["family"]),
        ("task", lambda m: m.task),
        ("features", lambda m: {f.name: f"{f.kind}{f.size or ''}" for f in m.schema.features}),
        ("classes", lambda m: list(getattr(m.schema, "classes", None) or [])),
        ("conditions", lambda m: list(getattr(m.schema, "conditions", None) or [])),
        ("a chat template", lambda m: getattr(m.schema, "chat_template", None) is not None),
    ]
    for what, of in parts:
        before, after = of(old), of(new)
        if before != after:
            if isinstance(before, dict):
                changed = sorted({k for k, _ in before.items() ^ after.items()})
                return f"{what} are others ({', '.join(changed[:5])}{', …' if len(changed) > 5 else ''})"
            return f"{what}: {after!r}, where {before!r} is served"
    return None
