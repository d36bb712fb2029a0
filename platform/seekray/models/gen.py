"""DeepSeek-Gen: a generative adversarial network (arXiv:1406.2661) of rows, images and short texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from seekray.data.batches import Batch
from seekray.data.options import Data
from seekray.data.prepared import Arrays, Prepared
from seekray.data.synthetic import codec
from seekray.data.synthetic.schema import GenSchema, fitter
from seekray.data.tables.batches import TableBatches, table_batches
from seekray.data.tables.prepare import prepare
from seekray.data.values import json_value
from seekray.errors import UserError
from seekray.images import contact_sheet
from seekray.models import gen_watch
from seekray.models.family import ModelConfig, Modules, StepSession
from seekray.models.gen_config import GenConfig, GenRequest, Turn
from seekray.models.gen_losses import discriminator_loss, generator_loss, gradient_penalty
from seekray.models.gen_networks import (
    Counter,
    ImageDiscriminator,
    ImageGenerator,
    RowDiscriminator,
    RowGenerator,
    TextDiscriminator,
    TextGenerator,
    normalised,
    settle,
)
from seekray.models.noise import normal, stream, uniform
from seekray.models.optimizers import make_optimizer

if TYPE_CHECKING:
    from seekray.config import Training

CHUNK = 256  # rows of a forward pass when generating: always whole, so that a row has the same bits in any request
ATTEMPTS = 1000
# What noise is for: no two of a step may be alike.
LATENT, CHOICES, MIX, DRAWN = range(4)


class Adversary(nn.Module):
    """A generator with what it needs to be used: its counter, its spans, the temperature of its choices."""

    def __init__(self, config: GenConfig, network: nn.Module, spans: list[codec.Span], characters: int) -> None:
        super().__init__()
        self.network, self.counter = network, Counter()
        self.config, self.spans, self.characters = config, spans, characters
        self.chooses = any(kind == "choice" for kind, _ in spans)

    def content(self, given: Tensor) -> Tensor:
        """What a discriminator reads of real rows: characters as one-hots."""
        if not self.characters:
            return given
        return F.one_hot(given, self.characters).flatten(1).to(next(self.parameters()).dtype)

    def forward(self, condition: Tensor, rows: Tensor, turn: int, hard: bool = False) -> Tensor:
        """Made rows (B, W) beside the rows with these numbers, from the noise of a turn."""
        rows = rows.to(condition.device)
        noise = normal(stream(turn, LATENT), rows, self.config.latent_size, condition.dtype)
        raw: Tensor = self.network(noise, condition)
        if not self.chooses:
            return raw
        uniforms = uniform(stream(turn, CHOICES), rows, raw.shape[1], condition.dtype)
        return settle(raw, self.spans, uniforms, None if hard else self.config.temperature)


class Gen:
    """The family `gen`."""

    tasks: ClassVar[tuple[str, ...]] = ("rows", "images", "texts")
    Config: ClassVar[type[ModelConfig]] = GenConfig
    prepares_by = ("condition",)
    Request: ClassVar[type[ModelConfig]] = GenRequest

    def check(self, config: GenConfig, task: str, data: Data, training: Training) -> None:
        if data.targets:
            raise ValueError(
                "data.target is for supervised families; gen learns the rows themselves (model.condition: columns it is given)"
            )
        if data.features is not None and (lacking := [c for c in config.conditions if c not in data.features]):
            raise ValueError(f"model.condition: {', '.join(lacking)} is not in data.features; add it there")
        if task == "texts" and data.features is None:
            raise ValueError("task texts needs data.features: the text column, and those in model.condition")
        if task != "rows" and config.norm == "batch":
            raise ValueError(f"model.norm: batch is for rows; {task} have none and layer")

    def prepare(self, data: Data, task: str, config: GenConfig) -> Prepared:
        if task == "texts" and data.features:
            kinds = {
                n: o if n in config.conditions else o.model_copy(update={"kind": "text"}) for n, o in data.features.items()
            }
            data = data.model_copy(update={"features": kinds})
        return prepare(data, task, fit=fitter(config.conditions), keep=True)

    def schema(self, value: Mapping[str, Any], files: Mapping[str, bytes]) -> GenSchema:
        return GenSchema.from_json(value)

    def build(self, config: GenConfig, schema: GenSchema) -> Modules:
        given, spans, characters = schema.given.width, schema.spans, 0
        if schema.task == "images":
            state = schema.subject.state
            shape = (state["channels"], *state["size"])
            networks: tuple[nn.Module, nn.Module] = (
                ImageGenerator(config, given, *shape), ImageDiscriminator(config, given, *shape),
            )  # fmt: skip
        elif schema.task == "texts":
            length, characters = schema.subject.state["length"], 1 + len(schema.subject.state["alphabet"])
            spans = [("choice", characters)] * length
            networks = (TextGenerator(config, given, length, characters), TextDiscriminator(config, given, length, characters))
        else:
            networks = (RowGenerator(config, given, schema.num_outputs), RowDiscriminator(config, given, schema.num_outputs))
        discriminator = normalised(networks[1]) if config.spectral_norm else networks[1]
        return {"generator": Adversary(config, networks[0], spans, characters), "discriminator": discriminator}

    def optimizers(self, modules: Modules, training: Training) -> dict[str, Optimizer]:
        config: Any = modules["generator"].config
        return {
            name: _optimizer(module, training, config.generator if name == "generator" else config.discriminator)
            for name, module in modules.items()
        }

    def batches(self, dataset: Arrays, training: Training, *, evaluate: bool = False, **where: Any) -> TableBatches:
        return table_batches(dataset, training, evaluate=evaluate, **where)

    def train_step(
        self, modules: Modules, optimizers: Mapping[str, Optimizer], batch: Batch, session: StepSession
    ) -> dict[str, Tensor]:
        generator: Any = modules["generator"]
        critic, config = modules["discriminator"], generator.config
        condition, real = batch.inputs["condition"], generator.content(batch.inputs["content"])
        turn = int(generator.counter.turn)
        its_turn = (turn + 1) % config.discriminator_steps == 0
        with session.autocast():
            with torch.set_grad_enabled(its_turn):
                made = generator(condition, batch.rows, turn)
            real_scores, made_scores = critic(real, condition), critic(made.detach(), condition)
            of_rows = discriminator_loss(config.loss, real_scores, made_scores, config.label_smoothing)
            if config.penalty:
                mix = uniform(stream(turn, MIX), batch.rows.to(real.device), 1, real.dtype)
                of_rows = of_rows + config.penalty * gradient_penalty(critic, real, made.detach(), condition, mix)
            d_loss = of_rows.sum() / batch.global_rows
            seen = generator_loss(config.loss, made_scores.detach()).sum() / batch.global_rows
        if session.backward(d_loss, [critic]):
            optimizers["discriminator"].step()
            optimizers["discriminator"].zero_grad()
            generator.counter.turn += 1
        if its_turn:
            critic.requires_grad_(False)
            with session.autocast():
                g_loss = generator_loss(config.loss, critic(made, condition)).sum() / batch.global_rows
            if session.backward(g_loss, [generator]):
                optimizers["generator"].step()
                optimizers["generator"].zero_grad()
            critic.requires_grad_(True)
        return {"loss": seen, "discriminator_loss": d_loss.detach()}

    def eval_step(self, modules: Modules, batch: Batch) -> dict[str, Tensor]:
        generator: Any = modules["generator"]
        critic, condition = modules["discriminator"], batch.inputs["condition"]
        real, made = generator.content(batch.inputs["content"]), generator(condition, batch.rows, 0, hard=True)
        return {
            "row": batch.rows.to(real.device), "content": real, "made": made,
            "real": critic(real, condition), "fake": critic(made, condition),
        }  # fmt: skip

    def metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, float]:
        order = rows["row"].argsort()  # ranks have theirs one after the other
        return gen_watch.figures(*(rows[name][order] for name in ("content", "made", "real", "fake")))

    def objective(self, task: str) -> tuple[str, bool]:
        return ("energy_distance", False)

    def remarks(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """What the newest epoch's figures mean, where they are not as they should be."""
        return gen_watch.remarks(history)

    def sheet(self, modules: Modules, schema: GenSchema) -> tuple[str, bytes]:
        """A contact sheet of images; rows and texts as JSON lines."""
        made = self.generate(modules, schema, GenRequest(rows=100 if schema.task == "images" else 20))
        if schema.task == "images":
            order = np.argsort([str(v) for v in made.column(schema.conditions[0]).to_pylist()]) if schema.conditions else ...
            found = np.array(made.column(schema.subject.name).to_pylist(), object)[order]
            return ".png", contact_sheet(found.tolist())
        rows = ({k: json_value(v) for k, v in row.items()} for row in made.to_pylist())
        return ".jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()

    def predict(self, modules: Modules, inputs: dict[str, Tensor]) -> Tensor:
        """As many made rows (B, W) as conditions given."""
        condition = inputs["condition"]
        made: Tensor = modules["generator"](condition, torch.arange(len(condition)), 0, hard=True)
        return made

    def generate(self, modules: Modules, schema: GenSchema, request: GenRequest) -> pa.Table:
        """Rows of the training columns' own types; each is a function of the seed and of its number."""
        names = [f.name for f in schema.features]
        if unknown := [name for name in request.where if name not in names]:
            raise UserError(f"where: no column {unknown[0]!r}, only {', '.join(names)}", field="where")
        later = {f.name: request.where[f.name] for f in schema.made if f.name in request.where}
        for feature in schema.made:
            if feature.name in later:
                _can_be(feature, later[feature.name])
        start = request.first // CHUNK * CHUNK
        parts = []
        for first in range(start, request.first + request.rows, CHUNK):
            parts.append(_chunk(modules["generator"], schema, request, first, later))
        content, condition = (np.concatenate([p[i] for p in parts]) for i in range(2))
        inside = slice(request.first - start, request.first - start + request.rows)
        return schema.table(content[inside], condition[inside], request.first)

    def examples(self, schema: GenSchema, held_out: pa.Table) -> list[dict[str, Any]]:
        return [{"rows": 4, "seed": 0}, {"rows": 2, "seed": 1, "first": 300}]


def _optimizer(module: nn.Module, training: Training, turn: Turn) -> Optimizer:
    own = {k: v for k in ("optimizer", "lr", "weight_decay") if (v := getattr(turn, k)) is not None}
    return make_optimizer(module, training.model_copy(update=own), betas=turn.betas)


def _can_be(feature: Any, value: Any) -> None:
    """Raise UserError where a column that is made can never be `value`."""
    if feature.kind not in codec.KINDS:
        raise UserError(f"where: {feature.name} is of kind {feature.kind} and cannot be asked for", field=feature.name)
    try:
        (codec.one_value if feature.kind in ("numeric", "timestamp") else codec.place_of)(feature, value)
    except ValueError as error:
        raise UserError(f"where: {feature.name} = {value!r} cannot be made: {error}", field=feature.name) from error


def _chunk(generator: Any, schema: GenSchema, request: GenRequest, first: int, later: Mapping[str, Any]) -> tuple[Any, Any]:
    """Content and conditions of whole 256 rows; those that are not as asked for are drawn again."""
    parameter = next(generator.parameters())
    rows = torch.arange(first, first + CHUNK)
    content: Any = None
    condition: Any = None
    waiting = np.ones(CHUNK, bool)
    for attempt in range(ATTEMPTS):
        turn = stream(request.seed + 1, attempt)
        drawn = uniform(stream(turn, DRAWN), rows, 1 + len(schema.conditions), torch.float64).numpy()
        given = schema.given.draw(drawn, request.where)
        made = generator(torch.from_numpy(given).to(parameter), rows, turn, hard=True)
        if generator.characters:
            made = made.view(CHUNK, -1, generator.characters).argmax(2)
        found = made.cpu().numpy()
        if content is None:
            content, condition = found.copy(), given.copy()
        content[waiting], condition[waiting] = found[waiting], given[waiting]
        if not later:
            return content, condition
        table = schema.table(content, condition, first)
        fits = [codec.matches(f, table.column(f.name), later[f.name]) for f in schema.made if f.name in later]
        waiting = ~np.logical_and.reduce(fits)
        if not waiting.any():
            return content, condition
    asked = ", ".join(f"{k}={v}" for k, v in request.where.items())
    raise UserError(
        f"where: {asked}: in {ATTEMPTS} draws {int(waiting.sum())} of {CHUNK} rows were not so; train with these columns in "
        "model.condition to ask for them directly",
        field="where",
    )
