"""DeepSeek-Rec: the recurrent network, for classifying sequences, labelling their steps and forecasting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from seekray.data.batches import Batch
from seekray.data.options import Data
from seekray.data.prepared import Arrays, Prepared
from seekray.data.sequences.baselines import fit_ewma, fit_ridge
from seekray.data.sequences.batches import SequenceBatches
from seekray.data.sequences.ragged import RAGGED
from seekray.data.tables.features import FeatureSchema
from seekray.data.tables.prepare import prepare
from seekray.errors import DataError
from seekray.models.family import ModelConfig, Modules
from seekray.models.layers import initialise
from seekray.models.recurrent import Cell, Nonlinearity, Pooling, Recurrent, State, embeddings
from seekray.models.supervised import Supervised, row_loss

if TYPE_CHECKING:
    from seekray.config import Training


class RecConfig(ModelConfig):
    """DeepSeek-Rec's shape and loss."""

    cell: Cell = Field("gru", description="elman is the source's")
    nonlinearity: Nonlinearity = Field("sigmoid", description="elman only; sigmoid is the source's")
    hidden_size: int = Field(64, ge=1, description="size of a layer's state, in each direction")
    num_layers: int = Field(1, ge=1, description="layers one above another")
    bidirectional: bool = Field(False, description="also read from the end; not for streams")
    dropout: float = Field(0.0, ge=0, lt=1, description="between layers, and before the output")
    input_dropout: float = Field(0.0, ge=0, lt=1, description="on the inputs of each step")
    pooling: Literal["last", "mean", "max", "attention"] = Field(
        "last", description="classification, forecast: of a row's states"
    )
    crop: float = Field(
        1.0, gt=0, le=1, description="classification: learn from a stretch of each row, of at least this share of its steps"
    )
    crop_steps: int = Field(8, ge=1, description="crop: no stretch is shorter, unless its row is")
    embedding_size: int | None = Field(None, ge=1, description="of characters and categoricals; null: by their number")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="classification and labelling")
    quantiles: tuple[float, ...] = Field((0.1, 0.5, 0.9), description="forecast: what is predicted, the median among them")
    anchor: Literal["last", "none"] = Field("last", description="forecast: last learns the change from the last value")

    @model_validator(mode="after")
    def _rules(self) -> RecConfig:
        ordered = all(a < b for a, b in zip((0.0, *self.quantiles), (*self.quantiles, 1.0), strict=True))
        if not ordered or 0.5 not in self.quantiles:
            raise ValueError(f"model.quantiles: {self.quantiles} given, expected rising numbers between 0 and 1 with 0.5")
        return self


class SequenceNet(nn.Module):
    """{"sequence": (B, T, C), "symbols": (B, T, K), "length": (B,), "dense": (B, D), "categorical": (B, J)} -> outputs.

    Outputs: (B, classes), or of labelling (B, T, classes), or of a forecast (B, horizon * quantiles).
    """

    def __init__(self, config: RecConfig, schema: FeatureSchema) -> None:
        super().__init__()
        self.task, self.config = schema.task, config
        self.symbols = embeddings(schema.vocabulary, config.embedding_size)
        self.categories = embeddings(schema.cardinalities, config.embedding_size)
        inputs = schema.channels + sum(e.embedding_dim for e in self.symbols)  # type: ignore[misc]
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.recurrent = Recurrent(
            inputs, config.hidden_size, cell=config.cell, nonlinearity=config.nonlinearity, num_layers=config.num_layers,
            bidirectional=config.bidirectional, dropout=config.dropout,
        )  # fmt: skip
        self.pooling = Pooling(config.pooling, self.recurrent.size)
        static = schema.dense_size + sum(e.embedding_dim for e in self.categories)  # type: ignore[misc]
        self.dropout = nn.Dropout(config.dropout)
        self.head = initialise(nn.Linear(self.recurrent.size + static, schema.num_outputs), None)
        self.anchor, self.quantiles = None, tuple(schema.quantiles)
        if schema.task == "forecast" and config.anchor == "last" and schema.anchor is not None:
            self.anchor, self.scale, self.shift = schema.anchor, *_units(schema)
            nn.init.zeros_(self.head.weight)  # training begins at persistence

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if self.training and self.config.crop < 1:
            inputs = cropped(inputs, self.config.crop, self.config.crop_steps)
        return self.run(inputs, None)[0]

    def run(self, inputs: Mapping[str, Tensor], state: State | None) -> tuple[Tensor, State]:
        """Outputs, and the state to go on from."""
        parts = [inputs["sequence"]] if "sequence" in inputs else []
        parts += [e(inputs["symbols"][..., i]) for i, e in enumerate(self.symbols)]
        x = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        length = inputs["length"].cpu()
        states, last = self.recurrent(self.input_dropout(x), length, state)
        static = [inputs["dense"]] + [e(inputs["categorical"][:, i]) for i, e in enumerate(self.categories)]
        if self.task == "labelling":
            static = [s[:, None].expand(-1, states.shape[1], -1) for s in static]
        else:
            states = self.pooling(states, last, length)
        known = [s for s in static if s.shape[-1]]
        pooled = torch.cat([states, *known], dim=-1) if known else states
        outputs: Tensor = self.head(self.dropout(pooled))
        if self.anchor is not None:
            final = (length - 1).to(x.device)
            seen = inputs["sequence"][torch.arange(len(x), device=x.device), final, self.anchor]
            outputs = outputs + (seen * self.scale + self.shift)[:, None]
        return outputs, last

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (B,); of labelling the sum over its labelled steps."""
        if self.task == "classification":
            return row_loss(self.task, outputs, targets, label_smoothing=self.config.label_smoothing)
        if self.task == "forecast":
            return pinball(outputs, targets, self.quantiles)
        smoothing = self.config.label_smoothing
        flat = F.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-1, label_smoothing=smoothing
        )
        return flat.view(targets.shape).sum(1)


def cropped(inputs: Mapping[str, Tensor], least: float, steps: int) -> dict[str, Tensor]:
    """A random stretch of each row's steps: what a row is, a part of it often is too.

    The share, `least` to 1, is drawn once for all rows, so that rows of like length stay so; where a stretch begins is each
    row's own. No stretch has fewer than `steps` steps, unless its row has.
    """
    whole = inputs["length"]
    share = least + (1 - least) * torch.rand(())
    length = torch.minimum(whole, (whole * share).ceil().long().clamp_min(steps))
    first = (torch.rand(len(whole)) * (whole - length + 1)).long()
    at = torch.minimum(first[:, None] + torch.arange(int(length.max()) if len(length) else 0), (first + length - 1)[:, None])
    out = {k: v.take_along_dim(at.to(v.device)[..., None], 1) if k in RAGGED else v for k, v in inputs.items()}
    return out | {"length": length}


def _units(schema: FeatureSchema) -> tuple[float, float]:
    """Scale and shift from the standardised past of the target to the standardised values to come."""
    assert schema.frame is not None
    state = next(f.state for f in schema.features if f.name == schema.frame["target"])
    (mean,), (std,) = state["mean"], state["std"]
    return std / schema.target_std, (mean - schema.target_mean) / schema.target_std


def pinball(outputs: Tensor, targets: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Mean pinball loss (Koenker and Bassett 1978, doi:10.2307/1913643) of each row, (B,).

    outputs: (B, H * Q), the quantiles of a step side by side; targets: (B, H). Twice it, for the median, is the absolute error.
    """
    difference = targets[..., None] - outputs.view(*targets.shape, len(quantiles))  # (B, H, Q)
    q = outputs.new_tensor(quantiles)
    return torch.maximum(q * difference, (q - 1) * difference).mean((1, 2))


class Rec(Supervised):
    """The family `rec`."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "labelling", "forecast")
    Config: ClassVar[type[ModelConfig]] = RecConfig
    prepares_by = ("quantiles",)

    def check(self, config: RecConfig, task: str, data: Data, training: Training) -> None:
        super().check(config, task, data, training)
        if config.crop < 1 and task != "classification":
            raise ValueError(
                f"model.crop: {config.crop:g} given; it is for classification, where a part of a row has its class"
            )
        if task == "forecast" and data.sequence is not None:
            if data.sequence.horizon is None:
                raise ValueError("data.sequence.history and horizon are missing; a forecast needs to know how far it looks")
            if data.split.kind != "time":
                raise ValueError(
                    f"data.split.kind: {data.split.kind} given; a forecast is judged on what came later: "
                    f"split: {{kind: time, by: {data.sequence.time}}}"
                )
        elif data.sequence is not None and data.sequence.horizon is not None:
            raise ValueError(f"data.sequence.history and horizon are for task: forecast, not for {task}")

    def prepare(self, data: Data, task: str, config: RecConfig) -> Prepared:
        prepared = prepare(data, task, {"vector": "sequence", "text": "characters", "audio": "audio_frames"})
        schema = prepared.schema
        assert isinstance(schema, FeatureSchema)
        if not (schema.channels or schema.vocabulary):
            raise DataError(
                "rec reads sequences, and no feature is one: give a column of lists, or of texts with "
                "data.features: {COLUMN: characters}, or say in data.sequence how the rows of a long table become sequences",
                field="data.features",
            )
        if task != "forecast":
            return prepared
        assert isinstance(prepared.train, Arrays)
        assert isinstance(prepared.validation, Arrays)
        ridge = fit_ridge(prepared.train, prepared.validation)
        ewma = None if schema.anchor is None else fit_ewma(prepared.train, schema.anchor, *_units(schema))
        return replace(prepared, schema=replace(schema, quantiles=config.quantiles, ridge=ridge, ewma=ewma))

    def build(self, config: RecConfig, schema: FeatureSchema) -> Modules:
        return {"rec": SequenceNet(config, schema)}

    def batches(self, dataset: Arrays, training: Training, *, evaluate: bool = False, **where: Any) -> SequenceBatches:
        return SequenceBatches(dataset, training, evaluate=evaluate, **where)

    def eval_step(self, modules: Modules, batch: Batch) -> dict[str, Tensor]:
        net = modules["rec"]
        assert isinstance(net, SequenceNet)
        if net.task == "classification":
            return super().eval_step(modules, batch)
        outputs, targets = net(batch.inputs), batch.targets
        assert targets is not None
        found = {"loss": net.loss(outputs, targets)}
        if net.task == "labelling":
            right = (outputs.argmax(-1) == targets).sum(1)
            return found | {"right": right, "steps": (targets >= 0).sum(1)}
        middle = outputs.view(*targets.shape, -1)[..., net.quantiles.index(0.5)]
        return found | {"absolute": (middle - targets).abs().mean(1)}

    def metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, float]:
        if task == "classification":
            return super().metrics(rows, task)
        loss = rows["loss"].double()
        if task == "labelling":
            steps = rows["steps"].sum().double()
            return {"loss": float(loss.sum() / steps), "accuracy": float(rows["right"].sum() / steps)}
        return {"loss": float(loss.mean()), "mae": float(rows["absolute"].double().mean())}

    def not_streamable(self, model: Mapping[str, Any], schema: FeatureSchema) -> str | None:
        """Why a model cannot be fed step by step, None where it can."""
        if model["bidirectional"]:
            return "it also reads from the end (model.bidirectional)"
        if known := [f.name for f in schema.features if "ngrams" in f.state and f.kind == "characters"]:
            return f"{known[0]!r} is read with the characters before each (data.features.{known[0]}.ngrams)"
        return None if model["pooling"] == "last" else f"model.pooling is {model['pooling']}, expected last"

    def forward_on(self, modules: Modules, inputs: dict[str, Tensor], state: State | None) -> tuple[Tensor, State]:
        """`predict` of new steps, from the state that the steps before have left, and the state after them."""
        net = modules["rec"]
        assert isinstance(net, SequenceNet)
        outputs, after = net.run(inputs, state)
        return self._masked(outputs, inputs), after

    def predict(self, modules: Modules, inputs: dict[str, Tensor]) -> Tensor:
        return self._masked(super().predict(modules, inputs), inputs)

    @staticmethod
    def _masked(outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """NaN for the steps that a row does not have."""
        if outputs.ndim == 2:
            return outputs
        beyond = torch.arange(outputs.shape[1], device=outputs.device) >= inputs["length"].to(outputs.device)[:, None]
        return outputs.masked_fill(beyond[..., None], torch.nan)
