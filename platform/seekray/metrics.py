"""Metrics: pure functions over outputs and targets."""

from __future__ import annotations

from torch import Tensor


def quick_metrics(outputs: Tensor, targets: Tensor, task: str) -> dict[str, float]:
    """The metrics of each epoch, cheap enough for every one.

    outputs: (N, C) logits, or (N, 1) standardised values; targets: (N,) classes, (N, T) labels or (N, 1) values.
    """
    if task == "classification":
        return {"accuracy": float((outputs.argmax(1) == targets).double().mean())}
    if task == "multilabel":
        return {"accuracy": float(((outputs > 0) == (targets > 0.5)).double().mean())}
    residual = (outputs - targets).double()
    total = (targets.double() - targets.double().mean(0)).square().sum()
    return {"r2": float(1 - residual.square().sum() / total.clamp_min(1e-12)), "mae": float(residual.abs().mean())}
