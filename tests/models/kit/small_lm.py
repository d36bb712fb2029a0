"""Small language models, randomly initialised, and a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from seekray.models.transformer import Transformer, TransformerConfig

SHAPES: list[dict[str, Any]] = [
    {"position": position, "norm": norm, "norm_first": first, "ffn": ffn, "bias": norm == "layer", "tie_embeddings": first}
    for position, (norm, ffn), first in product(
        ("sinusoidal", "learned", "rope"), (("layer", "relu"), ("layer", "gelu"), ("rms", "swiglu")), (True, False)
    )
]


def small(**model: Any) -> Transformer:
    """A model whose weights are large enough for positions to matter."""
    torch.manual_seed(3)
    given = {"hidden_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 40, "context_length": 16}
    net = Transformer(TransformerConfig(**given | model)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return net.requires_grad_(False)


class Bytes:
    """A token a byte of UTF-8; 256 ends a text."""

    end = 256
    size = 257

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Ids of each text."""
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, the end left out."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def learn(net: Transformer, ids: Sequence[int], steps: int = 150, length: int = 32) -> None:
    """Know a text by heart, more or less: a few seconds of Adam on random windows."""
    data = torch.tensor(list(ids))
    optimizer = torch.optim.Adam(net.requires_grad_(True).parameters(), lr=0.01)
    for _ in range(steps):
        starts = torch.randint(len(data) - length - 1, (8,))
        windows = torch.stack([data[s : s + length + 1] for s in starts])
        logits = net(windows[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    net.requires_grad_(False)


def write_bundle(folder: Path, text: str = "", template: str | None = None, **model: Any) -> Path:
    """A bundle of a model of bytes: with random weights, or one that has read `text`. template: of chats."""
    from seekray.data.tables.features import Feature
    from seekray.data.text.schema import TextSchema
    from seekray.data.text.tokenizer import train

    tokenizer = train("byte", [], 0, "<|end|>")
    net = small(**{"vocab_size": tokenizer.size, "context_length": 96} | model)
    if text:
        learn(net, tokenizer.encode([text])[0])
    schema = TextSchema(
        tokenizer, "pretrain", tokenizer.size, net.config.context_length, (Feature("text", "text", "once"),),
        chat_template=template,
    )  # fmt: skip
    return _written(folder, {"name": "small", "family": "lm", "task": "pretrain", "model": net.config}, schema, {"lm": net})


def untrained(folder: Path, raw: dict[str, Any]) -> Path:
    """A bundle of an experiment, its data prepared and nothing learned: where only the way counts."""
    from seekray.experiment_file import validate
    from seekray.models import get_family

    experiment = validate(raw)
    prepared = experiment.prepare()
    modules = get_family(experiment.family).build(experiment.model, prepared.schema)
    info = {name: getattr(experiment, name) for name in ("name", "family", "task", "model")}
    return _written(folder, info, prepared.schema, modules)


def _written(folder: Path, info: dict[str, Any], schema: Any, modules: dict[str, Any]) -> Path:
    from seekray import bundle
    from seekray.generator import open_model
    from seekray.storage import Storage

    info = info | {"model": info["model"].model_dump(), "serve": {}, "fingerprint": {}, "metrics": {}, "intervals": {}}
    tensors = {f"{key}/{name}": value for key, module in modules.items() for name, value in module.state_dict().items()}
    sample = open_model(info, schema, tensors).examples(pa.table({"text": ["abc"]}))  # type: ignore[union-attr]
    bundle.write(Storage(str(folder)), "bundle", info, schema, tensors, sample)
    return folder / "bundle"
