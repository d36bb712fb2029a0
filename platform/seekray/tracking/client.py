"""MLflow's client, quiet and impatient: a server that is away costs seconds, not minutes."""

from __future__ import annotations

import logging
import os
import socket
import urllib.parse
from typing import TYPE_CHECKING, Any

from seekray.errors import TrackingError
from seekray.settings import Settings

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def client(settings: Settings) -> MlflowClient:
    """A client of the tracking server that the settings name. Raises TrackingError where nobody answers."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not reachable(settings):
        raise TrackingError(
            f"the tracking server {settings.tracking_uri} does not answer; start it, or set MLFLOW_TRACKING_URI"
        )
    import mlflow
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if settings.tracking_is_embedded:
        settings.home.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.tracking_uri)
    return MlflowClient(settings.tracking_uri, settings.tracking_uri)


def reachable(settings: Settings) -> bool:
    """True for the embedded store, and for a server whose port accepts a connection within two seconds."""
    parts = urllib.parse.urlsplit(settings.tracking_uri)
    if parts.scheme not in ("http", "https"):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "localhost", port), timeout=2).close()
    except OSError:
        return False
    return True


def pages(fetch: Any, **arguments: Any) -> list[Any]:
    """All entities of a paged call."""
    found: list[Any] = []
    token = None
    while True:
        page = fetch(**arguments, page_token=token)
        found += page
        token = getattr(page, "token", None)
        if not token:
            return found
