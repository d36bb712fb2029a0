"""DeepSeek-Net: the feed-forward multi-layer perceptron, for classification and regression."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from seekray.data.batches import Batch, TableBatches, table_batches
from seekray.data.features import FeatureSchema
from seekray.data.options import Data
from seekray.data.prepare import Arrays, Prepared, prepare
from seekray.errors import ConfigError
from seekray.metrics import quick_metrics
from seekray.models.family import ModelConfig, Modules, StepSession
from seekray.models.layers import ACTIVATIONS, Activation, BatchNorm, initialise
from seekray.models.optimizers import make_optimizer

if TYPE_CHECKING:
    from seekray.config import Training

LOSSES = {
    "classification": ("cross_entropy",),
    "multilabel": ("bce",),
    "regression": ("mse", "huber", "mae"),
}


class NetConfig(ModelConfig):
    """DeepSeek-Net's shape and loss."""

    hidden_size: int | tuple[int, ...] = Field((128, 128), description="neurons of each hidden layer; () is a linear model")
    num_layers: int | None = Field(None, ge=0, description="with a single hidden_size: how many layers of it (default 1)")
    activation: Activation = Field("relu", description="the source's network uses sigmoid")
    norm: Literal["none", "batch", "layer"] = Field("none", description="between a layer's sum and its activation")
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")
    input_dropout: float = Field(0.0, ge=0, lt=1, description="on the features")
    residual: bool = Field(False, description="add a layer's input to its output where both have the same size")
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
        width = schema.dense_size + sum(e.embedding_dim for e in self.embeddings)  # type: ignore[misc]
        self.input_dropout = nn.Dropout(config.input_dropout)
        sizes = [width, *config.layers]
        self.layers = nn.Sequential(*(Layer(a, b, config) for a, b in pairwise(sizes)))
        self.head = initialise(nn.Linear(sizes[-1], schema.num_outputs), None)
        self.task, self.config = schema.task, config
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _class_weights(config, schema), persistent=False)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        parts = [inputs["dense"]]
        parts += [e(inputs["categorical"][:, i]) for i, e in enumerate(self.embeddings)]
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        outputs: Tensor = self.head(self.layers(self.input_dropout(x)))
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (B,)."""
        config, smoothing = self.config, self.config.label_smoothing
        if self.task == "classification":
            loss = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)
            weights = self.class_weights
            return loss if weights is None else loss * weights[targets]
        if self.task == "multilabel":
            smoothed = targets * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(
                outputs,
                smoothed,
                pos_weight=self.class_weights,
                reduction="none",
            ).mean(1)
        if config.loss == "huber":
            return F.huber_loss(outputs, targets, reduction="none", delta=config.huber_delta).mean(1)
        if config.loss == "mae":
            return F.l1_loss(outputs, targets, reduction="none").mean(1)
        return F.mse_loss(outputs, targets, reduction="none").mean(1)


def _class_weights(config: NetConfig, schema: FeatureSchema) -> Tensor | None:
    """Weights whose mean over the training rows is 1, so that the loss keeps its scale."""
    if config.class_weights is None:
        return None
    counts = torch.tensor([float(c) for c in schema.class_counts or ()])
    if config.class_weights == "balanced":
        if schema.task == "multilabel":
            return (schema.rows - counts) / counts.clamp_min(1)
        return counts.sum() / (len(counts) * counts.clamp_min(1))
    weights = torch.tensor(config.class_weights)
    if len(weights) != schema.num_outputs:
        raise ConfigError(
            f"model.class_weights: {len(weights)} given, the data has {schema.num_outputs} classes", field="model.class_weights"
        )
    return weights * counts.sum() / (weights * counts).sum() if schema.task == "classification" else weights


class Net:
    """The family `net`."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multilabel")
    Config: ClassVar[type[ModelConfig]] = NetConfig

    def check(self, config: NetConfig, task: str, data: Data, training: Training) -> None:
        if not data.targets:
            raise ValueError(f"data.target is missing; {task} needs the column to predict")
        if task != "multilabel" and len(data.targets) > 1:
            raise ValueError(f"data.target: {len(data.targets)} columns given; only multilabel has more than one")
        if config.loss != "auto" and config.loss not in LOSSES[task]:
            raise ValueError(f"model.loss: {config.loss} given, {task} has {', '.join(LOSSES[task])}")
        if task == "regression" and (config.class_weights or config.label_smoothing):
            raise ValueError("model.class_weights and model.label_smoothing are for classes, not for regression")

    def prepare(self, data: Data, task: str, config: NetConfig) -> Prepared:
        return prepare(data, task)

    def schema(self, value: Mapping[str, Any], files: Mapping[str, bytes]) -> FeatureSchema:
        return FeatureSchema.from_json(value)

    def build(self, config: NetConfig, schema: FeatureSchema) -> Modules:
        return {"net": Perceptron(config, schema)}

    def optimizers(self, modules: Modules, training: Training) -> dict[str, Optimizer]:
        return {"net": make_optimizer(modules["net"], training)}

    def batches(self, dataset: Arrays, training: Training, *, evaluate: bool = False, **where: Any) -> TableBatches:
        return table_batches(dataset, training, evaluate=evaluate, **where)

    def train_step(
        self, modules: Modules, optimizers: Mapping[str, Optimizer], batch: Batch, session: StepSession
    ) -> dict[str, Tensor]:
        net = modules["net"]
        with session.autocast():
            loss = net.loss(net(batch.inputs), batch.targets).sum() / batch.global_rows  # type: ignore[operator]
        if session.backward(loss, [net]):
            optimizers["net"].step()
            optimizers["net"].zero_grad()
        return {"loss": loss.detach()}

    def eval_step(self, modules: Modules, batch: Batch) -> dict[str, Tensor]:
        outputs = modules["net"](batch.inputs)
        assert batch.targets is not None
        loss: Tensor = modules["net"].loss(outputs, batch.targets)  # type: ignore[operator]
        return {"outputs": outputs, "targets": batch.targets, "loss": loss}

    def metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, float]:
        return {"loss": float(rows["loss"].double().mean()), **quick_metrics(rows["outputs"], rows["targets"], task)}

    def objective(self, task: str) -> tuple[str, bool]:
        return ("loss", False)

    def predict(self, modules: Modules, inputs: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = modules["net"](inputs)
        return outputs
