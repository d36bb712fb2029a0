"""Who stops a trial early: Tune's schedulers, and the epochs at which they want to hear of trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.search_space import Tune

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


def scheduler(tune: Tune, epochs: int) -> tuple[Any, list[int]]:
    """Tune's scheduler, and the rungs: a trial speaks to it there and at its end, and trains in between undisturbed."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    if tune.scheduler == "none" or epochs <= tune.grace:
        return FIFOScheduler(), []
    rungs, at = [], float(tune.grace)
    while at < epochs:
        rungs.append(int(at))
        at *= tune.reduction
    made = AsyncHyperBandScheduler(
        time_attr="epoch",
        max_t=epochs,
        grace_period=tune.grace,
        reduction_factor=tune.reduction,
        stop_last_trials=False,
        **SCORE,
    )
    return made, rungs


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
