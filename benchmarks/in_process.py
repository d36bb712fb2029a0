"""What the benchmarks share: an experiment trained in this process, timed, and its model in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seekray import loop
from seekray.checkpoint import Checkpoint, Checkpoints
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.generator import open_model
from seekray.report import conclude
from seekray.session import LocalSession, Point
from seekray.storage import Storage
from seekray.tracking.spool import Tracker


class Silent:
    """Hears nothing."""

    def points(self, new: Sequence[Point]) -> None: ...

    def progress(self, state: Mapping[str, Any]) -> None: ...


def fit(experiment: Experiment, prepared: Prepared, folder: Path | str) -> tuple[Checkpoint, float]:
    """The last checkpoint and the CPU seconds of the training, validation included."""
    run, began = Storage(str(folder)), time.process_time()
    session = LocalSession(experiment.training, run, listener=Silent())
    loop.run(experiment, session, prepared.schema, prepared.train, prepared.validation, prepared.initial)
    seconds = time.process_time() - began
    last = Checkpoints(run).latest()
    assert last is not None
    return last, seconds


def model_of(experiment: Experiment, prepared: Prepared, last: Checkpoint, group: str = "best") -> Any:
    """The trained model in memory: a `Predictor` or a `Generator`."""
    info = {"name": experiment.name, "family": experiment.family, "task": experiment.task}
    info |= {"model": experiment.as_json()["model"], "fingerprint": prepared.fingerprint}
    return open_model(info, prepared.schema, last.group(group) or last.group("weights"))


def trained(experiment: Experiment, folder: Path | None = None, *, last: bool = False) -> tuple[Any, Prepared, float]:
    """A trained model, its data, and CPU seconds of the training on one thread.

    folder: also leave the run's bundle there. last: the last step's weights, where the part that picks the best is reported.
    """
    torch.set_num_threads(1)
    prepared = experiment.prepare()
    with tempfile.TemporaryDirectory() as temporary:
        where = str(folder or temporary)
        checkpoint, seconds = fit(experiment, prepared, where)
        if folder is not None:
            run = Storage(where)
            conclude(experiment, "0" * 12, run, prepared, checkpoint, Tracker(run, "bench"))
    return model_of(experiment, prepared, checkpoint, "weights" if last else "best"), prepared, seconds
