"""A board in Ray's key-value store, where replicas and the autoscaler leave what `serve status` says of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.experimental import internal_kv

if TYPE_CHECKING:
    from seekray_serve.metrics import Families

NAMESPACE, PREFIX, METRICS = "seekray", "board/", "metrics/"
EXPORT_S = 5.0
FORGOTTEN_S = 20.0


def put(model: str, who: str, value: dict[str, Any]) -> None:
    """Replace what `who` (a replica's id, or `autoscaler`) says of a model."""
    internal_kv._internal_kv_put(f"{PREFIX}{model}/{who}", json.dumps(value).encode(), namespace=NAMESPACE)


def get(model: str, who: str) -> dict[str, Any] | None:
    """What is there of one."""
    value = internal_kv._internal_kv_get(f"{PREFIX}{model}/{who}", namespace=NAMESPACE)
    return None if value is None else dict(json.loads(value))


def remove(model: str, who: str) -> None:
    """Take it off the board."""
    internal_kv._internal_kv_del(f"{PREFIX}{model}/{who}", namespace=NAMESPACE)


def read() -> dict[str, dict[str, Any]]:
    """`{model: {who: what}}`; of replicas that died without a word too."""
    found: dict[str, dict[str, Any]] = {}
    for key in internal_kv._internal_kv_list(PREFIX, namespace=NAMESPACE):
        text = key.decode() if isinstance(key, bytes) else key
        model, _, who = text.removeprefix(PREFIX).partition("/")
        if (value := internal_kv._internal_kv_get(text, namespace=NAMESPACE)) is not None:
            found.setdefault(model, {})[who] = json.loads(value)
    return found


def measured(model: str = "", but: str = "") -> list[Families]:
    """What replicas have counted, a few seconds ago. model: of one model alone; but: of all replicas but this one."""
    found = []
    prefix = f"{METRICS}{model}/" if model else METRICS
    for key in internal_kv._internal_kv_list(prefix, namespace=NAMESPACE):
        text = key.decode() if isinstance(key, bytes) else key
        if text.rpartition("/")[2] == but or (value := internal_kv._internal_kv_get(text, namespace=NAMESPACE)) is None:
            continue
        told = json.loads(value)
        if time.time() - told["at"] < FORGOTTEN_S:
            found.append(told["families"])
        else:  # its replica has ended
            internal_kv._internal_kv_del(text, namespace=NAMESPACE)
    return found


class Exporter:
    """Leaves a replica's counts where whoever is asked for metrics finds them: HAProxy gives a question to any replica."""

    def __init__(self, model: str, replica: str) -> None:
        self._model, self._replica = model, replica

    async def export(self, families: Callable[[], Families]) -> None:
        """Every few seconds, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            value = json.dumps({"at": time.time(), "families": families()}).encode()
            await loop.run_in_executor(None, self._put, value)
            await asyncio.sleep(EXPORT_S)

    async def others(self) -> list[Families]:
        """The other replicas' of this model."""
        return await asyncio.get_running_loop().run_in_executor(None, measured, self._model, self._replica)

    def _put(self, value: bytes) -> None:
        internal_kv._internal_kv_put(f"{METRICS}{self._model}/{self._replica}", value, namespace=NAMESPACE)
