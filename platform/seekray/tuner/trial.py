"""One trial after another in an actor that stays: the loop itself, up to the next epoch at which trials are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint as TuneCheckpoint
from ray.tune import Trainable

from seekray import loop, ray_train
from seekray.checkpoint import Checkpoint, Checkpoints
from seekray.config import Experiment
from seekray.errors import CorruptError, SeekrayError
from seekray.mailbox import Mailbox
from seekray.session import Point, Session
from seekray.storage import Storage
from seekray.tracking.spool import Tracker


class TrialSession(Session):
    """A session in a trial's actor."""

    def use_threads(self, work: int) -> None:
        """As many as the trial has CPUs, as a worker of Ray Train has; set before the session."""


class _Ears:
    """What a trial says: points to its own spool, its position to whoever draws the table."""

    def __init__(self, tracker: Tracker, search_id: str, number: int) -> None:
        self._tracker, self._number = tracker, number
        self._mailbox = Mailbox(f"{search_id}/{number}")

    def points(self, new: Sequence[Point]) -> None:
        self._tracker.points(new)

    def progress(self, state: Mapping[str, Any]) -> None:
        self._mailbox.show({"number": self._number, **state})


class LoopTrial(Trainable):  # type: ignore[misc]
    """Tune's view of a trial: `step` trains to the next rung and answers `{score, epoch, done}`.

    A step leaves a checkpoint before it answers, so that whatever Tune decides then (stop, pause, go on elsewhere), nothing
    that it was told of is lost. What fails is answered too, not raised: the actor stays, and no other try would help.
    settings: number, search_id, run_id, run (URI), values, experiment, data (see `ray_train.share`), rungs (epochs).
    """

    _from: tuple[str, int] | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def _setup_logdir(self) -> None:
        """A trial's files are in its run's storage; the working folder stays the driver's."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial."""
        self._settings = new_config
        self._pulses: Iterator[loop.Pulse] | None = None
        self._from = None
        self._at: Mapping[str, Any] = {"score": None, "epoch": 0}
        return True

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Where the last step left its checkpoint. Tune's own way would copy and pickle it."""
        run = Storage(self._settings["run"])
        step = Checkpoints(run).steps()[-1]
        where = TuneCheckpoint(run.path(f"checkpoints/step_{step:08d}"), run.filesystem)
        return _TrainingResult(checkpoint=where, metrics={**(self._last_result or {}), "run": run.uri, "step": step})

    def restore(self, checkpoint_path: _TrainingResult) -> None:
        """Go on from what `save` told, here or of another trial."""
        told = checkpoint_path.metrics
        self._pulses, self._from = None, (told["run"], told["step"])

    def step(self) -> dict[str, Any]:
        try:
            return self._train()
        except Exception as error:
            code = error.code if isinstance(error, SeekrayError) else type(error).__name__
            message = error.message if isinstance(error, SeekrayError) else f"{type(error).__name__}: {error}"
            return {"epoch": self._at["epoch"], "done": True, "finished": False, "failed": message, "code": code}

    def _train(self) -> dict[str, Any]:
        if self._pulses is None:
            self._pulses = self._open()
        for pulse in self._pulses:
            self._at = _at(vars(pulse.state))
            if self._at["epoch"] in self._settings["rungs"] and not pulse.state.finished:
                pulse.end()
                self._tracker.flush()
                return {**self._at, "done": False, "finished": False}
        self._tracker.flush()
        self._pulses = None
        if self._at["score"] is None:
            raise SeekrayError("the metric was never a number on the validation rows")
        return {**self._at, "done": True, "finished": True}

    def _open(self) -> Iterator[loop.Pulse]:
        settings = self._settings
        experiment = Experiment.model_validate(settings["experiment"])
        run = Storage(settings["run"])
        torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker or 1)))
        schema, data = ray_train.shared(experiment, ray.get(settings["data"]))
        self._tracker = Tracker(run, settings["run_id"])
        before = self._before(run)
        if before is not None:
            self._at = _at(before.state)
        session = TrialSession(
            experiment.training, run, listener=_Ears(self._tracker, settings["search_id"], settings["number"]),
            resume_from=before, device="cuda" if ray.get_gpu_ids() else "cpu",
        )  # fmt: skip
        return loop.epochs(experiment, session, schema, data["train"], data["validation"], data["initial"])

    def _before(self, run: Storage) -> Checkpoint | None:
        """The checkpoint to go on from; another trial's becomes this one's, whose own lineage ends."""
        if self._from is None or self._from[0] == run.uri:
            return Checkpoints(run).latest()
        other = Checkpoints(Storage(self._from[0]))
        try:
            taken: Checkpoint | None = other.load(self._from[1])
        except CorruptError:  # it went on meanwhile and keeps its newest only
            taken = other.latest()
        if taken is not None:
            _change(taken, self._settings["values"])
            run.delete("checkpoints")
            Checkpoints(run).save(taken.state["step"], taken)
        return taken


def _change(checkpoint: Checkpoint, values: Mapping[str, Any]) -> None:
    """Settings that an optimizer keeps with its state; the rate is set at every step anyway."""
    for groups in checkpoint.state["optimizers"].values():
        for group in groups:
            for name in ("weight_decay", "momentum"):
                if f"training.{name}" in values and group.get(name):
                    group[name] = values[f"training.{name}"]


def _at(state: Mapping[str, Any]) -> dict[str, Any]:
    """Where a training is, from its state: the epoch, and the best score so far, higher for better."""
    best = float(state["best_value"])
    return {"score": best if best - best == 0 else None, "epoch": len(state["history"])}
