"""Search space → Ray Tune → best experiment, and the best model itself."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seekray.checkpoint import Checkpoints
from seekray.config import Experiment, Resources
from seekray.errors import ConfigError, SeekrayError
from seekray.log import to_file
from seekray.model_ref import with_base
from seekray.progress import Progress
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking.sender import result, start_sender
from seekray.tracking.spool import Tracker
from seekray.trainer import TrainResult, check_size, ending, new_run_id, release, result_of, run_tags, runs_storage, write_start
from seekray.tuner.data import Datasets

if TYPE_CHECKING:
    from seekray.tuner.search import Search

Connect = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class TuneResult:
    """What `tune` answers: as `train` for the best trial, with all trials."""

    search_id: str
    best_run: TrainResult
    best: dict[str, Any]
    trials: list[dict[str, Any]]
    folder: str
    metric: str
    sign: int
    ended_by: str = ""
    front: list[int] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The command line's document. front: numbers of the trials that none beats, where there are several metrics."""
        told = self.best_run.as_json() | {"search_id": self.search_id, "best": self.best, "trials": self.trials}
        return told | ({"front": self.front} if self.front else {})


def processes(experiment: Experiment, cores: int) -> Resources:
    """What a Ray of our own should be ready for: as many trials as fit, or as many as are asked for."""
    assert experiment.tune is not None
    own = experiment.resources
    room = max(1, math.floor(cores / (own.cpus_per_worker or 1) / max(1, own.span[1])))
    return own.model_copy(update={"workers": min(room, experiment.tune.concurrency or room) * max(1, own.span[1])})


def tune(
    experiment: Experiment,
    settings: Settings,
    *,
    connect: Connect = nullcontext,
    progress: Progress | None = None,
    source: str = "the experiment",
    resume: str | None = None,
) -> TuneResult:
    """Search, and leave the best model as `train` would have.

    connect: gives a Ray, entered while the data is read. source: what best.yaml says that the other values are from.
    resume: the id of a search to go on with. Raises SeekrayError; a search that fails or is interrupted can be resumed.
    """
    if experiment.tune is None:
        raise ConfigError(
            "tune: is missing; it says what is searched, for example tune: {space: {training.lr: {loguniform: [0.0001, 0.1]}}}",
            field="tune",
        )
    if experiment.tune.searcher == "bohb":
        from seekray.tuner.bohb import packages

        packages()  # told before anything starts
    progress = progress or Progress(quiet=True)
    data = Datasets(settings, kept=4 + len(experiment.tune.repetitions(0)))
    folded = experiment.tune.repeat is not None and experiment.tune.repeat.folds is not None
    given, experiment = experiment, with_base(experiment, settings)
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as ray:
        reading = pool.submit(data.prepare, experiment)
        ray.enter_context(connect())
        check_size(experiment, reading.result())
        if not folded and not len(reading.result().validation):
            raise ConfigError(
                "tune compares trials on validation rows, and the split leaves none; give data.split.validation a fraction, "
                "or with kind: column some rows the value validation",
                field="data.split",
            )
        return _tune(given, experiment, settings, data, progress, source, resume, ray.close)


def _tune(
    given: Experiment,
    experiment: Experiment,
    settings: Settings,
    data: Datasets,
    progress: Progress,
    source: str,
    resume: str | None,
    leave_ray: Callable[[], None],
) -> TuneResult:
    from seekray.tuner import outcome, schedulers
    from seekray.tuner.search import Search, shown
    from seekray.tuner.table import Table

    assert experiment.tune is not None
    search_id = resume or new_run_id(experiment.name)
    runs = runs_storage(experiment.storage, settings)
    run, prepared = runs.child(search_id), data.prepare(experiment)
    write_start(run, experiment, prepared, resume=resume is not None)
    if resume is None:
        told = outcome.given_by(given) | {"source": source}
        run.write_bytes("given.json", json.dumps(told, indent=1).encode())  # in the file's order
    told = run.read_json("given.json")
    log_file = settings.home / "logs" / f"{search_id}.log"
    table = Table(search_id, progress.stream, quiet=progress.quiet)
    with to_file(log_file, search_id), contextlib.closing(table):
        tracker = Tracker(run, search_id)
        tracker.start(
            experiment.name, experiment.as_json(), run_tags(experiment, prepared) | {"search": experiment.tune.searcher}
        )
        with start_sender(run, settings) as sender:
            with ending(tracker, progress, log_file, f"seekray tune --resume {search_id}"):
                search = Search(experiment, search_id, runs, data, tracker, table)
                scheduler = schedulers.scheduler(search, schedulers.epochs_of(experiment, prepared))
                schedulers.remind(scheduler, search)
                progress.say(_headline(search))
                reason = search.enough() or _run(search, scheduler)
                table.close()
                best = search.best
                if best is None:
                    raise SeekrayError(f"no trial of {search_id} has a value: {_reasons(search)}")
                told_best = shown({search.metric: best.value, **best.others})
                progress.say(f"{reason or 'all trials are done'}; best: trial {best.number}, {told_best}")
                chosen = search.parts(best.values)[0].model_copy(update={"register_as": experiment.register_as})
                best_run, best_data = runs.child(best.run_id), data.prepare(chosen)
                checkpoint = Checkpoints(best_run).latest()
                assert checkpoint is not None
                child = Tracker(best_run, best.run_id)
                child.start(chosen.name, chosen.as_json(), {"best": "true"})
                done = release(chosen, best.run_id, best_run, best_data, checkpoint, child)
                best_file = outcome.best_yaml(search, best, told, told.pop("source"))
                outcome.leave(search, run, best.number, best_file, tracker)
                tracker.finish("finished")
            leave_ray()  # while the last is sent
            sender.wait()
    return TuneResult(
        search_id=search_id,
        best_run=result_of(chosen, best_run, best_data, done, result(best_run, settings)),
        best=best.as_json(),
        trials=[entry.as_json() for entry in search.journal.trials.values()],
        folder=str(run.local_path or run.uri),
        metric=search.metric,
        sign=1 if search.higher else -1,
        ended_by=reason or "",
        front=search.front if search.tune.others else [],
        plots=[str(run.local_path / "plots" / name) for name in run.list("plots")] if run.local_path else [],
    )


def _run(search: Search, scheduler: Any) -> str | None:
    """Run the trials; why the search ended before all of them, or None."""
    import ray
    from ray.tune import PlacementGroupFactory

    from seekray.tuner import controller
    from seekray.tuner.trial import LoopTrial

    resources, there = search.experiment.resources, ray.cluster_resources()
    gpus = resources.gpus_per_worker if resources.gpus_per_worker is not None else min(1.0, there.get("GPU", 0.0))
    asked = {"CPU": float(resources.cpus_per_worker or 1)} | ({"GPU": gpus} if gpus else {})
    workers = max(1, resources.span[0])
    room = max(1, min(math.floor(there.get(kind, 0) / (amount * workers) + 1e-6) for kind, amount in asked.items()))
    most = min(room, search.tune.concurrency or room)
    search.room = lambda: len(search.running) < most
    # The workers of a trial's own Ray Train are asked for by that; the trial only looks on.
    own = asked if resources.span[1] <= 1 else {"memory": 2**20}
    try:
        reason = controller.run(
            LoopTrial, controller.Trials(search.next), scheduler=scheduler, callback=search,
            resources=PlacementGroupFactory([own]), concurrency=most, retries=1, enough=search.enough,
        )  # fmt: skip
    finally:
        search.catch_up()
    if reason is not None:
        search.close(reason)
    return reason


def _headline(search: Search) -> str:
    tune, before = search.tune, len(search.journal.ended)
    went = f", {before} of them done before" if before else ""
    stops = (
        f", compared after {', '.join(map(str, search.rungs[:6]))}{' …' if len(search.rungs) > 6 else ''} epochs"
        if search.rungs
        else ""
    )
    who = f"{tune.searcher}, {tune.scheduler}{stops}"
    metrics = ", ".join(name for name, _ in search.goals)
    return f"search {search.search_id}: {tune.trials} trials{went}, {who}; metric: {metrics}"


def _reasons(search: Search) -> str:
    return "; ".join(dict.fromkeys(e.reason for e in search.journal.ended if e.reason)) or "none was run"


__all__ = ["Storage", "TuneResult", "tune"]
