"""A board in Ray's key-value store, where replicas and the autoscaler leave what `serve status` says of them."""

from __future__ import annotations

import json
from typing import Any

from ray.experimental import internal_kv

NAMESPACE, PREFIX = "seekray", "board/"


def put(model: str, who: str, value: dict[str, Any]) -> None:
    """Replace what `who` (a replica's id, or `autoscaler`) says of a model."""
    internal_kv._internal_kv_put(f"{PREFIX}{model}/{who}", json.dumps(value).encode(), namespace=NAMESPACE)


def get(model: str, who: str) -> dict[str, Any] | None:
    """What is there of one."""
    value = internal_kv._internal_kv_get(f"{PREFIX}{model}/{who}", namespace=NAMESPACE)
    return None if value is None else dict(json.loads(value))


def remove(model: str, who: str) -> None:
    """Take it off."""
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
