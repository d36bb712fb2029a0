"""`python -m seekray_jobs.evaluate MODEL --data F [--by COLUMN] [--compare MODEL2] [--out FOLDER] [--json]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seekray import evaluation, plots
from seekray.data.options import Data
from seekray.generator import load_model
from seekray.log import configure
from seekray.model_ref import resolve
from seekray.settings import settings
from seekray_jobs.driver import exit_with


def run(
    model: str, data: str, *, by: Sequence[str] = (), compare: str | None = None, out: Path | str | None = None
) -> dict[str, Any]:
    """`Evaluation.as_json()`, with `comparison` where a second model is given, and `plots` where a folder is.

    Raises SeekrayError.
    """
    configure()
    first = resolve(model, settings())
    opened = load_model(first.bundle)
    table = evaluation.read(opened, Data(source=data).like_training(opened.info.get("reading")))
    done = evaluation.evaluate(opened, table, by=by)
    found = {"model": first.name, "version": first.version, "data": data} | done.as_json()
    if compare is not None:
        second = evaluation.evaluate(load_model(resolve(compare, settings()).bundle), table, resamples=0)
        found["comparison"] = {"a": model, "b": compare, "metrics": evaluation.compare(done, second)}
    if out is not None:
        found["plots"] = [str(p) for p in plots.result(done, out)]
        (Path(out) / "evaluation.json").write_text(json.dumps(found, indent=1))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of a job."""
    parser = argparse.ArgumentParser(prog="seekray_jobs.evaluate", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--by", action="append", default=[])
    parser.add_argument("--compare")
    parser.add_argument("--out")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the document is always printed")
    given = parser.parse_args(arguments)
    print(json.dumps(run(given.model, given.data, by=given.by, compare=given.compare, out=given.out), indent=1))


if __name__ == "__main__":
    exit_with(main)
