"""Who stops a trial early: Tune's schedulers, and the epochs at which they want to hear of trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seekray.config import Experiment
from seekray.data.prepared import Prepared

if TYPE_CHECKING:
    from seekray.tuner.search import Search

SCORE = {"metric": "score", "mode": "max"}


def epochs_of(experiment: Experiment, prepared: Prepared) -> int:
    """Epochs that a trial can have at most."""
    training, tune = experiment.training, experiment.tune
    searched = tune.space.get("training.epochs") if tune else None
    if searched is not None:
        return int(max(searched.samples))
    if training.max_steps:
        return max(1, training.max_steps * training.batch_size // max(1, len(prepared.train)))
    return training.epochs or 20


def scheduler(search: Search, epochs: int) -> Any:
    """Tune's scheduler; sets the search's rungs: trials speak to it there and at the end, and train undisturbed between."""
    from ray.tune import schedulers as of_tune

    tune = search.tune
    # Compared earlier, on few validation rows, what learns fast wins over what learns well (docs/benchmarks.md).
    grace = tune.grace or (max(1, epochs // 3) if tune.scheduler == "asha" else 1)
    often = max(1, epochs // 20)
    rungs = list(range(grace, epochs, often))
    if tune.scheduler == "none" or epochs <= grace:
        search.rungs = []
        return of_tune.FIFOScheduler()
    if tune.scheduler == "asha":
        search.rungs = [int(grace * tune.reduction**k) for k in range(epochs) if grace * tune.reduction**k < epochs]
        made: Any = of_tune.AsyncHyperBandScheduler(
            "epoch", max_t=epochs, grace_period=grace, reduction_factor=tune.reduction, stop_last_trials=False, **SCORE
        )
    elif tune.scheduler == "hyperband":
        search.rungs = rungs
        made = _hyperband(search)("epoch", max_t=epochs, reduction_factor=tune.reduction, **SCORE)
    elif tune.scheduler == "median":
        search.rungs = rungs
        # min_time_slice: where there are too few to compare with, a trial goes on and is not put aside.
        made = _median()("epoch", grace_period=grace, min_time_slice=float("inf"), **SCORE)
    else:
        interval = max(grace, epochs // 10)
        search.rungs = list(range(interval, epochs, interval))
        made = _population(search)("epoch", perturbation_interval=interval, custom_explore_fn=dict, log_config=False, **SCORE)
    return made


def _hyperband(search: Search) -> Any:
    """Tune's expects all trials to be there from the beginning; here they come as there is room, so that a searcher learns."""
    from ray.tune.schedulers import hyperband

    class Bracket(hyperband._Bracket):  # type: ignore[misc]
        def filled(self) -> bool:
            return bool(len(self._all_trials) >= self._n0)

        def cur_iter_done(self) -> bool:
            complete = self.filled() or len(search.journal.trials) >= search.tune.trials
            return complete and bool(super().cur_iter_done())

    class HyperBand(hyperband.HyperBandScheduler):  # type: ignore[misc]
        def _create_bracket(self, s: int) -> Any:
            return Bracket(self._time_attr, self._get_n0(s), self._get_r0(s), self._max_t_attr, self._eta, s)

    return HyperBand


def _median() -> Any:
    from ray.tune.schedulers import MedianStoppingRule

    class Median(MedianStoppingRule):  # type: ignore[misc]
        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            if "score" in result:  # a trial that failed has none
                super().on_trial_complete(tune_controller, trial, result)

    return Median


def _population(search: Search) -> Any:
    from ray.tune.schedulers import PopulationBasedTraining

    class Population(PopulationBasedTraining):  # type: ignore[misc]
        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return search.explored(trial.config, trial_to_clone.config), {}

    return Population


def remind(scheduler: Any, search: Search) -> None:
    """Tell a scheduler what an earlier process knew of the rungs, so that trials are compared with those before a resume."""
    for bracket in getattr(scheduler, "_brackets", ()):
        for milestone, recorded in bracket._rungs:
            for entry in search.journal.trials.values():
                reached = [value for epoch, value in entry.rungs if epoch >= int(milestone)]
                if reached:
                    recorded[trial_id(entry.number)] = reached[0] if search.higher else -reached[0]


def trial_id(number: int) -> str:
    """What Tune calls a trial."""
    return f"{number:05d}"
