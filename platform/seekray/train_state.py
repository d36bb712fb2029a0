"""Everything that changes during a run, and how it goes into a checkpoint and back."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from seekray.checkpoint import Checkpoint, load_initial, load_named, load_optimizer, named_tensors, optimizer_state
from seekray.config import Experiment
from seekray.data.prepared import Dataset
from seekray.data.schema import Schema
from seekray.errors import ConfigError
from seekray.metrics import higher_is_better
from seekray.models import get_family
from seekray.models.family import Sharded
from seekray.models.optimizers import LearningRate, update_average
from seekray.session import Session


def objective(experiment: Experiment) -> tuple[str, bool]:
    """The validation metric that picks the best weights, and whether higher is better."""
    asked = experiment.training.metric
    name, higher = get_family(experiment.family).objective(experiment.task)
    return (name, higher) if asked in (None, name) else (str(asked), higher_is_better(str(asked)))


class TrainState:
    """Modules, optimizers, position, best weights and history of one rank."""

    def __init__(
        self,
        experiment: Experiment,
        session: Session,
        schema: Schema,
        train: Dataset,
        validation: Dataset,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        training = self._training = experiment.training
        self.schema = schema
        self.task = experiment.task
        self.family = get_family(experiment.family)
        torch.manual_seed(training.seed)
        # Of a model that is cut, rank 0 has all weights until the others have theirs.
        empty = experiment.resources.shard and session.rank > 0
        with torch.device("meta") if empty else contextlib.nullcontext():
            self.modules = self.family.build(experiment.model, schema)
        if initial and session.resume_from is None:
            load_initial(self.modules, initial)
        for module in self.modules.values():
            module.to(None if experiment.resources.shard else session.device, session.dtype)
            if training.compile:
                module.compile()
        self._sharding = self._shard(session) if experiment.resources.shard else None
        torch.manual_seed(training.seed * 1_000_003 + session.rank)  # ranks drop out different neurons
        self.optimizers = self.family.optimizers(self.modules, training)
        on_gpu = session.device.type == "cuda"
        where: dict[str, Any] = {
            "rank": session.rank, "world_size": session.world_size, "device": session.device, "dtype": session.dtype,
            "pin_memory": on_gpu if training.pin_memory is None else training.pin_memory and on_gpu,
        }  # fmt: skip
        self.batches = self.family.batches(train, training, **where)
        self.validation = self.family.batches(validation, training, evaluate=True, **where) if len(validation) else None
        weights = sum(p.numel() for m in self.modules.values() for p in m.parameters())
        session.use_threads(weights * getattr(self.batches, "positions", 1))
        self.total_steps = training.max_steps or (training.epochs or 20) * self.batches.steps_per_epoch
        self.rate = LearningRate(training.schedule, self.optimizers.values(), self.total_steps)
        self.average = None
        if training.ema is not None:
            self.average = {k: v.detach().clone() for k, v in named_tensors(self.modules).items()}
        self.metric, self.higher_is_better = objective(experiment)
        self.step, self.stale, self.stopped = 0, 0, False
        self.best: dict[str, Tensor] | None = None
        self.best_value, self.best_step = -math.inf, 0
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.sum_rows = 0

    def _shard(self, session: Session) -> Any:
        """Cut the modules over the ranks; the module that knows how."""
        from seekray import sharding

        parts = cast("Sharded", self.family).shards(self.modules)  # a rule of the experiment
        sharding.shard(self.modules, parts, session.device)
        session.sharded = True
        return sharding

    @property
    def finished(self) -> bool:
        """True when no step is left to do."""
        return self.stopped or self.step >= self.total_steps

    def advance(self) -> None:
        """One optimizer step is done."""
        if self.average is not None and self._training.ema is not None:
            update_average(self.average, self.modules, self._training.ema, self.step)
        self.step += 1

    def weights(self) -> dict[str, Tensor]:
        """The weights that would be used now: the average where there is one."""
        return self.average if self.average is not None else named_tensors(self.modules)

    @torch.no_grad()
    def validate(self, session: Session) -> dict[str, float]:
        """Metrics over the validation rows of all ranks, each row counted once; {} without such rows."""
        if self.validation is None:
            return {}
        with self.as_used():
            parts: dict[str, list[Tensor]] = {}
            for batch in self.validation:
                for key, value in self.family.eval_step(self.modules, batch).items():
                    parts.setdefault(key, []).append(value)
            rows = {key: session.gather(torch.cat(values)) for key, values in parts.items()}
        return self.family.metrics(rows, self.task)

    @contextlib.contextmanager
    def as_used(self) -> Iterator[None]:
        """The modules in evaluation, with the average of the weights where there is one."""
        own = {k: v.clone() for k, v in named_tensors(self.modules).items()} if self.average is not None else None
        if self.average is not None:
            load_named(self.modules, self.average)
        self.set_training(False)
        yield
        self.set_training(True)
        if self._sharding is not None:
            self._sharding.let_go(self.modules)
        if own is not None:
            load_named(self.modules, own)

    def set_training(self, on: bool) -> None:
        """train() or eval() of all modules."""
        for module in self.modules.values():
            module.train(on)

    def judge(self, metrics: Mapping[str, float]) -> None:
        """Keep the best weights and count epochs without an improvement."""
        if metrics and self.metric not in metrics:
            raise ConfigError(
                f"training.metric: {self.metric!r} given, validation has {', '.join(metrics)}", field="training.metric"
            )
        value = metrics.get(self.metric, math.nan) * (1 if self.higher_is_better else -1)
        stopping = self._training.early_stopping
        self.stale += 1
        if not metrics or value > self.best_value + (stopping.min_delta if stopping else 0.0):
            self.best = {k: v.detach().clone() for k, v in self.weights().items()}
            self.best_value, self.best_step, self.stale = value, self.step, 0
        self.stopped = stopping is not None and bool(metrics) and self.stale >= stopping.patience
        if metrics:
            self.rate.validated(-value)

    def checkpoint(self, session: Session) -> Checkpoint | None:
        """All ranks call it; rank 0 gets the checkpoint, or of a sharded run each rank its part."""
        rng = {"cpu": session.gather(torch.get_rng_state()[None].to(session.device)).cpu()}
        if session.device.type == "cuda":
            rng["cuda"] = session.gather(torch.cuda.get_rng_state()[None].to(session.device)).cpu()
        if session.rank != 0 and self._sharding is None:
            return None
        tensors = {f"weights/{k}": v for k, v in named_tensors(self.modules).items()}
        tensors |= {f"rng/{k}": v for k, v in rng.items()}
        tensors |= {f"average/{k}": v for k, v in (self.average or {}).items()}
        tensors |= {f"best/{k}": v for k, v in (self.best or {}).items()}
        groups = {}
        for name, optimizer in self.optimizers.items():
            groups[name], state = optimizer_state(optimizer)
            tensors |= {f"optimizer/{name}/{k}": v for k, v in state.items()}
        state_json = {
            "step": self.step, "stale": self.stale, "stopped": self.stopped, "finished": self.finished,
            "best_value": self.best_value, "best_step": self.best_step, "history": self.history,
            "sums": self.sums, "sum_rows": self.sum_rows, "batches": self.batches.state_dict(),
            "rate": self.rate.state_dict(), "optimizers": groups, "world_size": session.world_size,
        }  # fmt: skip
        if self._sharding is not None:
            return Checkpoint(state_json, *self._sharding.own_rows(tensors, session.rank))
        return Checkpoint(state_json, tensors)

    def _placed(self, tensors: Mapping[str, Tensor], session: Session) -> dict[str, Tensor]:
        """A checkpoint's weights on the device, cut as the modules' are."""
        if self._sharding is None:
            return {k: v.to(session.device) for k, v in tensors.items()}
        own = named_tensors(self.modules)
        return {k: self._sharding.placed(v, own[k]) for k, v in tensors.items()}

    def restore(self, checkpoint: Checkpoint, session: Session) -> None:
        """Go on exactly from a checkpoint; with another number of workers, equal in distribution."""
        state = checkpoint.state
        load_named(self.modules, self._placed(checkpoint.group("weights"), session))
        for name, optimizer in self.optimizers.items():
            tensors = checkpoint.group(f"optimizer/{name}")
            if self._sharding is not None:
                tensors = self._sharding.placed_state(optimizer, tensors)
            load_optimizer(optimizer, state["optimizers"][name], tensors)
        if self.average is not None:
            self.average = self._placed(checkpoint.group("average"), session)
        self.best = self._placed(checkpoint.group("best"), session) or None
        for key in ("step", "stale", "stopped", "best_value", "best_step", "history", "sums", "sum_rows"):
            setattr(self, key, state[key])
        self.batches.load_state_dict(state["batches"])
        self.rate.load_state_dict(state["rate"])
        rng = checkpoint.group("rng")
        if state["world_size"] == session.world_size:
            torch.set_rng_state(rng["cpu"][session.rank].clone())  # torch 2.13 crashes on a view
            if session.device.type == "cuda" and "cuda" in rng:
                torch.cuda.set_rng_state(rng["cuda"][session.rank].clone())
        elif session.rank == 0:
            logging.getLogger(__name__).warning(
                "going on with %d workers instead of %d: the result is equal in distribution, not bit by bit",
                session.world_size, state["world_size"],
            )  # fmt: skip
