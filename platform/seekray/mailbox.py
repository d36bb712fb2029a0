"""Small messages from rank 0 of a run to its driver, through Ray's own key-value store.

No process of its own, no barrier, 0.2–0.3 ms a message: `ray.train.report` costs a barrier over
all workers and waits for the driver to have taken the message before.
"""

from __future__ import annotations

import json
from typing import Any

from ray.experimental import internal_kv

NAMESPACE = "seekray"


class Mailbox:
    """Messages of one run, in order; `put` in a worker, `take` in the driver."""

    def __init__(self, run_id: str, attempt: str = "") -> None:
        self._prefix, self._attempt, self._count = f"{run_id}/", attempt, 0

    def put(self, kind: str, body: Any) -> None:
        """Leave a message."""
        self._count += 1
        key = f"{self._prefix}{self._attempt}{self._count:09d}"
        internal_kv._internal_kv_put(key, json.dumps([kind, body]).encode(), namespace=NAMESPACE)

    def show(self, body: Any) -> None:
        """Leave a state that replaces the one before."""
        internal_kv._internal_kv_put(f"{self._prefix}~", json.dumps(["progress", body]).encode(), namespace=NAMESPACE)

    def take(self) -> list[tuple[str, Any]]:
        """All messages not taken before, the state last."""
        messages = []
        for key in sorted(internal_kv._internal_kv_list(self._prefix, namespace=NAMESPACE)):
            data = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
            internal_kv._internal_kv_del(key, namespace=NAMESPACE)
            if data is not None:
                messages.append(tuple(json.loads(data)))
        return messages
