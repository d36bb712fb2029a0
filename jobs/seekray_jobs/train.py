"""`python -m seekray_jobs.train FILE [--set k=v] [--resume RUN] [--json]`: the driver of a training."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from seekray import cluster, trainer
from seekray.config import Experiment
from seekray.errors import UserError
from seekray.experiment_file import load, with_overrides
from seekray.log import configure
from seekray.progress import Progress
from seekray.settings import settings
from seekray_jobs.driver import exit_with


def experiment_of(file: Path | str | None, overrides: Sequence[str], resume: str | None, verb: str = "train") -> Experiment:
    """The experiment of a file, or of the run to go on with. Raises UserError."""
    if resume:
        return with_overrides(trainer.load_run(resume, settings()), overrides)
    if file is None:
        raise UserError(f"{verb} needs an experiment file, or --resume RUN")
    return load(file, overrides)


def run(
    file: Path | str | None, overrides: Sequence[str], *, resume: str | None = None, address: str | None = None
) -> trainer.TrainResult:
    """Train in this process's name, on the Ray that `address` or the environment names. Raises SeekrayError."""
    configure()
    experiment = experiment_of(file, overrides, resume)
    connect = functools.partial(cluster.connect, settings(), experiment.resources, address)
    return trainer.train(experiment, settings(), connect=connect, progress=Progress(), resume=resume)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of a job."""
    parser = argparse.ArgumentParser(prog="seekray_jobs.train", description=__doc__)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--resume")
    parser.add_argument("--address")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry; the document is always printed")
    given = parser.parse_args(arguments)
    result = run(given.file, given.overrides, resume=given.resume, address=given.address)
    print(json.dumps(result.as_json(), indent=1))


if __name__ == "__main__":
    exit_with(main)
