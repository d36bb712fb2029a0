"""`python -m seekray_jobs.generate MODEL --rows N --out F [--where C=V] [--seed S] [--json]`: the driver of a generation.

With `--data F [--request JSON]` in place of `--rows`: the texts that follow the prompts of a file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from seekray.batch import texts
from seekray.batch.generate import conditions, generate
from seekray.data.options import Data
from seekray_jobs.driver import exit_with, opened


def run(
    model: str, out: str, request: Mapping[str, Any], *, address: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """What a generator makes, into `out`: `{rows, out}`. request: fields of its family's `Request`. Raises SeekrayError."""
    bundle, how = opened(model, address)
    return generate(bundle, request, out, workers=workers, **how)


def answer(
    model: str, data: str, out: str, request: Mapping[str, Any], *, address: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """The texts that follow the prompts of `data`, into `out`: `{rows, rejected, out}`. Raises SeekrayError."""
    bundle, how = opened(model, address)
    return texts.answer(bundle, Data(source=data), out, request, workers=workers, **how)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of a job."""
    parser = argparse.ArgumentParser(prog="seekray_jobs.generate", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--out", required=True)
    parser.add_argument("--where", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="prompts")
    parser.add_argument("--request", type=json.loads, default={}, help="what is asked for of each prompt, as JSON")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--address")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the document is always printed")
    given = parser.parse_args(arguments)
    where = {"address": given.address, "workers": given.workers}
    if given.data:
        done = answer(given.model, given.data, given.out, {"seed": given.seed, **given.request}, **where)
    else:
        done = run(given.model, given.out, {"rows": given.rows, "seed": given.seed, "where": conditions(given.where)}, **where)
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    exit_with(main)
