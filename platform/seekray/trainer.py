"""Experiment → run → best bundle → registered version, in this process or on Ray Train."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from seekray import loop, report
from seekray.augment import augmented
from seekray.checkpoint import Checkpoint, Checkpoints
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.errors import ConfigError, DataError, FullError, ModelNotFoundError, full
from seekray.log import to_file
from seekray.model_ref import with_base
from seekray.models import get_family
from seekray.models.family import textual
from seekray.progress import Progress
from seekray.session import LocalSession, Point, points
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.system import git_state, versions
from seekray.tracking.sender import SendResult, start_sender
from seekray.tracking.spool import Tracker

SHOWN_WARNINGS = 4
Connect = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class TrainResult:
    """What `train` answers; as JSON `{run_id, bundle, model, version, metrics}`."""

    run_id: str
    bundle: str
    model: str | None
    version: str | None
    metrics: dict[str, float]
    tracked: bool = True
    plots: list[str] = field(default_factory=list)
    makes: Literal["predictions", "rows", "texts"] = "predictions"

    def as_json(self) -> dict[str, Any]:
        """The command line's document."""
        out = asdict(self)
        del out["tracked"], out["plots"], out["makes"]
        return out


class Ears:
    """Hears a run in the driver: points to the tracker, progress to the terminal."""

    def __init__(self, tracker: Tracker, progress: Progress) -> None:
        self._tracker, self._progress = tracker, progress

    def points(self, new: Sequence[Point]) -> None:
        self._tracker.points(new)

    def progress(self, state: Mapping[str, Any]) -> None:
        self._progress.update(state)


def new_run_id(name: str) -> str:
    """Sortable, made without asking anyone."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(2)}"


def runs_storage(experiment_storage: str | None, settings: Settings) -> Storage:
    """Where runs are kept."""
    return Storage(experiment_storage or settings.storage).child("runs")


def load_run(run_id: str, settings: Settings) -> Experiment:
    """The resolved experiment of an earlier run. Raises ModelNotFoundError."""
    runs = runs_storage(None, settings)
    try:
        return Experiment.model_validate(runs.read_json(f"{run_id}/experiment.json"))
    except FileNotFoundError as error:
        known = ", ".join(runs.list()[-5:]) or "none"
        raise ModelNotFoundError(f"run {run_id!r} is not under {runs.uri}; the newest there: {known}") from error


def train(
    experiment: Experiment,
    settings: Settings,
    *,
    connect: Connect = nullcontext,
    progress: Progress | None = None,
    resume: str | None = None,
) -> TrainResult:
    """Run an experiment to its registered version.

    connect: gives a Ray to attach to (see `cluster.connect`), entered while the data is read; not
    used with `workers: 0`. resume: the id of a run to go on with. Raises SeekrayError; a run that
    fails or is interrupted can be resumed.
    """
    progress = progress or Progress(quiet=True)
    experiment = with_base(experiment, settings)
    distributed = experiment.resources.span[1] > 0
    with ThreadPoolExecutor(1) as pool:  # data is read while Ray starts
        reading = pool.submit(lambda: augmented(experiment.prepare(), experiment, settings))
        with connect() if distributed else nullcontext():
            prepared = reading.result()
            return _train(experiment, prepared, settings, progress, resume)


def _train(
    experiment: Experiment, prepared: Prepared, settings: Settings, progress: Progress, resume: str | None
) -> TrainResult:
    check_size(experiment, prepared)
    run_id = resume or new_run_id(experiment.name)
    run = runs_storage(experiment.storage, settings).child(run_id)
    write_start(run, experiment, prepared, resume=resume is not None)
    log_file = settings.home / "logs" / f"{run_id}.log"
    with to_file(log_file, run_id):
        _warn(prepared, progress, log_file)
        progress.say(_headline(experiment, prepared, run_id))
        tracker = Tracker(run, run_id)
        tracker.start(experiment.name, experiment.as_json(), run_tags(experiment, prepared))
        with start_sender(run, settings) as sender:
            with ending(tracker, progress, log_file, f"seekray train --resume {run_id}"):
                checkpoint = _fit(experiment, run_id, run, prepared, Ears(tracker, progress), progress)
                progress.close()
                done = release(experiment, run_id, run, prepared, checkpoint, tracker)
            sent = sender.wait()
    return result_of(experiment, run, prepared, done, sent)


def _warn(prepared: Prepared, progress: Progress, log_file: Path) -> None:
    for number, warning in enumerate(prepared.warnings):
        logging.getLogger(__name__).log(logging.WARNING if number < SHOWN_WARNINGS else logging.INFO, warning)
    if len(prepared.warnings) > SHOWN_WARNINGS:
        progress.say(f"and {len(prepared.warnings) - SHOWN_WARNINGS} more such notes in {log_file}")


def run_tags(experiment: Experiment, prepared: Prepared, code: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a run is known by in MLflow. code: `code_tags`, where they are known already."""
    tags = dict(code or code_tags()) | {"family": experiment.family, "task": experiment.task}
    return tags | _flat("data", prepared.fingerprint)


def code_tags() -> dict[str, str]:
    """Commit and versions; 15 ms."""
    return git_state() | _flat("version", versions())


def release(
    experiment: Experiment, run_id: str, run: Storage, prepared: Prepared, checkpoint: Checkpoint, tracker: Tracker
) -> report.Concluded:
    """A finished checkpoint's bundle, held-out metrics, plots and card; registered where the experiment says so."""
    done = report.conclude(experiment, run_id, run, prepared, checkpoint, tracker)
    held_out = {f"{prepared.held_out_name}_{k}": v for k, v in done.metrics.items()}
    tracker.points(points(held_out, checkpoint.state["step"]))
    tracker.model(done.bundle, experiment.register_as)
    tracker.finish("finished")
    return done


@contextlib.contextmanager
def ending(tracker: Tracker, progress: Progress, log_file: Path, go_on: str) -> Iterator[None]:
    """Tell tracker and terminal how a run ended where it did not end well. go_on: the command that resumes it."""
    try:
        yield
    except KeyboardInterrupt:
        progress.close()
        tracker.finish("killed", "interrupted by the user")
        progress.say(f"interrupted; go on with: {go_on}")
        raise
    except Exception as error:
        progress.close()
        disk = isinstance(error, FullError) or (isinstance(error, OSError) and full(error) is not None)
        with contextlib.suppress(*((FullError, OSError) if disk else ())):
            tracker.finish("failed", str(error))
        progress.say(f"run {log_file.stem} failed; its log: {log_file}")
        if disk:
            progress.say(f"when there is room, go on with: {go_on}")
        raise


def result_of(
    experiment: Experiment, run: Storage, prepared: Prepared, done: report.Concluded, sent: SendResult | None
) -> TrainResult:
    """The answer to `train`. sent: what the tracking server has of it."""
    local = run.local_path
    return TrainResult(
        run_id=run.uri.rsplit("/", 1)[-1],
        bundle=str(local / done.bundle) if local else f"{run.uri}/{done.bundle}",
        model=experiment.register_as,
        version=sent.version if sent else None,
        metrics=done.metrics,
        tracked=sent is not None and sent.remaining == 0,
        makes="predictions" if prepared.schema.targets else "texts" if textual(get_family(experiment.family)) else "rows",
        plots=[str(local / "plots" / name) for name in run.list("plots")] if local else [],
    )


def write_start(run: Storage, experiment: Experiment, prepared: Prepared, *, resume: bool) -> None:
    """Leave what a resume needs; on a resume, refuse other data."""
    if resume:
        before = run.read_json("run.json")["fingerprint"]
        if before != prepared.fingerprint:
            changed = [k for k in prepared.fingerprint if before.get(k) != prepared.fingerprint[k]]
            raise DataError(
                f"the data of {run.uri} has changed since the run began ({', '.join(changed)}); "
                "put the data back or start a new run"
            )
    # The order of a search's space counts: fields depend on those before.
    run.write_bytes("experiment.json", json.dumps(experiment.as_json(), indent=1).encode())
    run.write_json("run.json", {"fingerprint": prepared.fingerprint, "name": experiment.name})
    if prepared.rejected:
        lines = "".join(json.dumps(r, default=str) + "\n" for r in prepared.rejected)
        run.write_bytes("rejected.jsonl", lines.encode())
        logging.getLogger(__name__).warning(
            "%d rows were rejected; they are listed in %s", len(prepared.rejected), run.path("rejected.jsonl")
        )


def check_size(experiment: Experiment, prepared: Prepared) -> None:
    """Contradictions that show only with the data. Raises ConfigError."""
    rows = len(prepared.train)
    if rows < experiment.resources.span[1]:
        raise ConfigError(f"resources.workers: {experiment.resources.span[1]} for {rows} training rows; use fewer workers")
    if experiment.training.early_stopping and not len(prepared.validation):
        raise ConfigError("training.early_stopping needs validation rows; the split left none (data.split.validation)")


def _headline(experiment: Experiment, prepared: Prepared, run_id: str) -> str:
    workers = experiment.resources.workers
    where = "in this process" if workers == 0 else f"on {workers} Ray Train worker(s)"
    return (
        f"run {run_id}: {experiment.family} {experiment.task}, {len(prepared.train):,} training rows, "
        f"{len(prepared.validation):,} validation, {len(prepared.held_out):,} held out, "
        f"{len(prepared.schema.features)} features, {where}"
    )


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    return {f"{prefix}.{key}": str(value) for key, value in values.items()}


def _fit(experiment: Experiment, run_id: str, run: Storage, prepared: Prepared, ears: Ears, progress: Progress) -> Checkpoint:
    """Train wherever the experiment says; returns the finished checkpoint."""
    checkpoints = Checkpoints(run)
    before = checkpoints.latest()
    if before is None or not before.state["finished"]:
        if experiment.resources.span[1] == 0:
            _fit_here(experiment, run, prepared, ears, before)
        else:
            from seekray import ray_train

            ray_train.fit(experiment, run_id, run, ray_train.share(prepared), ears, progress)
        before = checkpoints.latest()
    assert before is not None
    return before


class _FixedThreads(LocalSession):
    """The user has said how many."""

    def use_threads(self, work: int) -> None:
        """Set already."""


def _fit_here(experiment: Experiment, run: Storage, prepared: Prepared, ears: Ears, before: Checkpoint | None) -> None:
    import torch

    if cpus := experiment.resources.cpus_per_worker:
        torch.set_num_threads(max(1, int(cpus)))
    device = "cuda" if torch.cuda.is_available() and experiment.resources.gpus_per_worker != 0 else "cpu"
    session = (LocalSession if not cpus else _FixedThreads)(
        experiment.training, run, listener=ears, resume_from=before, device=device
    )
    loop.run(experiment, session, prepared.schema, prepared.train, prepared.validation, prepared.initial)
