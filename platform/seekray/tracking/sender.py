"""The sending process: beside a training, so that neither MLflow's import nor a slow server takes a moment of a step.

`python -m seekray.tracking.sender URI --parent PID` tails a spool (`carrier.send`) until its end is sent.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from seekray.errors import TrackingError
from seekray.settings import Settings, settings
from seekray.storage import Storage
from seekray.tracking.carrier import SendResult, flat, is_settled, progress, result, send
from seekray.tracking.places import remember
from seekray.tracking.spool import Spool

POLL_SECONDS = 0.3
REMOTE_POLL_SECONDS = 2.0
GRACE_SECONDS = 4.0
PATIENCE_SECONDS = 60.0
GOODBYE_SECONDS = 10.0


class Sender:
    """The sending process of a run, seen from the driver."""

    def __init__(self, run: Storage, where: Settings, process: subprocess.Popen[bytes]) -> None:
        self._run, self._where, self._process = run, where, process

    @property
    def pid(self) -> int:
        """Of the sending process."""
        return self._process.pid

    def wait(self, timeout: float = PATIENCE_SECONDS) -> SendResult:
        """Until all is sent, the server is found to be away, or the time is over (it then goes on by itself)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return result(self._run, self._where)

    def leave(self) -> None:
        """Give it a moment for the last events, then end it; the spool keeps what it has not sent."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GOODBYE_SECONDS)
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


@contextlib.contextmanager
def start_sender(run: Storage, where: Settings) -> Iterator[Sender]:
    """A sender beside this process, to be started after `Tracker.start`; `wait` for it after `finish`.

    Where the block ends with an error or Ctrl-C it gets a moment to tell the server, and is gone after it.
    """
    remember(run, where)
    log = where.home / "logs" / f"{run.uri.rsplit('/', 1)[-1]}.sender.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "seekray.tracking.sender", run.uri, "--parent", str(os.getpid())]
    environment = {**os.environ, "SEEKRAY_HOME": str(where.home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    if not where.tracking_is_embedded:
        environment["MLFLOW_TRACKING_URI"] = where.tracking_uri
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    sender = Sender(run, where, process)
    try:
        yield sender
    except BaseException:
        sender.leave()
        raise


def main(arguments: list[str] | None = None) -> None:
    """Tail a spool until its end has been sent, the parent has died, or the server is away at the end."""
    parser = argparse.ArgumentParser(prog="seekray.tracking.sender", description=main.__doc__)
    parser.add_argument("uri")
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run; its last events come after it
    os.nice(15)  # as Ray's workers, which train
    run, where = Storage(given.uri), settings()
    family = _Family(run, where)
    poll = POLL_SECONDS if run.is_local else REMOTE_POLL_SECONDS
    parent = _Parent(given.parent)
    over_since: float | None = None
    while True:
        # Asked before sending: what is written while a pass is under way belongs to the next one.
        over = not parent.alive() or _has_finished(run)
        over_since = over_since or (time.monotonic() if over else None)
        pause = poll
        try:
            if family.send(over) and over:
                return
        except TrackingError as error:
            print(f"{time.strftime('%H:%M:%S')} not sent yet: {error.message}", flush=True)
            if over_since is not None and time.monotonic() - over_since > GRACE_SECONDS:
                sys.exit(1)
            pause = 1.0
        time.sleep(pause)


class _Family:
    """A run and those of its trials, where it is a search: their ids begin with its own."""

    def __init__(self, run: Storage, where: Settings) -> None:
        self._run, self._where = run, where
        base, _, self._id = run.uri.rpartition("/")
        self._runs = Storage(base)
        self._ended: set[str] = set()

    def send(self, last: bool) -> bool:
        """Send what is there, the parent first; True where nothing was left. last: also of trials that had ended before."""
        send(self._run, self._where)
        if last:
            self._ended.clear()
        for name in [n for n in self._runs.list() if n.startswith(f"{self._id}-t") and n not in self._ended]:
            child = self._runs.child(name)
            send(child, self._where)
            if is_settled(child, self._where) and _has_finished(child):
                self._ended.add(name)
        return is_settled(self._run, self._where)


class _Parent:
    """The driver. A process id alone could be another's by now."""

    def __init__(self, pid: int) -> None:
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    def alive(self) -> bool:
        process = self._process
        try:
            return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def _has_finished(run: Storage) -> bool:
    """True when the newest event is an end; a resume writes a start after it, before its sender runs."""
    spool = Spool(run)
    newest = spool.segments()[-1:]
    return bool(newest) and spool.read(newest[0])[-1]["kind"] == "finish"


__all__ = ["SendResult", "Sender", "flat", "is_settled", "progress", "result", "send", "start_sender"]

if __name__ == "__main__":
    main()
