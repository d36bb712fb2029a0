"""What the drivers share: what a job over a bundle begins with, errors as one line and an exit code, a line of rows done."""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from seekray import cluster
from seekray.log import configure, tell
from seekray.model_ref import resolve
from seekray.settings import settings


def exit_with(main: Callable[[], None]) -> NoReturn:
    """Run a driver's `main`; exit 0 done, 1 failed, 2 the input is wrong, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends a run as Ctrl-C does
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        if code := tell(error):
            sys.exit(code)
        raise
    sys.exit(0)


def opened(model: str, address: str | None) -> tuple[Path, dict[str, Any]]:
    """The bundle of a model, and the `connect` and `progress` that each call of `seekray.batch` takes. Raises SeekrayError."""
    configure()
    connect = functools.partial(cluster.connect, settings(), None, address)
    return resolve(model, settings()).bundle, {"connect": connect, "progress": RowProgress(sys.stderr.isatty())}


class RowProgress:
    """Rows done on stderr: one line that moves on a terminal, else a line every ten seconds."""

    def __init__(self, terminal: bool) -> None:
        self._terminal, self._began, self._said = terminal, time.monotonic(), time.monotonic()

    def __call__(self, rows: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._said < (0.2 if self._terminal else 10) and rows != total:
            return
        self._said = now
        share = f" of {total:,} ({rows / total:.0%})" if total else ""
        text = f"{rows:,} rows{share}, {rows / max(1e-9, now - self._began):,.0f} rows/s"
        end = "" if self._terminal and rows != total else "\n"
        print(f"\r{text}" if self._terminal else text, end=end, file=sys.stderr, flush=True)
