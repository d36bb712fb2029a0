"""Losses of generative adversarial networks, by row, and the penalty that keeps a critic's slope near 1."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Literal["non_saturating", "least_squares", "hinge", "wasserstein"]
# The critic's scores have no zero of their own: a small pull keeps them from drifting (Karras et al., arXiv:1710.10196).
DRIFT = 1e-3


def discriminator_loss(kind: Loss, real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """(B,) of scores (B,) of real and made rows.

    non_saturating (Goodfellow et al., arXiv:1406.2661), least_squares (Mao et al., arXiv:1611.04076), hinge (Lim and
    Ye, arXiv:1705.02894), wasserstein (Arjovsky et al., arXiv:1701.07875). smoothing: how far below 1 the label of
    a real row is, of the first two.
    """
    if kind == "non_saturating":
        return (1 - smoothing) * F.softplus(-real) + smoothing * F.softplus(real) + F.softplus(fake)
    if kind == "least_squares":
        return 0.5 * ((real - (1 - smoothing)).square() + fake.square())
    if kind == "hinge":
        return F.relu(1 - real) + F.relu(1 + fake)
    return fake - real + DRIFT * real.square()


def generator_loss(kind: Loss, fake: Tensor) -> Tensor:
    """(B,) of scores (B,) of made rows."""
    if kind == "non_saturating":
        return F.softplus(-fake)
    if kind == "least_squares":
        return 0.5 * (fake - 1).square()
    return -fake


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, condition: Tensor, mix: Tensor) -> Tensor:
    """(B,) squared distance of the slope's length from 1, between each real row and its made one (arXiv:1704.00028).

    mix: (B, 1) in (0, 1), where between them.
    """
    shape = (-1, *[1] * (real.ndim - 1))
    between = (fake + mix.view(shape) * (real - fake)).requires_grad_(True)
    score = critic(between, condition)
    (slope,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    length = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (length - 1).square()
