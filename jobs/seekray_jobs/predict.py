"""`python -m seekray_jobs.predict MODEL --data F --out P [--workers N] [--json]`: the driver of a batch prediction."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seekray.batch.predict import predict
from seekray.data.options import Data
from seekray.stream import predict_file
from seekray_jobs.driver import exit_with, opened


def run(
    model: str, data: str, out: str, *, address: str | None = None, workers: int | None = None, stateful: str | None = None
) -> dict[str, Any]:
    """Answers for every row of `data` into `out`: `{rows, rejected, out}`. Raises SeekrayError.

    stateful: the file of the states of a recurrent model, read where it is there and written in the end.
    """
    bundle, how = opened(model, address)
    if stateful is not None:
        return predict_file(bundle, Data(source=data), out, Path(stateful))
    return predict(bundle, Data(source=data), out, workers=workers, **how)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of a job."""
    parser = argparse.ArgumentParser(prog="seekray_jobs.predict", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--address")
    parser.add_argument("--stateful")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the document is always printed")
    given = parser.parse_args(arguments)
    print(
        json.dumps(
            run(given.model, given.data, given.out, address=given.address, workers=given.workers, stateful=given.stateful),
            indent=1,
        )
    )


if __name__ == "__main__":
    exit_with(main)
