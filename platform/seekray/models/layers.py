"""Layers that several families use."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

Weighted = TypeVar("Weighted", nn.Linear, nn.Conv2d)
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip


def initialise(linear: Weighted, activation: str | None) -> Weighted:
    """Weights suited to what follows: He for the rectifiers (arXiv:1502.01852), Glorot for the others."""
    if activation in ("relu", "gelu", "silu"):
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(linear.weight, gain=5 / 3 if activation == "tanh" else 1.0)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation (arXiv:1502.03167) whose statistics are those of the global batch.

    torch's SyncBatchNorm runs on GPUs only and wants equal shares; this one sums over ranks with
    any backend, a rank's share may be empty, and gradients flow through the sums.
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, C) -> (B, C)
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x) if x.shape[0] != 1 or not self.training else self._with(x, x.new_zeros(()))
        return self._with(x, None)

    def _with(self, x: Tensor, alone: Tensor | None) -> Tensor:
        count = x.new_tensor([float(x.shape[0])])
        sums = torch.cat([count, x.sum(0), x.square().sum(0)])
        if alone is None:
            sums = all_reduce(sums)  # type: ignore[no-untyped-call]
        n, size = sums[0].detach(), x.shape[1]
        mean = sums[1 : size + 1] / n
        var = (sums[size + 1 :] / n - mean.square()).clamp_min(0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                momentum = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * n / (n - 1).clamp_min(1), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias
