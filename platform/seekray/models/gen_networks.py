"""Generators and discriminators of rows, images and short texts.

A generator turns noise (B, Z) and conditions (B, C) into raw outputs; `settle` makes of them what a discriminator
reads: choices become soft one-hots while training (Gumbel-softmax: Jang et al., arXiv:1611.01144), hard ones after.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from seekray.models.layers import BatchNorm, initialise

if TYPE_CHECKING:
    from collections.abc import Callable

    from seekray.models.gen_config import GenConfig

SLOPE = 0.2
SMALLEST = 4  # pixels of a side where convolutions begin and end


class Counter(nn.Module):
    """How many batches were learned from; stays on the CPU, where steps are decided, and goes into checkpoints."""

    turn: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The run's seed has been set: other seeds get other noise.
        self.register_buffer("turn", torch.randint(2**40, ()))

    def _apply(self, fn: Any, recurse: bool = True) -> Counter:
        return self


class Residual(nn.Module):
    """x + f(x), f a normalised, rectified linear layer; (B, H) -> (B, H)."""

    def __init__(self, size: int, norm: str) -> None:
        super().__init__()
        kinds: dict[str, Callable[[int], nn.Module]] = {
            "none": lambda _: nn.Identity(), "layer": nn.LayerNorm, "batch": BatchNorm,
        }  # fmt: skip
        self.norm = kinds[norm](size)
        self.linear = initialise(nn.Linear(size, size), "relu")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(F.leaky_relu(self.norm(x), SLOPE))
        return x + y


class RowGenerator(nn.Module):
    """Noise and conditions to the numbers of a row: a residual perceptron."""

    def __init__(self, config: GenConfig, conditions: int, outputs: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.first = initialise(nn.Linear(config.latent_size + conditions, size), "relu")
        self.blocks = nn.Sequential(*(Residual(size, config.norm) for _ in range(config.num_layers)))
        self.head = initialise(nn.Linear(size, outputs), None)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        x = self.first(torch.cat([noise, condition], 1))
        made: Tensor = self.head(F.leaky_relu(self.blocks(x), SLOPE))
        return made


class RowDiscriminator(nn.Module):
    """A row (B, W) and conditions to a score (B,)."""

    def __init__(self, config: GenConfig, conditions: int, inputs: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.first = initialise(nn.Linear(inputs + conditions, size), "relu")
        self.blocks = nn.Sequential(*(Residual(size, "none") for _ in range(config.num_layers)))
        self.dropout = nn.Dropout(config.dropout)
        self.head = initialise(nn.Linear(size, 1), None)

    def forward(self, content: Tensor, condition: Tensor) -> Tensor:
        x = self.first(torch.cat([content, condition], 1))
        score: Tensor = self.head(self.dropout(F.leaky_relu(self.blocks(x), SLOPE)))
        return score.squeeze(1)


def sides(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of the feature maps from the picture's down, halved until a side is at most 4."""
    found = [(height, width)]
    while min(found[-1]) > SMALLEST:
        found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
    return found


class ImageGenerator(nn.Module):
    """Noise and conditions to pixels in -1..1, (B, channels * H * W): convolutions between doublings of the size."""

    def __init__(self, config: GenConfig, conditions: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.sides = sides(height, width)[::-1]
        widths = [min(config.hidden_size * 2**i, 512) for i in range(len(self.sides))][::-1]
        low = self.sides[0]
        self.shape = (widths[0], *low)
        self.first = initialise(nn.Linear(config.latent_size + conditions, widths[0] * low[0] * low[1]), "relu")
        pairs = zip(widths, [*widths[1:], widths[-1]], strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        norms = [nn.GroupNorm(1, a) if config.norm != "none" else nn.Identity() for a in widths]
        self.norms = nn.ModuleList(norms)
        self.head = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        x = self.first(torch.cat([noise, condition], 1)).view(-1, *self.shape)
        for i, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            x = convolution(F.leaky_relu(norm(x), SLOPE))
            if i + 1 < len(self.sides):
                x = F.interpolate(x, size=self.sides[i + 1], mode="nearest")
        made: Tensor = torch.tanh(self.head(F.leaky_relu(x, SLOPE)))
        return made.flatten(1)


class ImageDiscriminator(nn.Module):
    """Pixels and conditions to a score (B,); conditions by projection (Miyato and Koyama, arXiv:1802.05637)."""

    def __init__(self, config: GenConfig, conditions: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        steps = sides(height, width)
        widths = [min(config.hidden_size * 2**i, 512) for i in range(len(steps))]
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        flat = widths[-1] * steps[-1][0] * steps[-1][1]
        self.dropout = nn.Dropout(config.dropout)
        self.features = initialise(nn.Linear(flat, 4 * config.hidden_size), "relu")
        self.head = initialise(nn.Linear(4 * config.hidden_size, 1), None)
        self.given = initialise(nn.Linear(conditions, 4 * config.hidden_size, bias=False), None) if conditions else None

    def forward(self, content: Tensor, condition: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(content.view(-1, *self.shape)), SLOPE)
        for convolution in self.down:
            x = F.leaky_relu(convolution(x), SLOPE)
        x = F.leaky_relu(self.features(self.dropout(x.flatten(1))), SLOPE)
        score: Tensor = self.head(x).squeeze(1)
        return score if self.given is None else score + (self.given(condition) * x).sum(1)


class TextGenerator(nn.Module):
    """Noise and conditions to logits of characters (B, L * V): a GRU that reads the noise and where it is."""

    def __init__(self, config: GenConfig, conditions: int, length: int, characters: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.length = length
        self.first = initialise(nn.Linear(config.latent_size + conditions, size), "tanh")
        self.places = nn.Parameter(torch.randn(length, size) * 0.1)
        self.gru = nn.GRU(size, size, num_layers=max(1, config.num_layers), batch_first=True)
        self.head = initialise(nn.Linear(size, characters), None)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        start = torch.tanh(self.first(torch.cat([noise, condition], 1)))  # (B, H)
        if not len(start):
            return start.new_zeros(0, self.length * self.head.out_features) + 0 * sum(p.sum() for p in self.parameters())
        x = start[:, None] + self.places  # (B, L, H)
        hidden = start.expand(self.gru.num_layers, -1, -1).contiguous()
        states, _ = self.gru(x, hidden)
        logits: Tensor = self.head(states)
        return logits.flatten(1)


class TextDiscriminator(nn.Module):
    """Soft characters (B, L * V) and conditions to a score (B,): convolutions over the text."""

    def __init__(self, config: GenConfig, conditions: int, length: int, characters: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.shape = (length, characters)
        self.embedding = initialise(nn.Linear(characters, size), None)
        self.places = nn.Parameter(torch.randn(length, size) * 0.1)
        count = max(1, config.num_layers)
        self.convolutions = nn.ModuleList(nn.Conv1d(size, size, 5, padding=2) for _ in range(count))
        self.features = initialise(nn.Linear(size * length + conditions, size), "relu")
        self.head = initialise(nn.Linear(size, 1), None)

    def forward(self, content: Tensor, condition: Tensor) -> Tensor:
        x = (self.embedding(content.view(-1, *self.shape)) + self.places).transpose(1, 2)  # (B, H, L)
        for convolution in self.convolutions:
            x = x + convolution(F.leaky_relu(x, SLOPE))
        x = self.features(torch.cat([F.leaky_relu(x, SLOPE).flatten(1), condition], 1))
        score: Tensor = self.head(F.leaky_relu(x, SLOPE))
        return score.squeeze(1)


def normalised(module: nn.Module) -> nn.Module:
    """Every linear and convolutional weight divided by its largest singular value (Miyato et al., arXiv:1802.05957)."""
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            spectral_norm(child)
    return module


def settle(raw: Tensor, spans: list[tuple[str, int]], uniforms: Tensor, temperature: float | None) -> Tensor:
    """Raw outputs as content: numbers as they are, choices drawn by Gumbel-softmax, or hard where temperature is None.

    uniforms: (B, W) in (0, 1). Equal neighbouring choices (the characters of a text) are done at once.
    """
    parts, start, i = [], 0, 0
    while i < len(spans):
        kind, size = spans[i]
        count = 1
        while i + count < len(spans) and spans[i + count] == spans[i]:
            count += 1
        stop = start + size * count
        part = raw[:, start:stop]
        if kind == "choice":
            gumbel = -torch.log(-torch.log(uniforms[:, start:stop].to(part)))
            drawn = (part + gumbel).view(-1, count, size)
            if temperature is None:
                part = F.one_hot(drawn.argmax(2), size).to(part.dtype).flatten(1)
            else:
                part = torch.softmax(drawn / temperature, 2).flatten(1)
        parts.append(part)
        start, i = stop, i + count
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
