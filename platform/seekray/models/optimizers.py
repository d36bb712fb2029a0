"""Optimizers and learning-rate schedules, shared by the families."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from seekray.models.eager import without_compiler

if TYPE_CHECKING:
    from seekray.config import Schedule, Training


def make_optimizer(module: nn.Module, training: Training, betas: tuple[float, float] = (0.9, 0.999)) -> Optimizer:
    """The experiment's optimizer over a module; biases and norms are not decayed. betas: of adam and adamw."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    free = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if not training.weight_decay:  # a group more is a call more in every step
        groups = [{"params": decayed + free, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    fused = training.fused if training.fused is not None else all(p.is_cuda or p.device.type == "cpu" for p in parameters)
    if training.optimizer == "sgd":
        if training.fused is None and hasattr(parameters[0], "to_local"):
            fused = False  # cut over ranks: torch has fused adam alone for those
        sgd: Optimizer = without_compiler(SGD)(groups, lr=training.lr, momentum=training.momentum, fused=fused)
        return sgd
    kind = AdamW if training.optimizer == "adamw" else Adam
    adam: Optimizer = without_compiler(kind)(groups, lr=training.lr, betas=betas, fused=fused)
    return adam


class LearningRate:
    """Sets the rate of all optimizers as a function of the step (and, for plateau, of the metric).

    Cosine follows SGDR (arXiv:1608.03983) without restarts; one-cycle rises to `lr` over the first
    30 % of the steps and falls to 1/10,000 of it (arXiv:1708.07120).
    """

    def __init__(self, schedule: Schedule, optimizers: Iterable[Optimizer], total_steps: int) -> None:
        self._schedule, self._total = schedule, max(1, total_steps)
        # A group is looked up each time: loading an optimizer's state replaces its groups.
        self._peaks = [(optimizer, [group["lr"] for group in optimizer.param_groups]) for optimizer in optimizers]
        warmup = schedule.warmup
        self._warmup = round(warmup * self._total) if warmup < 1 else int(warmup)
        self._plateau, self._stale, self._best = 1.0, 0, math.inf

    def factor(self, step: int) -> float:
        """The rate of step 0, 1, … as a fraction of `lr`."""
        ramp = min(1.0, (step + 1) / self._warmup) if self._warmup else 1.0
        done = min(1.0, max(0, step - self._warmup) / max(1, self._total - self._warmup))
        kind, final = self._schedule.kind, self._schedule.final
        if kind == "cosine":
            return ramp * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
        if kind == "one-cycle":
            up = 0.3
            if done < up:
                return ramp * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / up)))
            return ramp * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * (done - up) / (1 - up))))
        return ramp * self._plateau

    def apply(self, step: int) -> float:
        """Set the rate for a step; returns the factor."""
        factor = self.factor(step)
        for optimizer, peaks in self._peaks:
            for group, lr in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = lr * factor
        return factor

    def validated(self, loss: float) -> None:
        """Tell plateau the newest validation value, lower being better."""
        if self._schedule.kind != "plateau":
            return
        if loss < self._best:
            self._best, self._stale = loss, 0
            return
        self._stale += 1
        if self._stale > self._schedule.patience:
            self._plateau, self._stale = self._plateau * self._schedule.factor, 0

    def state_dict(self) -> dict[str, float]:
        """What plateau has learned."""
        return {"plateau": self._plateau, "stale": self._stale, "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._plateau, self._stale, self._best = state["plateau"], state["stale"], state["best"]


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], modules: Mapping[str, nn.Module], decay: float, step: int) -> None:
    """Exponential moving average of the parameters, in place; the decay grows with the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            mean = average[f"{name}/{key}"]
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
