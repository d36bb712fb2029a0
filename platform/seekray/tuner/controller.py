"""Ray Tune's controller, run by this process, without what a search here does not use.

Everything that differs from Ray 2.60 is on this page, and the version is pinned.

* No snapshots of the experiment (the journal is ours), no result files, no loggers, no syncer, no reporter.
* An actor that goes on to another trial is told of it and set to work in one message: Tune waits for an answer in between,
  looks up the class in the cluster's store for every trial, and asks for the actor's address.
* Trial actors come from Ray's pool of workers, which have imported torch: Tune gives them environment variables,
  and any of these means a fresh process.
* Ctrl-C raises here at once; the actors that are in the middle of an epoch are ended, not waited for.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune import PlacementGroupFactory, Trainable
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.search.search_algorithm import SearchAlgorithm

from seekray.interrupts import Interrupts
from seekray.tuner.schedulers import trial_id


class _Classes(_ActorClassCache):  # type: ignore[misc]
    def get(self, trainable_cls: Any) -> Any:
        if trainable_cls not in self._cache:
            self._cache[trainable_cls] = ray.remote(trainable_cls)
        return self._cache[trainable_cls]


class _Trial(Trial):  # type: ignore[misc]
    """One whose class is known, whose actor is asked nothing, and that has no folder until it fails."""

    trainable: type[Trainable]

    def get_trainable_cls(self) -> type[Trainable]:
        return self.trainable

    def set_ray_actor(self, ray_actor: Any) -> None:
        self.temporary_state.ray_actor = ray_actor

    def init_local_path(self) -> None:
        """No folder is made."""
        self.relative_logdir = self.storage.trial_dir_name = self.trial_id

    def handle_error(self, exc: Any = None) -> None:
        """Tune writes the error there."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)
        super().handle_error(exc)


class _Controller(TuneController):  # type: ignore[misc]
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._class_cache = _Classes()
        self._turning: set[Trial] = set()
        self._print_trial_errors = False  # the reason is told by the search

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing."""

    def _validate_result_metrics(self, result: Any) -> None:
        """A trial that failed has no score."""

    def _schedule_trial_reset(self, trial: Trial, new_config: dict[str, Any], new_experiment_tag: str) -> None:
        trial.set_experiment_tag(new_experiment_tag)
        trial.set_config(new_config)
        self._turning.add(trial)
        self._actor_started(self._trial_to_actor[trial], log="REUSED")

    def _schedule_trial_task(self, trial: Trial, method_name: str, args: tuple[Any, ...] | None = None, **how: Any) -> Any:
        """The first task of an actor's next trial, `train` or `restore`, takes the trial's settings along."""
        if trial in self._turning:
            self._turning.remove(trial)
            method_name, args = "turn", (trial.config, method_name, *(args or ()))
        return super()._schedule_trial_task(trial, method_name, args, **how)

    def end(self) -> None:
        """End all actors, whatever they are doing: what counts is in the trials' checkpoints."""
        self._actor_manager.cleanup()


class Trials(SearchAlgorithm):  # type: ignore[misc]
    """What the controller asks for its next trial: `follow` gives a trial's settings, None for now, or StopIteration."""

    def __init__(self, follow: Callable[[], dict[str, Any] | None]) -> None:
        self._follow = follow
        self._finished = False
        self._make: Callable[[dict[str, Any]], Trial] | None = None

    def begin(
        self, experiment: Experiment, trainable_class: type[Trainable], resources: PlacementGroupFactory, retries: int
    ) -> None:
        """What all trials share."""

        class Known(_Trial):
            trainable = trainable_class

        def make(settings: dict[str, Any]) -> Trial:
            return Known(
                experiment.run_identifier, config=settings, trial_id=trial_id(settings["number"]), storage=experiment.storage,
                placement_group_factory=resources, max_failures=retries, experiment_tag=str(settings["number"]),
                stub=True,  # the class is known
            )  # fmt: skip

        self._make = make

    def next_trial(self) -> Trial | None:
        assert self._make is not None
        if self._finished:
            return None
        try:
            settings = self._follow()
        except StopIteration:
            self._finished = True
            return None
        return None if settings is None else self._make(settings)


def run(
    trainable: type[Trainable],
    trials: Trials,
    *,
    scheduler: Any,
    callback: Any,
    resources: PlacementGroupFactory,
    concurrency: int,
    retries: int,
    enough: Callable[[], str | None],
) -> str | None:
    """Run trials until there are no more, or `enough` says why no more are wanted. Raises KeyboardInterrupt at once."""
    scratch = tempfile.mkdtemp(prefix="seekray-tune-")  # Tune wants a folder; nothing that counts is in it
    experiment = Experiment(name="search", run=trainable, storage_path=scratch)
    trials.begin(experiment, trainable, resources, retries)
    controller = _Controller(
        search_alg=trials, scheduler=scheduler, callbacks=[callback], reuse_actors=True, storage=experiment.storage
    )
    controller.update_max_pending_trials(concurrency)
    try:
        with Interrupts() as interrupts:
            while not controller.is_finished():
                controller.step()
                interrupts.check()
                if reason := enough():
                    return reason
        return None
    finally:
        controller.end()
        shutil.rmtree(scratch, ignore_errors=True)
