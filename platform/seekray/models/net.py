"""DeepSeek-Net: the feed-forward multi-layer perceptron, for classification and regression."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seekray.data.options import Data
from seekray.data.prepared import Prepared
from seekray.data.tables.features import FeatureSchema
from seekray.errors import ConfigError
from seekray.models.family import ModelConfig, Modules
from seekray.models.layers import ACTIVATIONS, Activation, BatchNorm, initialise
from seekray.models.stem import Stem
from seekray.models.supervised import LOSSES, Supervised, class_weights, row_loss

if TYPE_CHECKING:
    from seekray.config import Training


class NetConfig(ModelConfig):
    """DeepSeek-Net's shape and loss."""

    hidden_size: int | tuple[int, ...] = Field((128, 128), description="neurons of each hidden layer; () is a linear model")
    num_layers: int | None = Field(None, ge=0, description="with a single hidden_size: how many layers of it (default 1)")
    activation: Activation = Field("relu", description="the source's network uses sigmoid")
    norm: Literal["none", "batch", "layer"] = Field("none", description="between a layer's sum and its activation")
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")
    input_dropout: float = Field(0.0, ge=0, lt=1, description="on the features")
    residual: bool = Field(False, description="add a layer's input to its output where both have the same size")
    stem: Literal["none", "conv"] = Field(
        "none", description="conv: images (and sounds as frames) go through a small convolutional network first"
    )
    stem_channels: tuple[int, ...] = Field(
        (32, 64), min_length=1, description="of its layers, each a 3x3 convolution and a maximum of 2x2"
    )
    stem_shift: int = Field(0, ge=0, description="move each picture by up to so many pixels in training")
    embedding_size: int | None = Field(None, ge=1, description="of a categorical; null: by its number of categories")
    loss: Literal["auto", "cross_entropy", "bce", "mse", "huber", "mae"] = "auto"
    huber_delta: float = Field(1.0, gt=0, description="huber: in standard deviations of the target")
    class_weights: Literal["balanced"] | tuple[float, ...] | None = Field(
        None, description="weights of the classes in the loss, in their order; balanced: inverse frequency"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="classification and multilabel")

    @model_validator(mode="after")
    def _rules(self) -> NetConfig:
        sizes = self.layers
        if any(size < 1 for size in sizes):
            raise ValueError(f"model.hidden_size: {self.hidden_size} given, expected sizes of 1 or more")
        if any(size < 1 for size in self.stem_channels):
            raise ValueError(f"model.stem_channels: {self.stem_channels} given, expected sizes of 1 or more")
        if self.stem == "none" and self.stem_shift:
            raise ValueError("model.stem_shift goes with model.stem: conv")
        if self.num_layers is not None and not isinstance(self.hidden_size, int):
            raise ValueError("model.num_layers goes with a single model.hidden_size, not with a list")
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """Neurons of each hidden layer."""
        if isinstance(self.hidden_size, int):
            return (self.hidden_size,) * (1 if self.num_layers is None else self.num_layers)
        return self.hidden_size


class Layer(nn.Module):
    """Linear, norm, activation, dropout; (B, in) -> (B, out)."""

    def __init__(self, inputs: int, outputs: int, config: NetConfig) -> None:
        super().__init__()
        self.linear = initialise(nn.Linear(inputs, outputs), config.activation)
        norms = {"none": nn.Identity, "batch": BatchNorm, "layer": nn.LayerNorm}
        self.norm = norms[config.norm](outputs)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        self.residual = config.residual and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.activation(self.norm(self.linear(x))))
        return x + y if self.residual else y


class Perceptron(nn.Module):
    """{"dense": (B, D), "categorical": (B, K)} -> (B, C) outputs; knows its own loss."""

    def __init__(self, config: NetConfig, schema: FeatureSchema) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList()
        for cardinality in schema.cardinalities:
            size = config.embedding_size or min(32, round(1.6 * cardinality**0.56))
            embedding = nn.Embedding(cardinality, size)
            nn.init.normal_(embedding.weight, std=size**-0.5)
            self.embeddings.append(embedding)
        self.stem = Stem(config, schema) if config.stem == "conv" else None
        width = self.stem.width if self.stem else schema.dense_size
        width += sum(e.embedding_dim for e in self.embeddings)  # type: ignore[misc]
        self.input_dropout = nn.Dropout(config.input_dropout)
        sizes = [width, *config.layers]
        self.layers = nn.Sequential(*(Layer(a, b, config) for a, b in pairwise(sizes)))
        self.head = initialise(nn.Linear(sizes[-1], schema.num_outputs), None)
        self.task, self.config = schema.task, config
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights(config.class_weights, schema), persistent=False)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        parts = [inputs["dense"] if self.stem is None else self.stem(inputs["dense"])]
        parts += [e(inputs["categorical"][:, i]) for i, e in enumerate(self.embeddings)]
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        outputs: Tensor = self.head(self.layers(self.input_dropout(x)))
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (B,)."""
        config = self.config
        return row_loss(
            self.task, outputs, targets, loss=config.loss, huber_delta=config.huber_delta,
            label_smoothing=config.label_smoothing, class_weights=self.class_weights,
        )  # fmt: skip


class Net(Supervised):
    """The family `net`."""

    Config: ClassVar[type[ModelConfig]] = NetConfig
    prepares_by = ("stem",)

    def check(self, config: NetConfig, task: str, data: Data, training: Training) -> None:
        super().check(config, task, data, training)
        if config.loss != "auto" and config.loss not in LOSSES[task]:
            raise ValueError(f"model.loss: {config.loss} given, {task} has {', '.join(LOSSES[task])}")
        if task == "regression" and (config.class_weights or config.label_smoothing):
            raise ValueError("model.class_weights and model.label_smoothing are for classes, not for regression")

    def prepare(self, data: Data, task: str, config: NetConfig) -> Prepared:
        prepared = super().prepare(data, task, config)
        schema = prepared.schema
        if config.stem == "conv" and isinstance(schema, FeatureSchema) and not schema.pictures:
            kinds = ", ".join(sorted({f.kind for f in schema.features}))
            raise ConfigError(f"model.stem: conv is for images; the features are {kinds}", field="model.stem")
        return prepared

    def build(self, config: NetConfig, schema: FeatureSchema) -> Modules:
        return {"net": Perceptron(config, schema)}
