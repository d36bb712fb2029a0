"""Logging: a run's log file hears everything, the terminal only seekray's own warnings."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from seekray.errors import InterruptedByUser, SeekrayError, full

QUIET_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PYTHONWARNINGS": "ignore",
}


class _Terminal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def configure(*, verbose: bool = False) -> None:
    """Terminal handler for seekray's own warnings; everything else waits for a file. Called once by a command."""
    for key, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [logging.NullHandler()]
    own = logging.getLogger("seekray")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_Terminal())
    terminal.setLevel(logging.INFO if verbose else logging.WARNING)
    own.handlers[:] = [terminal]


def tell(error: BaseException) -> int | None:
    """Say an error as one line on stderr and, where `--json` was given, as the one document on stdout.

    Returns the exit code; None for what is a bug and deserves its traceback.
    """
    if isinstance(error, OSError):
        error = full(error) or error
    known = error if isinstance(error, SeekrayError) else None
    if isinstance(error, KeyboardInterrupt):
        known = InterruptedByUser("interrupted")
    if known is not None:
        print(f"error: {known.message}" if not isinstance(error, KeyboardInterrupt) else known.message, file=sys.stderr)
    if "--json" in sys.argv[1:]:
        shown = known or SeekrayError(f"{type(error).__name__}: {error}")
        print(json.dumps(shown.as_json(), indent=1))
    return known.exit_code if known is not None else None


@contextlib.contextmanager
def to_file(path: Path, run_id: str) -> Iterator[None]:
    """All records of this process also go to a file, with the run's id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, delay=False)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{run_id}] %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
