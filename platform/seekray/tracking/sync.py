"""Send what the tracking server has not got yet, from every run under a storage."""

from __future__ import annotations

import logging

from seekray.errors import SeekrayError
from seekray.settings import Settings
from seekray.tracking.carrier import SendResult, is_settled, result, send
from seekray.tracking.client import reachable, shown
from seekray.tracking.places import runs_of


def sync(where: Settings, storage: str | None = None) -> list[SendResult]:
    """Send all runs that the server has not got wholly, oldest first; what cannot be sent remains and is told.

    storage: where to look (a folder or s3:// URI), default the settings' and wherever this folder's runs went.
    """
    results = []
    here = reachable(where)
    for run in runs_of(where, storage):
        if is_settled(run, where):
            continue
        if not here:
            results.append(result(run, where, error=f"{shown(where.tracking_uri)} does not answer"))
            continue
        try:
            results.append(send(run, where))
        except SeekrayError as error:
            logging.getLogger(__name__).warning("%s: %s", run.uri, error.message)
            results.append(result(run, where, error=error.message))
            here = reachable(where)
    return results
