"""`python -m seekray_jobs.predict MODEL --data F --out P [--workers N] [--json]`: the driver of a batch prediction."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from seekray import batch_predict, cluster
from seekray.data.options import Data
from seekray.log import configure
from seekray.model_ref import resolve
from seekray.settings import settings
from seekray_jobs.driver import exit_with


def run(model: str, data: str, out: str, *, address: str | None = None, workers: int | None = None) -> dict[str, Any]:
    """Answers for every row of `data` into `out`: `{rows, rejected, out}`. Raises SeekrayError."""
    configure()
    found = resolve(model, settings())
    connect = functools.partial(cluster.connect, settings(), None, address)
    return batch_predict.predict(
        found.bundle, Data(source=data), out, workers=workers, connect=connect, progress=Progress(sys.stderr.isatty())
    )


class Progress:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of a job."""
    parser = argparse.ArgumentParser(prog="seekray_jobs.predict", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--address")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the document is always printed")
    given = parser.parse_args(arguments)
    print(json.dumps(run(given.model, given.data, given.out, address=given.address, workers=given.workers), indent=1))


if __name__ == "__main__":
    exit_with(main)
