"""Trials in an actor that stays: the loop itself, up to the next epoch at which trials are compared."""

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
from seekray.progress import Progress
from seekray.session import Point, Session
from seekray.storage import Storage
from seekray.tracking.spool import Tracker
from seekray.tuner.objectives import measured


class TrialSession(Session):
    """A session in a trial's actor."""

    def use_threads(self, work: int) -> None:
        """As many as the trial has CPUs, as a worker of Ray Train has; set before the session."""


class _Ears:
    """What a trial says: points to its own spool, its position to whoever draws the table. The first repetition is heard."""

    def __init__(self, settings: Mapping[str, Any], number: int) -> None:
        self._number = settings["number"]
        self._mailbox = Mailbox(f"{settings['search_id']}/{self._number}")
        run = Storage(settings["run"])
        start = settings["start"] | {"params": settings["parts"][0]["experiment"]}
        self._tracker = Tracker(run, settings["run_id"], start) if number == 0 else None

    def points(self, new: Sequence[Point]) -> None:
        if self._tracker is not None:
            self._tracker.points(new)

    def progress(self, state: Mapping[str, Any]) -> None:
        if self._tracker is not None:
            self._mailbox.show({"number": self._number, **state})

    def flush(self) -> None:
        """Wait until all is in the spool."""
        if self._tracker is not None:
            self._tracker.flush()


def part_of(run: Storage, number: int) -> Storage:
    """The folder of a trial's repetition; the first is the trial's own, and the model that a search keeps."""
    return run if number == 0 else run.child(f"repeat-{number}")


class _Part:
    """One training: the trial, or one of its repetitions."""

    def __init__(self, settings: Mapping[str, Any], number: int, before: Checkpoint | None) -> None:
        told = settings["parts"][number]
        self.experiment = Experiment.model_validate(told["experiment"])
        self.run = part_of(Storage(settings["run"]), number)
        if number > 0 or self.experiment.resources.span[1] > 1:  # else the search writes it, and nobody here waits for it
            self.run.write_json("experiment.json", told["experiment"])
        self._run_id = settings["run_id"] if number == 0 else f"{settings['run_id']}-r{number}"
        self._data, self.ears = told["data"], _Ears(settings, number)
        self._before = before or Checkpoints(self.run).latest()
        nowhere: dict[str, Any] = {"score": None, "epoch": 0, "finished": False}
        self.at = _at(self._before.state) if self._before else nowhere
        self._pulses: Iterator[loop.Pulse] | None = None

    def measured(self, names: Sequence[str], row: Mapping[str, Any] | None) -> dict[str, float]:
        """What the search looks at beside the score, of the best weights so far."""
        if not names:
            return {}
        schema, _ = ray_train.shared(self.experiment, ray.get(self._data))
        checkpoint = Checkpoints(self.run).latest()
        assert checkpoint is not None
        return measured(names, self.experiment, schema, checkpoint, row)

    def to(self, epoch: int | None) -> None:
        """Train to the end of an epoch, or of all, and leave a checkpoint."""
        if self.at["finished"]:
            return
        if self.experiment.resources.span[1] > 1:
            self._over_ray_train(epoch)
        else:
            self._here(epoch)
        self.ears.flush()

    def _here(self, epoch: int | None) -> None:
        self._pulses = self._pulses or self._open()
        for pulse in self._pulses:
            self.at = _at({**vars(pulse.state), "finished": pulse.state.finished})
            if not pulse.state.finished and epoch is not None and self.at["epoch"] >= epoch:
                pulse.end()
                return

    def _open(self) -> Iterator[loop.Pulse]:
        experiment = self.experiment
        torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker or 1)))
        schema, data = ray_train.shared(experiment, ray.get(self._data))
        session = TrialSession(
            experiment.training, self.run, listener=self.ears, resume_from=self._before,
            device="cuda" if ray.get_gpu_ids() else "cpu",
        )  # fmt: skip
        return loop.epochs(experiment, session, schema, data["train"], data["validation"], data["initial"])

    def _over_ray_train(self, epoch: int | None) -> None:
        """Several workers are a Ray Train of their own, from here to the epoch; the next one goes on from its checkpoint."""
        ray_train.fit(self.experiment, self._run_id, self.run, self._data, self.ears, Progress(quiet=True), until=epoch)
        found = Checkpoints(self.run).latest()
        assert found is not None
        self.at = _at(found.state)


class LoopTrial(Trainable):  # type: ignore[misc]
    """Tune's view of a trial: `step` trains to the next rung and answers `{score, epoch, done}`.

    A step leaves a checkpoint before it answers, so that whatever Tune decides then (stop, pause, go on elsewhere), nothing
    that it was told of is lost. What fails is answered too, not raised: the actor stays, and no other try would help. The
    score of a trial with repetitions is their mean; they go from rung to rung together.
    settings: number, search_id, run_id, run (URI), start (the run's first event, without params), values, rungs (epochs),
    parts ({experiment, data} of each repetition, the data as `ray_train.share` gives it), others (metrics beside the score),
    row (a row as a request has it, for a latency).
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def _setup_logdir(self) -> None:
        """A trial's files are in its run's storage; the working folder stays the driver's."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial."""
        self._settings, self._parts = new_config, list[_Part]()
        self._from: Mapping[str, Any] | None = None
        return True

    def turn(self, settings: dict[str, Any], method: str, *given: Any) -> Any:
        """To the next trial, and its first step (`train`) or `restore`."""
        self.reset(settings)
        return getattr(self, method)(*given)

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Where the last step left its checkpoints. Tune's own way would copy and pickle them."""
        run = self._parts[0].run
        steps = [Checkpoints(part.run).steps()[-1] for part in self._parts]
        where = TuneCheckpoint(run.path(f"checkpoints/step_{steps[0]:08d}"), run.filesystem)
        return _TrainingResult(checkpoint=where, metrics={**(self._last_result or {}), "run": run.uri, "steps": steps})

    def restore(self, checkpoint_path: _TrainingResult) -> None:
        """Go on from what `save` told, here or of another trial."""
        self._parts, self._from = [], checkpoint_path.metrics

    def step(self) -> dict[str, Any]:
        try:
            return self._train()
        except Exception as error:
            message = error.message if isinstance(error, SeekrayError) else f"{type(error).__name__}: {error}"
            epoch = max((part.at["epoch"] for part in self._parts), default=0)
            return {"epoch": epoch, "done": True, "finished": False, "failed": message}

    def _train(self) -> dict[str, Any]:
        if not self._parts:
            numbers = range(len(self._settings["parts"]))
            self._parts = [_Part(self._settings, number, self._taken(number)) for number in numbers]
        reached = min(part.at["epoch"] for part in self._parts)
        rung = next((epoch for epoch in self._settings["rungs"] if epoch > reached), None)
        for part in self._parts:
            part.to(rung)
        scores, finished = [part.at["score"] for part in self._parts], all(part.at["finished"] for part in self._parts)
        if None in scores:
            raise SeekrayError("the metric was never a number on the validation rows")
        found = [part.measured(self._settings["others"], self._settings["row"]) for part in self._parts]
        others = {name: sum(one[name] for one in found) / len(found) for name in self._settings["others"]}
        epoch = max(part.at["epoch"] for part in self._parts)
        return {
            "score": sum(scores) / len(scores), "others": others, "epoch": epoch, "done": finished, "finished": finished,
        }  # fmt: skip

    def _taken(self, number: int) -> Checkpoint | None:
        """Another trial's checkpoint that becomes this one's, whose own lineage ends; None to go on with one's own."""
        run = Storage(self._settings["run"])
        if self._from is None or self._from["run"] == run.uri:
            return None
        other = Checkpoints(part_of(Storage(self._from["run"]), number))
        try:
            taken: Checkpoint | None = other.load(self._from["steps"][number])
        except CorruptError:  # it went on meanwhile and keeps its newest only
            taken = other.latest()
        if taken is not None:
            _change(taken, self._settings["values"])
            part_of(run, number).delete("checkpoints")
            Checkpoints(part_of(run, number)).save(taken.state["step"], taken)
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
    return {"score": best if best - best == 0 else None, "epoch": len(state["history"]), "finished": state["finished"]}
