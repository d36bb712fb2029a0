"""The door to a cluster's Jobs API: where it is, who we are there, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from seekray.cluster import quiet
from seekray.errors import ClusterError, SeekrayError, UserError
from seekray.settings import settings

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def dashboard_url(address: str | None) -> str:
    """The dashboard that is given, that the environment names, or that `serve up` left running. Raises UserError."""
    given = (
        address or os.environ.get("RAY_API_SERVER_ADDRESS") or settings().ray_address or _left_running().get("dashboard", "")
    )
    parts = urllib.parse.urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        was = f"{given!r} is not one" if given else "none is given"
        raise UserError(
            f"--address: {was}; expected the cluster's dashboard, for example http://127.0.0.1:8265", field="address"
        )
    return given.rstrip("/")


def _left_running() -> dict[str, str]:
    """The head that `serve up` left running here: its dashboard and the file of its token."""
    try:
        left: dict[str, str] = json.loads((settings().home / "serve.json").read_text())
        return left if Path(left["folder"]).is_dir() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _token(url: str) -> tuple[str, str] | None:
    """The cluster's token and where it was found, in Ray's own order; it is sent whatever RAY_AUTH_MODE says."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), "RAY_AUTH_TOKEN"
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not file and _left_running().get("dashboard") == url:
        file = _left_running()["token_file"]
    path = Path(file or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip(), str(path)
    except OSError as error:
        if file:
            raise UserError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read: {error.strerror}") from error
        return None


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[JobSubmissionClient]:
    """A client of the Jobs API; in the block its errors become ours. Raises UserError, ClusterError."""
    url = dashboard_url(address)
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:  # the client itself would wait for minutes
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise ClusterError(f"no Ray dashboard answers at {url} ({error}); is the cluster up, the tunnel open?") from error
    token = _token(url)
    quiet()
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        # Ray lets RAY_ADDRESS win over an address that was given.
        with mock.patch.dict(os.environ, {"RAY_API_SERVER_ADDRESS": url}):
            client = JobSubmissionClient(url, headers={"Authorization": f"Bearer {token[0]}"} if token else {})
        yield client
    except AuthenticationError as error:
        what = f"does not take the token of {token[1]}" if token else "asks for a token and none is here"
        raise ClusterError(
            f"{url} {what}; copy the head's token (`ray get-auth-token` there) into a file of mode 600 "
            "and name it in RAY_AUTH_TOKEN_PATH"
        ) from error
    except SeekrayError:
        raise
    except (RuntimeError, ValueError, ConnectionError, requests.RequestException) as error:
        text = str(error)
        if "404" in text and "does not exist" in text:
            raise UserError(f"no such job at {url}; `seekray jobs list` shows them") from error
        raise ClusterError(
            f"{url} did not do as asked: {text.splitlines()[0][:500] if text else type(error).__name__}"
        ) from error


def is_here(client: JobSubmissionClient) -> bool:
    """True when every node keeps its session in a folder of this machine."""
    answer = client._do_request("GET", "/nodes?view=summary")
    nodes = [n.get("raylet", {}) for n in answer.json()["data"]["summary"]] if answer.status_code == 200 else []
    living = [n for n in nodes if n.get("state", "ALIVE") == "ALIVE"]
    return bool(living) and all(Path(n.get("sessionDir") or "/nowhere").is_dir() for n in living)


def state(client: JobSubmissionClient, job_id: str) -> dict[str, Any]:
    """`{job_id, status, exit_code}`; the code is null while the job runs, 1 where its driver left none."""
    details = client.get_job_info(job_id)
    status, code = details.status.value, details.driver_exit_code
    if status in ENDED and code is None:
        code = 1
    if code is not None and code < 0:
        code = 128 - code  # ended by a signal, as shells tell it
    return {"job_id": job_id, "status": status, "exit_code": code}


def tail(client: JobSubmissionClient, job_id: str) -> Iterator[str]:
    """Ray's asynchronous tail of the log, here and now."""
    events = asyncio.new_event_loop()
    chunks = client.tail_job_logs(job_id)
    try:
        while True:
            yield str(events.run_until_complete(anext(chunks)))
    except StopAsyncIteration:
        return
    finally:
        events.run_until_complete(chunks.aclose())
        events.close()
