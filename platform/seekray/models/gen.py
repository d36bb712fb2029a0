"""DeepSeek-Gen: a generative adversarial network (arXiv:1406.2661) over rows of a table.

The smallest member that holds two networks with their own turns; it proves the Family protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from seekray.data.batches import Batch, TableBatches, table_batches
from seekray.data.features import FeatureSchema
from seekray.data.options import Data
from seekray.data.prepare import Arrays, Prepared, prepare
from seekray.errors import DataError, UserError
from seekray.models.family import ModelConfig, Modules, StepSession
from seekray.models.layers import initialise
from seekray.models.noise import normal, stream
from seekray.models.optimizers import make_optimizer

if TYPE_CHECKING:
    from seekray.config import Training


class GenConfig(ModelConfig):
    """Sizes of the two networks."""

    hidden_size: int = Field(64, ge=1, description="neurons of each network's two hidden layers")
    latent_size: int = Field(16, ge=1, description="noise that a row is made of")


def _network(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        initialise(nn.Linear(inputs, hidden), "relu"), nn.LeakyReLU(0.2),
        initialise(nn.Linear(hidden, hidden), "relu"), nn.LeakyReLU(0.2),
        initialise(nn.Linear(hidden, outputs), None),
    )  # fmt: skip


class GenRequest(ModelConfig):
    """What may be asked of a generator of rows."""

    rows: int = Field(1, ge=1, description="how many")
    first: int = Field(0, ge=0, description="number of the first: rows are a stream that the seed fixes")
    seed: int = Field(0, ge=0, description="the same seed gives the same rows")
    where: dict[str, Any] = Field({}, description="column: the value that every row shall have")


class Gen:
    """The family `gen`: numeric rows from noise, with the non-saturating loss."""

    tasks: ClassVar[tuple[str, ...]] = ("rows",)
    Config: ClassVar[type[ModelConfig]] = GenConfig
    Request: ClassVar[type[ModelConfig]] = GenRequest

    def check(self, config: GenConfig, task: str, data: Data, training: Training) -> None:
        if data.targets:
            raise ValueError("data.target is for supervised families; gen learns the rows themselves")

    def prepare(self, data: Data, task: str, config: GenConfig) -> Prepared:
        prepared = prepare(data, task)
        if other := [f"{f.name} ({f.kind})" for f in prepared.schema.features if f.kind != "numeric"]:
            raise DataError(f"gen learns numeric columns, given {', '.join(other)}; leave them out with data.exclude")
        return prepared

    def schema(self, value: Mapping[str, Any], files: Mapping[str, bytes]) -> FeatureSchema:
        return FeatureSchema.from_json(value)

    def build(self, config: GenConfig, schema: FeatureSchema) -> Modules:
        generator = _network(config.latent_size, schema.dense_size, config.hidden_size)
        return {"generator": generator, "discriminator": _network(schema.dense_size, 1, config.hidden_size)}

    def optimizers(self, modules: Modules, training: Training) -> dict[str, Optimizer]:
        return {name: make_optimizer(module, training) for name, module in modules.items()}

    def batches(self, dataset: Arrays, training: Training, *, evaluate: bool = False, **where: Any) -> TableBatches:
        return table_batches(dataset, training, evaluate=evaluate, **where)

    def _fake(self, modules: Modules, rows: Tensor) -> Tensor:
        latent = next(modules["generator"].parameters()).shape[1]
        fake: Tensor = modules["generator"](torch.randn(len(rows), latent, device=rows.device, dtype=rows.dtype))
        return fake

    def train_step(
        self, modules: Modules, optimizers: Mapping[str, Optimizer], batch: Batch, session: StepSession
    ) -> dict[str, Tensor]:
        real, discriminator = batch.inputs["dense"], modules["discriminator"]
        with session.autocast():
            fake = self._fake(modules, real)
            d_rows = F.softplus(-discriminator(real)) + F.softplus(discriminator(fake.detach()))  # (B, 1)
            d_loss = d_rows.sum() / batch.global_rows
        if session.backward(d_loss, [discriminator]):
            optimizers["discriminator"].step()
            optimizers["discriminator"].zero_grad()
        discriminator.requires_grad_(False)
        with session.autocast():
            g_loss = F.softplus(-discriminator(fake)).sum() / batch.global_rows
        if session.backward(g_loss, [modules["generator"]]):
            optimizers["generator"].step()
            optimizers["generator"].zero_grad()
        discriminator.requires_grad_(True)
        return {"loss": g_loss.detach(), "discriminator_loss": d_loss.detach()}

    def eval_step(self, modules: Modules, batch: Batch) -> dict[str, Tensor]:
        real = batch.inputs["dense"]
        fake = self._fake(modules, real)
        return {"real": modules["discriminator"](real), "fake": modules["discriminator"](fake), "gap": fake - real}

    def metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, float]:
        told = torch.cat([rows["real"] > 0, rows["fake"] <= 0]).double().mean()
        return {"loss": float(rows["gap"].double().mean(0).norm()), "discriminator_accuracy": float(told)}

    def objective(self, task: str) -> tuple[str, bool]:
        return ("loss", False)

    def predict(self, modules: Modules, inputs: dict[str, Tensor]) -> Tensor:
        """Synthetic standardised rows (B, D), as many as rows given."""
        return self._fake(modules, inputs["dense"])

    def generate(self, modules: Modules, schema: FeatureSchema, request: GenRequest) -> pa.Table:
        """Rows in the columns' own units."""
        if request.where:
            raise UserError(f"where: {', '.join(request.where)} given, which this model cannot be asked for", field="where")
        first = next(modules["generator"].parameters())
        rows = torch.arange(request.first, request.first + request.rows, device=first.device)
        latent = normal(stream(request.seed), rows, first.shape[1]).to(first)
        made = modules["generator"](latent).double().cpu().numpy()
        states = [f.state for f in schema.features]
        values = made[:, : len(states)] * [s["std"] for s in states] + [s["mean"] for s in states]
        return pa.table({f.name: values[:, i] for i, f in enumerate(schema.features)})

    def examples(self, schema: FeatureSchema, held_out: pa.Table) -> list[dict[str, Any]]:
        return [{"rows": 4, "seed": 0}]
