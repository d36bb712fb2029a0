"""`seekray ui`: MLflow's pages over the embedded store, on 127.0.0.1, in the foreground."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request

from seekray.errors import TrackingError
from seekray.settings import Settings
from seekray.tracking.client import ENVIRONMENT, server_key, shown

START_SECONDS = 120
# MLflow's own job queue is eight more processes, which none of our pages needs.
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}


def ui_command(where: Settings, port: int) -> list[str]:
    """`mlflow server` on 127.0.0.1 over the embedded store."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*command, "--backend-store-uri", where.tracking_uri, "--default-artifact-root", where.artifacts_uri]


def ui(where: Settings, port: int) -> None:
    """Show the pages until Ctrl-C, which ends all their processes. Raises TrackingError where they do not start."""
    if not where.tracking_is_embedded:
        print(f"the tracking server has its own pages: {shown(where.tracking_uri)}", file=sys.stderr)
        return
    log = where.home / "logs" / "ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    server_key(where)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ui_command(where, port), env={**os.environ, **ENVIRONMENT, **QUIET},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, f"http://127.0.0.1:{port}", where)
        print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
        process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, where: Settings) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
        except OSError:
            time.sleep(0.2)
            continue
        if process.poll() is None:  # else it was another's answer, on a port that is taken
            return
    log = where.home / "logs" / "ui.log"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "nothing")
    raise TrackingError(f"MLflow's pages did not start on {url}: {said.strip()[:300]} (whole log: {log}); try another --port")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The server and what it started: they are a session of their own."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
