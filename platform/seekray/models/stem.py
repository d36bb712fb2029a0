"""A small convolutional stem: pictures among a row's numbers become features that know of neighbourhoods."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seekray.models.layers import ACTIVATIONS, BatchNorm, initialise

if TYPE_CHECKING:
    from seekray.data.tables.features import FeatureSchema
    from seekray.models.net import NetConfig


class PictureBatchNorm(BatchNorm):
    """Batch normalisation of each channel over rows and places; (B, C, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        y: Tensor = super().forward(flat)
        return y.view(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)


class StemLayer(nn.Module):
    """3x3 convolution, norm, activation, maximum of 2x2; (B, in, H, W) -> (B, out, H/2, W/2), halves rounded up."""

    def __init__(self, inputs: int, outputs: int, config: NetConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        initialise(self.conv, config.activation)
        norms: dict[str, Callable[[int], nn.Module]] = {
            "none": nn.Identity, "batch": PictureBatchNorm, "layer": lambda size: nn.GroupNorm(1, size),
        }  # fmt: skip
        self.norm = norms[config.norm](outputs)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.norm(self.conv(x)))
        return F.max_pool2d(y, 2, ceil_mode=True)


class Stem(nn.Module):
    """{"dense": (B, D)} -> (B, width): each picture through layers of its own, all else as it is.

    In training each picture is first moved by up to `stem_shift` pixels each way, the sides filled with its edge.
    """

    def __init__(self, config: NetConfig, schema: FeatureSchema) -> None:
        super().__init__()
        self._pictures = schema.pictures
        self._shift = config.stem_shift
        self.layers = nn.ModuleList()
        self.width = schema.dense_size
        for _, (height, width, channels) in self._pictures:
            sizes = (channels, *config.stem_channels)
            self.layers.append(nn.Sequential(*(StemLayer(a, b, config) for a, b in pairwise(sizes))))
            self.width -= height * width * channels
            for _ in config.stem_channels:
                height, width = -(-height // 2), -(-width // 2)
            self.width += height * width * config.stem_channels[-1]

    def forward(self, dense: Tensor) -> Tensor:
        parts, start = [], 0
        for (first, (height, width, channels)), layers in zip(self._pictures, self.layers, strict=True):
            parts.append(dense[:, start:first])
            start = first + height * width * channels
            picture = dense[:, first:start].view(-1, height, width, channels).permute(0, 3, 1, 2)
            if self.training and self._shift:
                picture = _moved(picture, self._shift)
            parts.append(layers(picture).flatten(1))
        return torch.cat([*parts, dense[:, start:]], dim=1)


def _moved(pictures: Tensor, most: int) -> Tensor:
    """Each of (B, C, H, W) moved by up to `most` places along both sides."""
    size, _, height, width = pictures.shape
    by = torch.randint(0, 2 * most + 1, (2, size, 1), device=pictures.device)
    rows = by[0] + torch.arange(height, device=pictures.device)  # (B, H)
    columns = by[1] + torch.arange(width, device=pictures.device)  # (B, W)
    padded = F.pad(pictures, (most,) * 4, mode="replicate")
    number = torch.arange(size, device=pictures.device)[:, None, None]
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
