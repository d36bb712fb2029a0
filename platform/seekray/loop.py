"""Epochs and steps. The loop knows neither who launched it nor which family it trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seekray.checkpoint import Checkpoints
from seekray.models.family import watched
from seekray.session import Point, Session, points
from seekray.system import keep_freed_memory, system_metrics
from seekray.train_state import TrainState

# A step of a small model, or an epoch, is faster than one can look.
SHOWN_EVERY_S, MEASURED_EVERY_S = 0.2, 0.5

if TYPE_CHECKING:
    from seekray.config import Experiment
    from seekray.data.prepared import Dataset
    from seekray.data.schema import Schema


def run(
    experiment: Experiment,
    session: Session,
    schema: Schema,
    train: Dataset,
    validation: Dataset,
    initial: Mapping[str, Tensor] | None = None,
) -> None:
    """Train to the end; the last checkpoint in `session.storage` holds the best weights as `best/`.

    initial: weights that a new run starts from, by `module/key`; the others are fresh.
    Every rank of a run calls it. Raises DivergedError where the loss is not finite.
    """
    for _ in epochs(experiment, session, schema, train, validation, initial):
        pass


def epochs(
    experiment: Experiment,
    session: Session,
    schema: Schema,
    train: Dataset,
    validation: Dataset,
    initial: Mapping[str, Tensor] | None = None,
) -> Iterator[Pulse]:
    """`run`, an epoch at a time, for whoever may want to stop in between: call `end` on the pulse then."""
    keep_freed_memory()
    state = TrainState(experiment, session, schema, train, validation, initial)
    if session.resume_from is not None:
        state.restore(session.resume_from, session)
    session.where = lambda: f"at step {state.step} (learning rate {_rate(state):.3g})"
    pulse = Pulse(experiment, session, state)
    state.set_training(True)
    while not state.finished:
        for batch in state.batches:
            state.rate.apply(state.step)
            session.begin(batch)
            shares = state.family.train_step(state.modules, state.optimizers, batch, session)
            pulse.add(shares, batch.global_rows, batch.last)
            if batch.last:
                state.advance()
                pulse.step()
                if state.finished:
                    break
        metrics = state.validate(session)
        state.judge(metrics)
        pulse.epoch(metrics)
        yield pulse
    pulse.end()


def _rate(state: TrainState) -> float:
    return float(next(iter(state.optimizers.values())).param_groups[0]["lr"])


class Pulse:
    """What a run says of itself: points, progress and checkpoints, at a pace that costs nothing."""

    def __init__(self, experiment: Experiment, session: Session, state: TrainState) -> None:
        self._session, self.state, self._training = session, state, experiment.training
        self._checkpoints = Checkpoints(session.storage, experiment.training.checkpoints.keep)
        self._window: list[dict[str, Tensor]] = []
        self._window_rows = 0
        self._points: list[Point] = []
        self._since = self._reported = self._saved = self._shown = self._epoch_began = time.monotonic()
        self._shares: dict[str, Tensor] = {}
        self._metrics: dict[str, float] = {}
        self._saved_step = -1
        self._measured = -MEASURED_EVERY_S
        self._last: dict[str, float] = {}
        self._told: list[Point] = []
        self._watched, self._said = watched(state.family), set[str]()
        if session.resume_from is None:
            self._save()  # a run that dies at once can be resumed, and a NaN in the first step has a good one
        else:  # points may have died on their way; the tracker knows those it has
            session.report([Point(**p) for p in session.resume_from.state["told"]])

    def add(self, shares: dict[str, Tensor], rows: int, last: bool) -> None:
        """Shares of one part of a step."""
        self._shares = {k: self._shares[k] + v for k, v in shares.items()} if self._shares else shares
        if last:
            self._window.append({k: v * rows for k, v in self._shares.items()})
            self._window_rows += rows
            self._shares = {}

    def step(self) -> None:
        """After each optimizer step."""
        step, training = self.state.step, self._training
        now = time.monotonic()
        if self._session.rank == 0 and now - self._shown > SHOWN_EVERY_S:
            self._show(now)
        if step % training.log_every == 0:
            self._drain()
            if self._session.agree(now - self._reported > 5):
                self._report()
        every = training.checkpoints.every_steps
        if every and step % every == 0 and not self.state.finished:  # the last step's waits for its validation
            self._drain()
            self._save()

    def epoch(self, metrics: dict[str, float]) -> None:
        """After each epoch, with its validation metrics."""
        self._drain()
        state, now = self.state, time.monotonic()
        means = {f"train_{k}": v / max(1, state.sum_rows) for k, v in state.sums.items()}
        self._metrics = means | {f"validation_{k}": v for k, v in metrics.items()}
        entry = {"epoch": len(state.history) + 1, "step": state.step, "lr": _rate(state)} | self._metrics
        state.history.append(entry | {"seconds": now - self._epoch_began})
        self._points += points(self._metrics, state.step)
        state.sums, state.sum_rows, self._epoch_began = {}, 0, now
        if self._session.agree(now - self._reported > 1 or state.finished):
            self._report()
        if self._session.agree(now - self._saved > self._training.checkpoints.min_interval or state.finished):
            self._save()
        if self._session.rank == 0:
            self._watch()
            if state.finished or now - self._shown > SHOWN_EVERY_S:
                self._show(now)

    def _watch(self) -> None:
        """Say in words where the epoch's figures are not as they should be, once in a row."""
        found = self._watched.remarks(self.state.history) if self._watched else []
        for remark in found:
            if remark[:24] not in self._said:
                logging.getLogger(__name__).warning("epoch %d: %s", len(self.state.history), remark)
        self._said = {remark[:24] for remark in found}

    def end(self) -> None:
        """After the last step: nothing is left unsaid or unsaved."""
        if self._points:
            self._report()
        if self._saved_step != self.state.step or self.state.best is None:
            self._save()

    def _drain(self) -> None:
        """Move the window's sums to the epoch's, with a point of their mean."""
        if not self._window:
            return
        keys = list(self._window[0])
        local = torch.stack([torch.stack([w[k].double() for w in self._window]).sum() for k in keys])
        total = dict(zip(keys, self._session.sum(local).tolist(), strict=True))
        state, now = self.state, time.monotonic()
        for key, value in total.items():
            state.sums[key] = state.sums.get(key, 0.0) + value
        state.sum_rows += self._window_rows
        values = {k: v / self._window_rows for k, v in total.items()} | {"lr": _rate(state)}
        if self._session.grad_norm is not None:
            values["grad_norm"] = float(self._session.grad_norm)
        self._last = values | {"rows_per_second": self._window_rows / max(1e-9, now - self._since)}
        if now - self._measured >= MEASURED_EVERY_S:
            values, self._measured = self._last | system_metrics(), now
        self._points += points(values, state.step)
        self._window, self._window_rows, self._since = [], 0, now

    def _report(self) -> None:
        self._session.report(self._points)
        recent = (time.time() - 10) * 1000
        self._told = [p for p in self._told if p.time_ms > recent] + self._points
        self._points, self._reported = [], time.monotonic()

    def _save(self) -> None:
        self._report()  # what the checkpoint is past would not be said again
        checkpoint = self.state.checkpoint(self._session)
        if checkpoint is not None:
            checkpoint.state["told"] = [asdict(p) for p in self._told]
            self._checkpoints.save(self.state.step, checkpoint, self._session if self._session.sharded else None)
            self._sheet()
        self._saved, self._saved_step = time.monotonic(), self.state.step

    def _sheet(self) -> None:
        """What the model makes now, in the run's folder."""
        if self._watched and self.state.history:
            with self.state.as_used(), torch.inference_mode():
                suffix, data = self._watched.sheet(self.state.modules, self.state.schema)
            self._session.storage.write_bytes(f"samples/epoch_{len(self.state.history):04d}{suffix}", data)

    def _show(self, now: float) -> None:
        state = self.state
        shown: dict[str, Any] = {
            "step": state.step, "total_steps": state.total_steps, "epoch": len(state.history),
            "epochs": -(-state.total_steps // max(1, state.batches.steps_per_epoch)),
            "finished": state.finished,
        }  # fmt: skip
        self._session.progress(shown | self._last | self._metrics)
        self._shown = now
