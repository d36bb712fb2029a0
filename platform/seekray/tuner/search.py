"""The search itself: which trial is next, what became of each, when it is enough. Tune calls it at every event."""

from __future__ import annotations

import functools
import json
import logging
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from seekray.bundle import sample_rows
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.errors import ConfigError, SeekrayError, UserError
from seekray.experiment_file import value_of, with_values
from seekray.metrics import higher_is_better
from seekray.models import get_family
from seekray.search_space import MEASURED
from seekray.session import points
from seekray.storage import Storage
from seekray.tracking.events import Start
from seekray.tracking.spool import Tracker, start_of
from seekray.train_state import objective
from seekray.trainer import check_size, code_tags, run_tags, write_start
from seekray.tuner import objectives
from seekray.tuner.data import Datasets
from seekray.tuner.journal import Entry, Journal
from seekray.tuner.samplers import Scores, sampler
from seekray.tuner.table import Table

FIRST = 5  # trials that all fail end a search
WRITE_AFTER = 0.005  # seconds; by then the next trial is on its way


class Search(Callback):  # type: ignore[misc]
    """The trials of one search.

    runs: the folder in which the search's run and those of its trials are; each trial is a run of its own, the child of the
    search's, whose id begins with the search's.
    """

    def __init__(
        self,
        experiment: Experiment,
        search_id: str,
        runs: Storage,
        data: Datasets,
        tracker: Tracker,
        table: Table,
    ) -> None:
        assert experiment.tune is not None
        self.experiment, self.tune, self.search_id = experiment, experiment.tune, search_id
        # What all trials share. The metric of the search picks each trial's best weights too.
        plain = with_values(experiment, {"training.metric": self.tune.first or experiment.training.metric})
        self._plain = plain.model_copy(update={"register_as": None})
        self._runs, self._data, self._tracker, self.table = runs, data, tracker, table
        self.rungs: list[int] = []
        self.metric, self.higher = objective(plain)
        self.goals = [(self.metric, self.higher), *((name, self._rises(name)) for name in self.tune.others)]
        if "latency" in self.tune.others and not data.prepare(experiment).schema.targets:
            raise ConfigError(
                "tune.metric: latency is that of a prediction, which this family does not make", field="tune.metric"
            )
        self.journal = Journal(runs.child(search_id))
        others = {k for p in self.tune.space.values() for k in p.when} - self.tune.space.keys()
        self._sampler = sampler(self.tune, {k: value_of(experiment, k) for k in others})
        self._waiting: list[Entry] = []
        self._code = code_tags()
        self._begun: dict[int, tuple[Experiment, Prepared, Start]] = {}
        self._ready: tuple[Entry, dict[str, Any]] | None = None
        # Files are written beside, in order, and a moment later: no trial waits for a disk, or for the lock of this process.
        self._writer, self._writing = ThreadPoolExecutor(1, thread_name_prefix="search"), list[Future[None]]()
        self._began: float | None = None  # the first trial's start: a cluster may need its time before
        self._since: dict[int, float] = {}
        self._known: dict[int, Trial] = {}
        self.room: Callable[[], bool] = lambda: True
        begun = {entry.run_id for entry in self.journal.trials.values()}
        for run_id in [n for n in runs.list() if n.startswith(f"{search_id}-t") and n not in begun]:
            runs.delete(run_id)  # begun in the moment in which the search died: its number is given again
        for entry in sorted(self.journal.trials.values(), key=lambda e: e.number):
            self._sampler.again(entry, self.scores(entry))
            if not entry.ended:
                self._waiting.append(entry)

    # ---- what is asked

    def score(self, entry: Entry) -> float | None:
        """Higher for better; None where a trial has no value."""
        return None if entry.value is None or entry.status == "failed" else entry.value if self.higher else -entry.value

    def scores(self, entry: Entry) -> Scores | None:
        """One a metric, higher for better; None where a trial has no value."""
        first = self.score(entry)
        if first is None or not entry.others.keys() >= set(self.tune.others):
            return None
        return (first, *(entry.others[name] * (1 if higher else -1) for name, higher in self.goals[1:]))

    def _rises(self, name: str) -> bool:
        known, higher = get_family(self.experiment.family).objective(self.experiment.task)
        return higher if name == known else name not in MEASURED and higher_is_better(name)

    def _scored(self) -> dict[int, Scores]:
        return {e.number: scores for e in self.journal.trials.values() if (scores := self.scores(e)) is not None}

    @property
    def best(self) -> Entry | None:
        """The best trial so far; the first of equals."""
        number = objectives.best(self._scored(), self.tune.tolerance)
        return None if number is None else self.journal.trials[number]

    @property
    def front(self) -> list[int]:
        """Trials that none beats in all metrics, by number; of one metric the best."""
        return objectives.front(self._scored())

    @property
    def running(self) -> list[Entry]:
        """Begun, and neither ended nor paused."""
        paused = {n for n, trial in self._known.items() if trial.status == Trial.PAUSED}
        return [e for e in self.journal.trials.values() if not e.ended and e not in self._waiting and e.number not in paused]

    def enough(self) -> str | None:
        """Why no more is needed, or None. Raises SeekrayError where the first trials have all failed."""
        ended = self.journal.ended
        if len(ended) >= min(FIRST, self.tune.trials) and all(e.status == "failed" for e in ended):
            reasons = "\n".join(dict.fromkeys(f"  trial {e.number}: {e.reason}" for e in ended[:FIRST]))
            raise SeekrayError(f"the first {len(ended)} trials all failed; the search is stopped:\n{reasons}")
        best = self.best
        if self.tune.time is not None and self._began is not None and time.monotonic() - self._began >= self.tune.time:
            return f"the time is over ({self.tune.time:g} s)"
        if best is not None and best.value is not None and self._on_target(best.value):
            return f"the target is reached ({self.metric} {best.value:.4g})"
        newest = max(self.front, default=math.inf) if self.tune.others or best is None else best.number
        later = [e for e in ended if e.number > newest]
        if self.tune.plateau is not None and len(later) >= self.tune.plateau:
            return f"{len(later)} trials in a row brought nothing better"
        return None

    def _on_target(self, value: float) -> bool:
        target = self.tune.target
        return target is not None and (value >= target if self.higher else value <= target)

    def next(self) -> dict[str, Any] | None:
        """Settings of the next trial, None where there is no room for one; StopIteration at the end.

        A trial whose values do not depend on those that run is made ready before there is room for it.
        """
        if self._waiting:
            entry = self._waiting.pop(0)
            run, (experiment, *_) = self._runs.child(entry.run_id), self.parts(entry.values)
            # The data may have changed meanwhile: told at once.
            write_start(run, experiment, self._data.prepare(experiment), resume=run.exists("run.json"))
            return self._settings(entry)
        if self._ready is None and (self.room() or not self._sampler.learns):
            self._ready = self._made()
        if self._ready is None or not self.room():
            return None
        (entry, settings), self._ready = self._ready, None
        self.journal.note(entry)
        self._write(self.journal.save)
        self._write(functools.partial(self._write_start, entry))
        return settings

    def _made(self) -> tuple[Entry, dict[str, Any]]:
        """A new trial that can run; those that cannot have failed."""
        while True:
            number = max(self.journal.trials, default=-1) + 1
            values = self._sampler.ask(number) if number < self.tune.trials else None
            if values is None:
                raise StopIteration
            entry = Entry(number, f"{self.search_id}-t{number:03d}", values)
            try:
                return entry, self._settings(entry)
            except UserError as error:  # an impossible combination
                self._end(entry, "failed", error.message)
                if self.enough():
                    raise StopIteration from None

    def _settings(self, entry: Entry) -> dict[str, Any]:
        experiments = self.parts(entry.values)
        prepared = self._data.ready(experiments[0]).prepared
        check_size(experiments[0], prepared)
        parts = self._told(experiments)
        tags = run_tags(experiments[0], prepared, self._code) | {"parent": self.search_id, "trial": str(entry.number)}
        start = start_of(entry.run_id, experiments[0].name, parts[0]["experiment"], tags)
        self._begun[entry.number] = experiments[0], prepared, start
        return {
            "number": entry.number, "run_id": entry.run_id, "search_id": self.search_id,
            "run": self._runs.child(entry.run_id).uri, "start": start | {"params": {}},  # they are in parts
            "values": entry.values, "parts": parts, "rungs": self.rungs, "others": self.tune.others,
            "row": _row(prepared) if "latency" in self.tune.others else None,
        }  # fmt: skip

    def _write_start(self, entry: Entry) -> None:
        experiment, prepared, _ = self._begun[entry.number]
        write_start(self._runs.child(entry.run_id), experiment, prepared, resume=False)

    def _told(self, experiments: list[Experiment]) -> list[dict[str, Any]]:
        return [{"experiment": e.as_json(), "data": self._data.ready(e).shared} for e in experiments]

    def parts(self, values: dict[str, Any]) -> list[Experiment]:
        """The experiments of a trial: one, or its repetitions. Raises ConfigError for values that do not go together."""
        return [with_values(self._plain, {**values, **other}) for other in self.tune.repetitions(self._plain.training.seed)]

    def explored(self, own: dict[str, Any], better: dict[str, Any]) -> dict[str, Any]:
        """Settings of a trial that takes over a better one's weights and values, with its numbers moved a little (PBT)."""
        values = dict(better["values"])
        draw = random.Random(f"{self.tune.seed}/{own['number']}/{json.dumps(values)}")
        for key in [k for k in values if self.tune.space[k].kind in ("uniform", "loguniform")]:
            values[key] = self.tune.space[key].moved(values[key], draw)
        return own | {"values": values, "parts": self._told(self.parts(values))}

    # ---- what is told, by Tune

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        entry = self._entry(trial)
        self._known[entry.number] = trial
        self._since[entry.number] = time.monotonic() - entry.seconds
        self._began = self._began or time.monotonic()
        if entry.values != trial.config["values"]:
            entry.schedule = [*(entry.schedule or [(0, dict(entry.values))]), (entry.epoch, dict(trial.config["values"]))]
            entry.values = dict(trial.config["values"])
        went_on = f"from epoch {entry.epoch}" if entry.epoch else "running"
        self.table.event(f"trial {entry.number}: {went_on}, {shown(entry.values)}")

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        entry = self._entry(trial)
        entry.epoch, entry.seconds = result["epoch"], time.monotonic() - self._since[entry.number]
        if result.get("score") is not None:
            entry.value, entry.others = result["score"] if self.higher else -result["score"], result["others"]
            if not entry.rungs or entry.rungs[-1][0] < entry.epoch:
                entry.rungs.append((entry.epoch, entry.value))
        if not result["done"]:
            self.journal.note(entry)
            self._write(self.journal.save)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        entry, last = self._entry(trial), trial.last_result
        if "failed" in last:
            self._end(entry, "failed", last["failed"])
        elif last["finished"]:
            self._end(entry, "finished")
        else:
            self._end(entry, "stopped", f"behind others at epoch {entry.epoch}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = trial.get_pickled_error()
        text = str(error).strip().splitlines()[0] if error else "no reason was told"
        logging.getLogger(__name__).info("trial %s: %s", trial, error)
        self._end(self._entry(trial), "failed", f"its process died: {text[:300]}")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        while self._writing and self._writing[0].done():
            self._writing.pop(0).result()
        self.table.draw(self)

    def _write(self, task: Callable[[], None]) -> None:
        def write(due: float = time.monotonic() + WRITE_AFTER) -> None:
            time.sleep(max(0.0, due - time.monotonic()))
            task()

        self._writing.append(self._writer.submit(write))

    def catch_up(self) -> None:
        """Wait until all is written. Raises what went wrong."""
        while self._writing:
            self._writing.pop(0).result()

    def _entry(self, trial: Trial) -> Entry:
        return self.journal.trials[trial.config["number"]]

    def _end(self, entry: Entry, status: str, reason: str = "") -> None:
        entry.status, entry.reason = status, reason
        if status == "failed":
            entry.value, entry.others = None, {}
        self._sampler.tell(entry, self.scores(entry))
        self.journal.note(entry)
        self._write(functools.partial(self._write_end, entry, self.best, len(self.journal.ended)))
        self.table.event(self._line(entry, self.best is entry))

    def _write_end(self, entry: Entry, best: Entry | None, count: int) -> None:
        status, reason = entry.status, entry.reason
        self.journal.save()
        run = self._runs.child(entry.run_id)
        if run.exists("run.json"):
            tracker = Tracker(run, entry.run_id, self._begun.pop(entry.number)[2])
            if entry.value is not None:
                found = {self.metric: entry.value, **entry.others}
                tracker.points(points({f"trial_{name}": value for name, value in found.items()}, entry.epoch))
            tracker.tags({"trial_status": status, "trial_reason": reason} if reason else {"trial_status": status})
            tracker.finish("failed" if status == "failed" else "finished", reason)
        if best is not None and best.value is not None:
            told = {f"best_{name}": value for name, value in {self.metric: best.value, **best.others}.items()}
            told["trials_ended"] = float(count)
            self._tracker.points(points(told, count))

    def _line(self, entry: Entry, best: bool) -> str:
        found = {} if entry.value is None else {self.metric: entry.value, **entry.others}
        value = f" {shown(found)} after {entry.epoch} epochs" if found else ""
        reason = f" ({entry.reason})" if entry.reason else ""
        return f"trial {entry.number}: {entry.status}{value}{reason}{', the best so far' if best else ''}"

    def close(self, reason: str) -> None:
        """Trials that the search's end stopped; those with a value have their best checkpoint."""
        for entry in [e for e in self.journal.trials.values() if not e.ended and e not in self._waiting]:
            if entry.value is None:
                self._end(entry, "failed", f"{reason}, before its first rung")
            else:
                self._end(entry, "stopped", reason)
        self.catch_up()


def _row(prepared: Prepared) -> dict[str, Any]:
    """A row as a request has it."""
    names = [feature.name for feature in prepared.schema.features]
    return sample_rows(prepared.held_out.slice(0, 1).to_pylist(), names)[0]


def shown(values: dict[str, Any]) -> str:
    """`training.lr 0.0012, model.dropout 0.3`."""
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
