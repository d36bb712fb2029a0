"""Send what the tracking server has not got yet, from every run under a storage."""

from __future__ import annotations

import logging

from seekray.errors import SeekrayError
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking.client import reachable
from seekray.tracking.sender import SendResult, send
from seekray.tracking.spool import Spool


def sync(where: Settings, storage: str | None = None) -> list[SendResult]:
    """Send all runs under `storage` (default: the settings'); what could not be sent remains and is told."""
    runs = Storage(storage or where.storage).child("runs")
    results = []
    for name in runs.list():
        run = runs.child(name)
        if not Spool(run).remaining():
            continue
        if not reachable(where):
            results.append(SendResult(name, None, None, 0, Spool(run).remaining()))
            continue
        try:
            results.append(send(run, where))
        except SeekrayError as error:
            logging.getLogger(__name__).warning("%s: %s", name, error.message)
            results.append(SendResult(name, None, None, 0, Spool(run).remaining()))
    return results
