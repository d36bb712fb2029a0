"""Low-rank adapters of linear layers (LoRA, arXiv:2106.09685): W + (alpha / rank) B A with W frozen."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from seekray.models.family import ModelConfig
from seekray.models.products import linear

A, B = "lora_a", "lora_b"


class LoraConfig(ModelConfig):
    """Which layers get an adapter, and how large."""

    rank: int = Field(8, ge=1, description="of the product that is added to a matrix")
    alpha: float = Field(16.0, gt=0, description="the product is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what goes into an adapter")
    targets: tuple[str, ...] = Field(("qkv", "out", "up", "down"), min_length=1, description="names of linear layers")
    merge: bool = Field(True, description="add the adapters to the weights in the bundle; false keeps them apart in it")


class LoraLinear(nn.Linear):
    """A linear layer and its adapter: `lora_a` (rank, in), `lora_b` (out, rank), zero at first."""

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.scale, self.dropout = config.alpha / config.rank, nn.Dropout(config.dropout)
        self.lora_a = nn.Parameter(torch.empty(config.rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        adapted = linear(linear(self.dropout(x), self.lora_a), self.lora_b)
        return linear(x, self.weight, self.bias) + adapted * self.scale


def add_adapters(module: nn.Module, config: LoraConfig) -> nn.Module:
    """Put an adapter beside each linear layer that `targets` names; all else is frozen. Raises ValueError for no such layer."""
    module.requires_grad_(False)
    found = {
        name: layer for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in config.targets
    }  # fmt: skip
    for name, layer in found.items():
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, LoraLinear(layer, config))
    missing = set(config.targets) - {name.rpartition(".")[2] for name in found}
    if missing:
        raise ValueError(f"model.lora.targets: there is no linear layer {', '.join(sorted(missing))}")
    return module


def without_adapters(module: nn.Module) -> nn.Module:
    """The module itself where it has no adapters, else a copy with them added to its weights, made once; not for training."""
    if not any(isinstance(layer, LoraLinear) for layer in module.modules()):
        return module
    kept: nn.Module | None = module.__dict__.get("_merged")
    if kept is None:
        kept = copy.deepcopy(module)
        for name, layer in list(kept.named_modules()):
            if isinstance(layer, LoraLinear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                plain.weight, plain.bias = layer.weight, layer.bias
                plain.weight.data = layer.weight + layer.lora_b @ layer.lora_a * layer.scale
                parent, _, own = name.rpartition(".")
                setattr(kept.get_submodule(parent), own, plain)
        module.__dict__["_merged"] = kept
    return kept


def merged(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Weights with the adapters added, under the names of a network without any."""
    out = {name: value for name, value in tensors.items() if not name.endswith((A, B))}
    for name, a in tensors.items():
        if name.endswith(A):
            start = name.removesuffix(A)
            weight = out[f"{start}weight"]
            delta = tensors[f"{start}{B}"].double() @ a.double() * (config.alpha / config.rank)
            out[f"{start}weight"] = (weight.double() + delta).to(weight.dtype)
    return out
