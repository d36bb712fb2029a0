"""MLflow's client, quiet and impatient: a server that is away costs seconds, not minutes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import re
import secrets
import ssl
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import TrackingError
from seekray.settings import Settings

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
CONNECT_SECONDS, ANSWER_SECONDS = 2.0, 5.0
# What another try may mend: not the request's fault, or a door that is locked for now.
PASSING = frozenset({401, 403, 404, 408, 429})


def client(where: Settings) -> MlflowClient:
    """A client of the tracking server that the settings name. Raises TrackingError where nobody answers."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not reachable(where):
        raise TrackingError(
            f"the tracking server {shown(where.tracking_uri)} does not answer; start it, or set MLFLOW_TRACKING_URI"
        )
    if where.tracking_is_embedded:
        server_key(where)
    import mlflow
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(where.tracking_uri)
    mlflow.set_registry_uri(where.tracking_uri)
    return MlflowClient(where.tracking_uri, where.tracking_uri)


@contextlib.contextmanager
def told(where: Settings) -> Iterator[None]:
    """Turns what MLflow and its transports raise into one TrackingError that says where."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # requests' errors are OSErrors
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise TrackingError(f"the tracking server {shown(where.tracking_uri)} did not do what was asked: {reason}") from error


def reachable(where: Settings) -> bool:
    """True for the embedded store, and for a server that says anything at all within a few seconds.

    A port that accepts is not enough: a server that hangs would cost every request its whole patience.
    """
    parts = urllib.parse.urlsplit(where.tracking_uri)
    if parts.scheme not in ("http", "https"):
        return True
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "localhost", parts.port, timeout=CONNECT_SECONDS)
    try:
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(ANSWER_SECONDS)
        connection.request("GET", f"{parts.path.rstrip('/')}/health")
        connection.getresponse()
    except (ssl.SSLError, http.client.HTTPException):
        return True  # somebody is there; what is wrong, the first real request says
    except OSError:
        return False
    finally:
        connection.close()
    return True


def shown(uri: str) -> str:
    """A URI without its password."""
    return re.sub(r"//[^/@]*@", "//…@", uri)


def server_key(where: Settings) -> str:
    """Names a server in a run's spool, so that each server has its own mark of how far it is.

    A cluster's job and a laptop may both keep an embedded database of the same path, and a database
    that was deleted has nothing: the embedded one has a random name beside it, made with it.
    """
    if not where.tracking_is_embedded:
        return hashlib.sha256(shown(where.tracking_uri).encode()).hexdigest()[:12]
    name, database = where.home / "mlflow.id", where.home / "mlflow.db"
    with locked(where.home / "locks" / "store.lock"):
        if not database.exists() or not name.exists():
            name.write_text(secrets.token_hex(6))
            database.touch()  # an empty file is an empty database to SQLite
        return name.read_text().strip()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_refused(error: Exception) -> bool:
    """True where the server understood and said no for good, so that asking again is of no use."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    status = int(error.get_http_status_code())
    if "Invalid artifact path" in str(error):  # MLflow's own check, before any request, calls it an internal error
        return True
    return 400 <= status < 500 and status not in PASSING


def is_gone(error: Exception) -> bool:
    """True where what was asked for is not there."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


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


def versions_of(client: MlflowClient, name: str) -> list[Any]:
    """All versions of a registered model."""
    quoted = name.replace("'", "''")
    return pages(client.search_model_versions, filter_string=f"name = '{quoted}'")
