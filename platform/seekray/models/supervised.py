"""What supervised families share: one module from inputs to outputs, a loss for each row, one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from seekray.data.batches import Batch
from seekray.data.options import Data
from seekray.data.prepared import Prepared
from seekray.data.tables.batches import table_batches
from seekray.data.tables.features import FeatureSchema
from seekray.data.tables.prepare import prepare
from seekray.errors import ConfigError, DataError
from seekray.metrics import quick_metrics
from seekray.models.family import Batches, ModelConfig, Modules, StepSession
from seekray.models.optimizers import make_optimizer

if TYPE_CHECKING:
    from seekray.config import Training

LOSSES = {
    "classification": ("cross_entropy",),
    "multilabel": ("bce",),
    "regression": ("mse", "huber", "mae"),
}


def row_loss(
    task: str,
    outputs: Tensor,
    targets: Tensor,
    *,
    loss: str = "auto",
    huber_delta: float = 1.0,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Loss of each row, (B,), of outputs (B, C) beside the targets of `FeatureSchema.encode_targets`.

    Cross-entropy for classification, binary cross-entropy for multilabel; for regression the squared error,
    or with `loss` huber or mae. class_weights: see `balanced_weights`.
    """
    if task == "classification":
        found = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing)
        return found if class_weights is None else found * class_weights[targets]
    if task == "multilabel":
        smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs, smoothed, pos_weight=class_weights, reduction="none").mean(1)
    if loss == "huber":
        return F.huber_loss(outputs, targets, reduction="none", delta=huber_delta).mean(1)
    if loss == "mae":
        return F.l1_loss(outputs, targets, reduction="none").mean(1)
    return F.mse_loss(outputs, targets, reduction="none").mean(1)


def class_weights(given: str | tuple[float, ...] | None, schema: FeatureSchema) -> Tensor | None:
    """Weights of the classes (`balanced`: inverse frequency), of mean 1 over the training rows: the loss keeps its scale."""
    if given is None:
        return None
    counts = torch.tensor([float(c) for c in schema.class_counts or ()])
    if given == "balanced":
        if schema.task == "multilabel":
            return (schema.rows - counts) / counts.clamp_min(1)
        return counts.sum() / (len(counts) * counts.clamp_min(1))
    weights = torch.tensor(given)
    if len(weights) != schema.num_outputs:
        raise ConfigError(
            f"model.class_weights: {len(weights)} given, the data has {schema.num_outputs} classes", field="model.class_weights"
        )
    return weights * counts.sum() / (weights * counts).sum() if schema.task == "classification" else weights


class Supervised(ABC):
    """Base of a family of one module that learns targets; a subclass gives `build`, and what else differs.

    The module maps inputs to outputs (B, C), and its `loss(outputs, targets)` is that of each row, (B,).
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multilabel")
    Config: ClassVar[type[ModelConfig]] = ModelConfig

    def check(self, config: Any, task: str, data: Data, training: Training) -> None:
        if data.text:
            raise ValueError("data.text is for the family lm; a column of texts is a feature of kind: text")
        if not data.targets:
            raise ValueError(f"data.target is missing; {task} needs the column to predict")
        if task != "multilabel" and len(data.targets) > 1:
            raise ValueError(f"data.target: {len(data.targets)} columns given; only multilabel has more than one")

    def prepare(self, data: Data, task: str, config: Any) -> Prepared:
        prepared = prepare(data, task)
        if sequences := [f.name for f in prepared.schema.features if f.kind in ("sequence", "characters", "audio_frames")]:
            raise DataError(
                f"feature {sequences[0]!r} is a sequence, which family rec reads; give family: rec, or leave it out with "
                "data.exclude",
                field=sequences[0],
            )
        return prepared

    def schema(self, value: Mapping[str, Any], files: Mapping[str, bytes]) -> FeatureSchema:
        return FeatureSchema.from_json(value)

    @abstractmethod
    def build(self, config: Any, schema: Any) -> Modules:
        """The freshly initialised module, under a name of its own."""

    def optimizers(self, modules: Modules, training: Training) -> dict[str, Optimizer]:
        return {name: make_optimizer(module, training) for name, module in modules.items()}

    def batches(self, dataset: Any, training: Training, *, evaluate: bool = False, **where: Any) -> Batches:
        return table_batches(dataset, training, evaluate=evaluate, **where)

    def train_step(
        self, modules: Modules, optimizers: Mapping[str, Optimizer], batch: Batch, session: StepSession
    ) -> dict[str, Tensor]:
        (module,), (optimizer,) = modules.values(), optimizers.values()
        with session.autocast():
            loss = module.loss(module(batch.inputs), batch.targets).sum() / batch.global_rows  # type: ignore[operator]
        if session.backward(loss, [module]):
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss.detach()}

    def eval_step(self, modules: Modules, batch: Batch) -> dict[str, Tensor]:
        (module,) = modules.values()
        assert batch.targets is not None
        outputs: Tensor = module(batch.inputs)
        loss: Tensor = module.loss(outputs, batch.targets)  # type: ignore[operator]
        return {"outputs": outputs, "targets": batch.targets, "loss": loss}

    def metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, float]:
        return {"loss": float(rows["loss"].double().mean()), **quick_metrics(rows["outputs"], rows["targets"], task)}

    def objective(self, task: str) -> tuple[str, bool]:
        return ("loss", False)

    def predict(self, modules: Modules, inputs: dict[str, Tensor]) -> Tensor:
        (module,) = modules.values()
        outputs: Tensor = module(inputs)
        return outputs
