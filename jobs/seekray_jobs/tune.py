"""`python -m seekray_jobs.tune FILE [--set k=v] [--register NAME] [--resume RUN] [--json]`: the driver of a search."""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from seekray import cluster, tuner
from seekray.log import configure
from seekray.progress import Progress
from seekray.settings import settings
from seekray_jobs.driver import exit_with
from seekray_jobs.train import experiment_of


def run(
    file: Path | str | None,
    overrides: Sequence[str],
    *,
    register: str | None = None,
    resume: str | None = None,
    address: str | None = None,
) -> tuner.TuneResult:
    """Search on the Ray that `address` or the environment names. register: a name for the best model. Raises SeekrayError."""
    configure()
    asked = [*overrides, *([f"register={register}"] if register else [])]
    experiment = experiment_of(file, asked, resume, "tune")
    resources = tuner.processes(experiment, os.cpu_count() or 1)
    connect = functools.partial(cluster.connect, settings(), resources, address)
    return tuner.tune(experiment, settings(), connect=connect, progress=Progress(), source=str(file), resume=resume)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of a job."""
    parser = argparse.ArgumentParser(prog="seekray_jobs.tune", description=__doc__)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--register")
    parser.add_argument("--resume")
    parser.add_argument("--address")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the document is always printed")
    given = parser.parse_args(arguments)
    done = run(given.file, given.overrides, register=given.register, resume=given.resume, address=given.address)
    print(json.dumps(done.as_json(), indent=1))


if __name__ == "__main__":
    exit_with(main)
