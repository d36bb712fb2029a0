"""A replica that follows an alias: it learns that the alias moved, loads the new version beside its own, and swaps.

The registry is asked by one process a node, since MLflow takes seconds and a good deal of memory to import, and only while
replicas ask it. A server that does not answer changes nothing: what is served goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import SeekrayError
from seekray.settings import Settings
from seekray_serve.versions import ModelApplication, Versions, checked, discard, incompatible

if TYPE_CHECKING:
    from ray import ObjectRef

logger = logging.getLogger("seekray.serve")

POLL_S = 1.0
IDLE_S = 60.0
FIRST_ANSWER_S = 20.0


def settings_of(follow: Mapping[str, Any]) -> Settings:
    """The registry of an application's `follow` arguments."""
    tracking_uri = follow["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI", "")
    return Settings(Path(follow["home"]), follow["storage"], tracking_uri, follow["embedded"], None)


def follow_arguments(model: str, alias: str, where: Settings) -> dict[str, Any]:
    """What a replica needs to follow a registered model's alias.

    A tracking URI with a password is not written down: the replica has it from its environment.
    """
    secret = "@" in where.tracking_uri.partition("://")[2].partition("/")[0] and not where.tracking_is_embedded
    return {
        "model": model,
        "alias": alias,
        "home": str(where.home),
        "storage": where.storage,
        "tracking_uri": None if secret else where.tracking_uri,
        "embedded": where.tracking_is_embedded,
    }


class Registry:
    """Asks the registry for the replicas of a node. idle_s: its process, its alone, ends when nobody has asked so long."""

    def __init__(self, idle_s: float | None = None) -> None:
        self._asked = time.monotonic()
        self._known: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        if idle_s is not None:
            threading.Thread(target=self._end_when_idle, args=(idle_s,), daemon=True).start()

    def current(self, follow: Mapping[str, Any]) -> dict[str, Any]:
        """`{version, bundle}` of the alias's holder now, or `{error}`. The answer is kept for most of a second."""
        self._asked = time.monotonic()
        key = (follow["model"], follow["alias"])
        at, before = self._known.get(key, (-POLL_S, {}))
        if self._asked - at > 0.8 * POLL_S:
            before = self._ask(follow, before)
            self._asked = time.monotonic()
            self._known[key] = (self._asked, before)
        return before

    @staticmethod
    def _ask(follow: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
        from seekray.model_ref import resolve
        from seekray.tracking.registry import holder

        where, name = settings_of(follow), follow["model"]
        try:
            version = holder(name, follow["alias"], where)
            if version is None:
                return {"error": f"{name} has no alias {follow['alias']!r} any more"}
            if before.get("version") == version and "error" not in before:
                return dict(before)
            return {"version": version, "bundle": str(resolve(f"{name}/{version}", where).bundle)}
        except SeekrayError as error:
            return {"error": error.message}
        except Exception as error:  # the registry's own troubles are no reason to end
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}

    def _end_when_idle(self, idle_s: float) -> None:
        while time.monotonic() - self._asked < idle_s:
            time.sleep(idle_s / 12)
        os._exit(0)


def ask(follow: Mapping[str, Any]) -> ObjectRef[dict[str, Any]]:
    """Ask this node's registry process, which is started where there is none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    process = ray.remote(num_cpus=0)(Registry).options(
        name=f"registry-{node}",
        namespace="seekray",
        lifetime="detached",
        get_if_exists=True,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    found: ObjectRef[dict[str, Any]] = process.remote(IDLE_S).current.remote(dict(follow))
    return found


@dataclass
class Follower:
    """Follows `alias` for one replica. load: the application of a bundle's version; say: where its state is told."""

    name: str
    follow_arguments: Mapping[str, Any]
    load: Callable[[str, str], ModelApplication]
    ask: Callable[[], ObjectRef[dict[str, Any]]]
    say: Callable[[dict[str, Any]], None]
    poll_s: float = POLL_S

    def __post_init__(self) -> None:
        # One thread for all versions, so that their memory comes from one arena and is used again.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="versions")
        self._refused: tuple[str, str] | None = None
        self._said: dict[str, Any] | None = None

    def first(self, version: str, bundle: str, *, again: bool) -> ModelApplication:
        """The application to begin with: the alias's version now, or, where that cannot be, the one that was deployed.

        again: the endpoint has been there before, so that the alias may have moved since it was deployed, and its holder
        is waited for. Raises what the deployed version's loading raises.
        """
        import ray

        now: dict[str, Any] = {}
        if again:
            try:
                now = ray.get(self.ask(), timeout=FIRST_ANSWER_S)
            except Exception as error:
                now = {"error": f"the registry was not asked: {_words(error)}"}
        problem = now.get("error")
        if (other := now.get("version", version)) != version:
            try:
                application = checked(self.load(now["bundle"], other))
                self.tell(other, None)
                return application
            except Exception as error:
                problem = self.refuse(other, _words(error))
        application = checked(self.load(bundle, version))
        self.tell(version, problem)
        return application

    async def follow(self, versions: Versions) -> None:
        """Look every second, for ever."""
        while True:
            await asyncio.sleep(self.poll_s)
            try:
                await self.step(versions)
            except Exception as error:  # the process that asks has ended: the next question starts another
                self.tell(versions.current.loaded.version, f"the registry was not asked: {_words(error)}")

    async def step(self, versions: Versions) -> None:
        """Ask, and where the alias has moved, load, check and swap."""
        found = await self.ask()
        served = versions.current.loaded
        wanted = found.get("version")
        if wanted is None:
            self.tell(served.version, found.get("error"))
        elif wanted == served.version:
            self._refused = None
            self.tell(wanted, None)
        elif self._refused and self._refused[0] == wanted:
            self.tell(served.version, self._refused[1])
        else:
            problem = await self._change(versions, wanted, found["bundle"])
            self.tell(versions.current.loaded.version, problem)

    async def _change(self, versions: Versions, version: str, bundle: str) -> str | None:
        """Why the version does not take traffic, None where it does."""
        loop = asyncio.get_running_loop()
        try:
            application = await loop.run_in_executor(self._thread, self._loaded, versions.current.loaded, bundle, version)
            await versions.replace(application)
        except Exception as error:
            return self.refuse(version, _words(error))
        self._refused = None
        return None

    def _loaded(self, served: Any, bundle: str, version: str) -> ModelApplication:
        """A version beside the one that is served, in a thread of its own. Raises SeekrayError where it may not take over."""
        application = self.load(bundle, version)
        model = "{model}@{alias}".format_map(self.follow_arguments)
        if why := incompatible(served, application.loaded):
            discard(application)
            raise SeekrayError(f"{why}; its callers would fail, so deploy it by hand: seekray serve up {model}")
        return checked(application)

    def refuse(self, version: str, why: str) -> str:
        """Remember a version that may not take traffic: it is not tried again until the alias has moved."""
        problem = f"version {version} does not take over: {why}"
        logger.warning("%s: %s", self.name, problem)
        self._refused = (version, problem)
        return problem

    def tell(self, version: str | None, problem: str | None) -> None:
        """Say what is served, where that is something new."""
        state = {"version": version, "alias": self.follow_arguments["alias"], "problem": problem}
        if state != self._said:
            self.say(state)
            self._said = state


def _words(error: Exception) -> str:
    text = error.message if isinstance(error, SeekrayError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]
