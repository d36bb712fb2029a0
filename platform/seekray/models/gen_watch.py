"""Does a generator still make different things, and things like the real ones? Figures, and the same in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

MOST = 1000  # rows compared with each other


def figures(real: Tensor, made: Tensor, real_scores: Tensor, made_scores: Tensor) -> dict[str, float]:
    """Of as many made rows as real ones, (N, W) each, with their scores (N,).

    energy_distance: 0 where both have one distribution (Szekely and Rizzo, 2013), in the unit of the rows.
    diversity: mean distance between made rows over that between real rows; 1 is as it should be, 0 is collapse.
    nearest: mean distance of a made row to the nearest real one over that of a real row to the nearest other.
    discriminator_accuracy: share of rows that a threshold at the scores' median tells rightly; 0.5 is guessing.
    """
    real, made = real[:MOST].double(), made[:MOST].double()
    between, within, other = torch.cdist(real, made), torch.cdist(real, real), torch.cdist(made, made)
    count = len(real)
    pairs = max(1, count * (count - 1))
    scores = torch.cat([real_scores, made_scores]).double()
    scores = (scores / scores.abs().max().clamp_min(1e-12) * 1e6).round()  # equal rows have equal scores on any worker
    high = scores > scores.median()
    told = torch.cat([high[: len(real_scores)], ~high[len(real_scores) :]]).double().mean()
    apart = within + torch.diag(torch.full((count,), torch.inf, dtype=within.dtype, device=within.device))
    own = float(apart.min(1).values.mean()) if count > 1 else 0.0
    spread = float(within.sum() / pairs)
    return {
        "energy_distance": float((2 * between.mean() - within.sum() / pairs - other.sum() / pairs).clamp_min(0)),
        "diversity": float(other.sum() / pairs) / spread if spread else 1.0,
        "nearest": float(between.min(0).values.mean()) / own if own else 1.0,
        "discriminator_accuracy": float(told),
    }


def remarks(history: Sequence[Mapping[str, float]]) -> list[str]:
    """What the newest epoch's figures mean, where they are not as they should be."""
    found = {
        k.removeprefix("validation_"): v for k, v in (history[-1] if history else {}).items() if k.startswith("validation_")
    }
    out = []
    diversity, nearest, told = (found.get(k) for k in ("diversity", "nearest", "discriminator_accuracy"))
    if diversity is not None and diversity < 0.7:
        out.append(
            f"the generator has collapsed or is about to: what it makes differs {diversity:.0%} as much as real rows do; "
            "use model.loss: wasserstein, more model.discriminator_steps, or a lower model.generator.lr"
        )
    if diversity is not None and diversity > 1.4:
        out.append(f"what the generator makes is spread {diversity:.1f} times as wide as real rows; it needs more steps")
    if nearest is not None and nearest < 0.5:
        out.append(
            f"made rows lie at {nearest:.0%} of the distance that real rows have from each other: they may be copies; "
            "make the networks smaller or train less, and look at the copies in the evaluation"
        )
    if told is not None and told > 0.95 and len(history) > 1:
        out.append(
            f"the discriminator tells {told:.0%} of the rows rightly: the generator learns little from it; "
            "lower model.discriminator.lr or add model.spectral_norm"
        )
    return out
