"""`python -m seekray_jobs.generate MODEL --rows N --out F [--where C=V] [--seed S] [--json]`: the driver of a generation.

With `--data F [--request JSON]` in place of `--rows`: the texts that follow the prompts of a file.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from seekray import cluster
from seekray.batch import texts
from seekray.batch.generate import generate
from seekray.data.options import Data
from seekray.errors import UserError
from seekray.log import configure
from seekray.model_ref import resolve
from seekray.settings import settings
from seekray_jobs.driver import RowProgress, exit_with


def run(
    model: str, out: str, request: Mapping[str, Any], *, address: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """What a generator makes, into `out`: `{rows, out}`. request: fields of its family's `Request`. Raises SeekrayError."""
    configure()
    found = resolve(model, settings())
    connect = functools.partial(cluster.connect, settings(), None, address)
    progress = RowProgress(sys.stderr.isatty())
    return generate(found.bundle, request, out, workers=workers, connect=connect, progress=progress)


def answer(
    model: str, data: str, out: str, request: Mapping[str, Any], *, address: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """The texts that follow the prompts of `data`, into `out`: `{rows, rejected, out}`. Raises SeekrayError."""
    configure()
    found = resolve(model, settings())
    connect = functools.partial(cluster.connect, settings(), None, address)
    progress = RowProgress(sys.stderr.isatty())
    return texts.answer(found.bundle, Data(source=data), out, request, workers=workers, connect=connect, progress=progress)


def conditions(given: Sequence[str]) -> dict[str, str]:
    """`--where COLUMN=VALUE`, each as texts; the model reads the values as it reads a column's. Raises UserError."""
    for text in given:
        if "=" not in text:
            raise UserError(f"--where: {text!r} given, expected column=value", field="where")
    return {name: value for name, _, value in (text.partition("=") for text in given)}


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
