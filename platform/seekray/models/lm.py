"""The DeepSeek Transformer: language models over tokens of text, and classifiers of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from seekray.data.batches import Batch
from seekray.data.options import Data
from seekray.data.prepared import Prepared
from seekray.data.text.batches import text_batches
from seekray.data.text.passages import IGNORED
from seekray.data.text.prepare import prepare_lm
from seekray.data.text.schema import TextSchema
from seekray.errors import DataError
from seekray.metrics import quick_metrics
from seekray.models import texts
from seekray.models.blocks import BLOCK
from seekray.models.decoding import Weights
from seekray.models.family import ModelConfig, Modules, StepSession
from seekray.models.lora import LoraConfig, add_adapters, merged, without_adapters
from seekray.models.optimizers import make_optimizer
from seekray.models.text_engine import Guide, Job, Piece, TextEngine
from seekray.models.texts import TextRequest
from seekray.models.transformer import Transformer, TransformerConfig

if TYPE_CHECKING:
    from seekray.config import Training

EVALUATED_LOGITS = 2**24  # at a time
# Tokens of prompts that a served model reads in a step: alone, and while others wait for their next token. 32 take about as
# long as 16 texts' step does (docs/benchmarks.md).
SERVED_PROMPT, SERVED_BESIDE = 256, 32


class LmConfig(TransformerConfig):
    """The network, and what it starts from."""

    init_from: str | None = Field(
        None, description="a MODEL whose weights, shape and tokenizer are taken; null: random weights"
    )
    lora: LoraConfig | None = Field(None, description="train low-rank adapters alone, the rest stays as it is; needs init_from")
    checkpointing: bool = Field(False, description="recompute activations in the backward pass: slower, with less memory")
    own: ClassVar[frozenset[str]] = frozenset({"init_from", "lora", "checkpointing"})


class Lm:
    """The family `lm`. `modules["lm"]` is the Transformer; `classifier` is there to classify."""

    tasks: ClassVar[tuple[str, ...]] = ("pretrain", "finetune", "classify")
    Config: ClassVar[type[ModelConfig]] = LmConfig
    prepares_by = ("context_length", "vocab_size", "init_from")
    Request: ClassVar[type[ModelConfig]] = TextRequest

    def check(self, config: LmConfig, task: str, data: Data, training: Training) -> None:
        pairs = data.text is not None and data.text.prompt is not None
        if task == "classify":
            if len(data.targets) != 1:
                raise ValueError("data.target: classify needs the column of labels, and one only")
            if pairs:
                raise ValueError("data.text.prompt is for finetune; classify reads data.text.column")
        elif data.targets:
            raise ValueError(f"data.target is for classify; {task} learns the text itself (data.text.column, prompt, response)")
        if task == "pretrain" and pairs:
            raise ValueError("data.text.prompt and response are for task: finetune")
        if config.lora and not config.init_from:
            raise ValueError("model.lora adapts a model that is there: it needs model.init_from")
        if data.features:
            raise ValueError("data.features is for tables; lm reads data.text.column")

    def prepare(self, data: Data, task: str, config: LmConfig) -> Prepared:
        return prepare_lm(data, task, config.context_length, config.vocab_size, config.init_from)

    def schema(self, value: Mapping[str, Any], files: Mapping[str, bytes]) -> TextSchema:
        return TextSchema.from_json(value, files)

    def build(self, config: LmConfig, schema: TextSchema) -> Modules:
        network = Transformer(config, schema.vocab_size)
        network.checkpointing = config.checkpointing
        if config.lora:
            add_adapters(network, config.lora)
        modules: Modules = {"lm": network}
        if schema.classes:
            network.head = None  # of no use: it would have no gradients
            modules["classifier"] = nn.Linear(config.hidden_size, len(schema.classes))
        return modules

    def optimizers(self, modules: Modules, training: Training) -> dict[str, Optimizer]:
        return {"lm": make_optimizer(nn.ModuleDict(modules), training)}

    def shards(self, modules: Modules) -> list[nn.Module]:
        network: Any = modules["lm"]
        return list(network.blocks)

    def batches(self, dataset: Any, training: Training, *, evaluate: bool = False, **where: Any) -> Any:
        return text_batches(dataset, training, evaluate=evaluate, **where)

    def train_step(
        self, modules: Modules, optimizers: Mapping[str, Optimizer], batch: Batch, session: StepSession
    ) -> dict[str, Tensor]:
        assert batch.targets is not None
        with session.autocast():
            if "classifier" in modules:
                loss = F.cross_entropy(self.predict(modules, batch.inputs), batch.targets, reduction="sum")
            else:
                logits = modules["lm"](batch.inputs["tokens"])  # (B, T, V)
                loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
            loss = loss / batch.global_rows
        if session.backward(loss, list(modules.values())):
            optimizers["lm"].step()
            optimizers["lm"].zero_grad()
        return {"loss": loss.detach()}

    def eval_step(self, modules: Modules, batch: Batch) -> dict[str, Tensor]:
        assert batch.targets is not None
        if "classifier" in modules:
            outputs = self.predict(modules, batch.inputs)
            loss = F.cross_entropy(outputs, batch.targets, reduction="none")
            return {"outputs": outputs, "targets": batch.targets, "loss": loss}
        losses = token_losses(modules["lm"], batch.inputs["tokens"], batch.targets)  # type: ignore[arg-type]
        counts = (batch.targets != IGNORED).sum(1)
        figures = {"loss": losses.sum(1), "tokens": counts}
        return figures | {"bytes": batch.inputs["bytes"]} if "bytes" in batch.inputs else figures

    def metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, float]:
        if "outputs" in rows:
            found = quick_metrics(rows["outputs"], rows["targets"], "classification")
            return {"loss": float(rows["loss"].double().mean())} | found
        total, tokens = float(rows["loss"].double().sum()), max(1, int(rows["tokens"].sum()))
        text_bytes = float(rows["bytes"].double().sum()) if "bytes" in rows else 0.0
        return text_metrics(total, tokens, text_bytes)

    def release(self, config: LmConfig, tensors: dict[str, Tensor]) -> tuple[LmConfig, dict[str, Tensor]]:
        if config.lora is None or not config.lora.merge:
            return config, tensors
        return config.model_copy(update={"lora": None}), merged(tensors, config.lora)

    def objective(self, task: str) -> tuple[str, bool]:
        return ("loss", False)

    def predict(self, modules: Modules, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (B, C) of the classes, or (B, V) of the token that comes next."""
        tokens = inputs["tokens"]
        lengths = inputs.get("lengths")
        network: Any = modules["lm"]
        if "classifier" not in modules:
            hidden = network(tokens, logits=False)
            last = torch.full_like(tokens[:, 0], tokens.shape[1]) if lengths is None else lengths
            out: Tensor = network.logits(hidden[torch.arange(len(tokens), device=tokens.device), last - 1])
            return out
        hidden = network(tokens, causal=False, lengths=lengths, logits=False)  # (B, T, C)
        if lengths is None:
            lengths = torch.full_like(tokens[:, 0], tokens.shape[1])
        inside = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])[..., None]
        mean = torch.where(inside, hidden, 0).sum(1) / lengths[:, None]
        logits: Tensor = modules["classifier"](mean)
        return logits

    def generate(self, modules: Modules, schema: TextSchema, request: TextRequest) -> pa.Table:
        """A row a text, see `texts.table`."""
        prompts = encoded(schema, request)
        return texts.table(without_adapters(modules["lm"]), schema.tokenizer, request, prompts, _guide(schema))  # type: ignore[arg-type]

    def stream(self, modules: Modules, schema: TextSchema, request: TextRequest) -> Iterator[Piece]:
        """Every token of every text, as it is made."""
        return texts.stream(without_adapters(modules["lm"]), schema.tokenizer, self.jobs(schema, request))  # type: ignore[arg-type]

    def jobs(self, schema: TextSchema, request: TextRequest) -> list[Job]:
        """The texts of a request, for an engine."""
        return list(texts.jobs(request, encoded(schema, request), schema.context_length, _guide(schema)))

    def engine(self, modules: Modules, schema: TextSchema, rows: int, cached_tokens: int | None = None) -> TextEngine:
        """What makes texts together, up to `rows` at a time, and gives text with every token."""
        weights = Weights.of(without_adapters(modules["lm"]))  # type: ignore[arg-type]
        blocks = None if cached_tokens is None else cached_tokens // BLOCK
        return TextEngine(
            weights, schema.tokenizer, rows=rows, size=schema.context_length, blocks=blocks,
            prompt_tokens=SERVED_PROMPT, beside=SERVED_BESIDE, streams=True,
        )  # fmt: skip

    def logits(self, modules: Modules, tokens: Tensor) -> Tensor:
        """Of the token after each one, (B, T) -> (B, T, V)."""
        out: Tensor = modules["lm"](tokens)
        return out

    def embed(self, modules: Modules, schema: TextSchema, texts: Sequence[str | Sequence[int]]) -> list[tuple[int, Tensor]]:
        """Tokens and the mean of their last states, of length 1, (C,), for each text; each as if it were alone."""
        network: Any = modules["lm"]
        made = iter(schema.encode_texts([t for t in texts if isinstance(t, str)]))
        rows = [next(made) if isinstance(t, str) else list(t) for t in texts]
        found = []
        for ids in rows:
            if not 1 <= len(ids) <= schema.context_length:
                raise DataError(
                    f"a text of {len(ids)} tokens given, the model looks at 1 to {schema.context_length}", field="input"
                )
            _check_ids(ids, schema, "input")
            states = network(torch.tensor([ids], device=network.embedding.weight.device), logits=False)[0]
            found.append((len(ids), F.normalize(states.float().mean(0), dim=0).cpu()))
        return found

    def examples(self, schema: TextSchema, held_out: pa.Table) -> list[dict[str, Any]]:
        given = [t or "" for t in held_out.slice(0, 2)[schema.column].to_pylist()]
        prompts = given if schema.response else [t[:80] for t in given]
        return [{"prompts": [p], "max_tokens": 16, "temperature": 0.0, "truncate": True} for p in prompts]


def _guide(schema: TextSchema) -> Callable[[Mapping[str, Any]], Guide]:
    return lambda wanted: schema.tokenizer.json_guide(wanted, schema.vocab_size)


def encoded(schema: TextSchema, request: TextRequest) -> list[list[int]]:
    """A request's prompts as ids. Those that are ids already are taken as they are. Raises DataError."""
    _check_ids(list(request.logit_bias), schema, "logit_bias")
    for prompt in request.prompts:
        if not isinstance(prompt, str):
            _check_ids(prompt, schema, "prompts")
    made = iter(schema.encode_prompts([p for p in request.prompts if isinstance(p, str)]))
    return [next(made) if isinstance(p, str) else list(p) for p in request.prompts]


def _check_ids(ids: Sequence[int], schema: TextSchema, field: str) -> None:
    if wrong := [i for i in ids if type(i) is not int or not 0 <= i < schema.vocab_size]:
        raise DataError(f"{field}: token {wrong[0]} given, the model has 0 to {schema.vocab_size - 1}", field=field)


def token_losses(network: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target, 0 where it is ignored: (B, T) -> (B, T). Logits are made for a few rows at a time."""
    hidden = network(tokens, logits=False)
    rows = max(1, EVALUATED_LOGITS // (tokens.shape[1] * network.vocab_size))
    parts = [
        F.cross_entropy(network.logits(h).transpose(1, 2), t, ignore_index=IGNORED, reduction="none")
        for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(parts)


def text_metrics(total: float, tokens: int, text_bytes: float) -> dict[str, float]:
    """loss in nats a token, perplexity, and bits per byte of text where the bytes are known."""
    loss = total / tokens
    found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return found | {"bits_per_byte": total / math.log(2) / text_bytes} if text_bytes else found
