"""Folders that Hugging Face's `transformers` reads as `LlamaForCausalLM`, and bundles: one to the other and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from seekray import bundle as bundles
from seekray.data.tables.features import Feature
from seekray.data.text.schema import TextSchema
from seekray.data.text.tokenizer import Tokenizer
from seekray.errors import UserError
from seekray.models import llama
from seekray.models.lm import LmConfig
from seekray.models.lora import merged

SHARD_BYTES = 4 * 10**9
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


def write_folder(bundle: Path, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """A bundle of a Llama-shaped text model as a folder of `transformers`. Raises UserError for another model."""
    found = bundles.load(bundle)
    if not isinstance(found.schema, TextSchema) or found.schema.targets:
        raise UserError(f"{found.info['name']} is no model that makes texts (family {found.info['family']})")
    schema = found.schema
    config = LmConfig.model_validate(found.info["model"])
    ends = {"bos_token_id": schema.first_id, "eos_token_id": schema.tokenizer.end}
    shape = llama.to_llama(config, schema.vocab_size) | ends | {"torch_dtype": "float32"}
    own = {name.removeprefix("lm/"): tensor for name, tensor in found.tensors.items() if name.startswith("lm/")}
    tensors = llama.weights_to_llama(merged(own, config.lora) if config.lora else own, config)
    first = None if schema.first_id is None else schema.tokenizer.token_of(schema.first_id)
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": schema.tokenizer.end_token, "bos_token": first,
        "model_max_length": config.context_length, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    if schema.chat_template is not None:
        words["chat_template"] = schema.chat_template
    folder.mkdir(parents=True)
    files = {"config.json": shape, "generation_config.json": ends, "tokenizer_config.json": words}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    (folder / "tokenizer.json").write_bytes(schema.tokenizer.to_bytes())
    _save(tensors, folder, shard_bytes)


def _save(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int) -> None:
    """One file, or shards of at most so many bytes (of one tensor at least) with their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WHOLE, {"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(t.nbytes for t in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n")


def read_folder(folder: Path) -> tuple[LmConfig, TextSchema, dict[str, Tensor]]:
    """Shape, schema and weights (float32, as a bundle names them) of a folder of `transformers`. Raises UserError."""
    given = _json(folder, "config.json")
    config = LmConfig(**llama.from_llama(given))
    words = _json(folder, "tokenizer_config.json", {})
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; `AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)` makes one"
        )
    file = (folder / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer(file, _end_token(folder, file, given, words))
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"{folder}: tokenizer.json has {tokenizer.size} entries, more than config.json's vocab_size ({config.vocab_size})"
        )
    template = words.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text()
    if isinstance(template, list):  # several by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    schema = TextSchema(
        tokenizer=tokenizer,
        task="pretrain",
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        features=(Feature("text", "text", "Hello"),),
        chat_template=template,
        first_token=tokenizer.first_token(),
    )
    names, read = _weights(folder)
    tensors = llama.weights_from_llama(names, read, config)
    return config, schema, {f"lm/{name}": tensor for name, tensor in tensors.items()}


def _json(folder: Path, name: str, default: Any = None) -> Any:
    file = folder / name
    if default is not None and not file.is_file():
        return default
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no folder of a Hugging Face model: {name}: {error}") from error


def _end_token(folder: Path, file: bytes, config: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """The token after a text: the tokenizer's own `eos_token`, else what the id of `config.json` stands for."""
    token = words.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
        return token
    number = config.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    for entry in json.loads(file).get("added_tokens", []):
        if entry["id"] == number:
            return str(entry["content"])
    raise UserError(
        f"{folder}: no eos_token in tokenizer_config.json, and none with the eos_token_id of config.json ({number})"
    )


def _weights(folder: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    """Names of the tensors of a folder, and a reader of each; a file is opened when one of it is read."""
    if (folder / INDEX).is_file():
        places: dict[str, str] = _json(folder, INDEX)["weight_map"]
    elif (folder / WHOLE).is_file():
        with safe_open(folder / WHOLE, framework="pt") as file:
            places = dict.fromkeys(file.keys(), WHOLE)
    else:
        raise UserError(f"{folder} has neither {WHOLE} nor {INDEX}; weights in pickle files (.bin) are not read")
    if missing := sorted({name for name in places.values() if not (folder / name).is_file()}):
        raise UserError(f"{folder}: {', '.join(missing)} is missing")

    def read(name: str) -> Tensor:
        with safe_open(folder / places[name], framework="pt") as file:
            return file.get_tensor(name).to(torch.float32)  # type: ignore[no-any-return]

    return list(places), read
