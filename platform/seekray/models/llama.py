"""Our Transformer's shape and weights under the names of Hugging Face's `LlamaForCausalLM`, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from seekray.errors import UserError
from seekray.models.transformer import TransformerConfig

ARCHITECTURE = "LlamaForCausalLM"
LLAMA = {"position": "rope", "norm": "rms", "norm_first": True, "ffn": "swiglu"}
# our name in a block -> the parts that are stacked in it, as theirs
PARTS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "ffn.up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.down": ("mlp.down_proj",),
}
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ENDS = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}


def to_llama(config: TransformerConfig, vocab_size: int) -> dict[str, Any]:
    """`config.json` of the same shape. Raises UserError for a shape that Llama does not have."""
    other = {name: getattr(config, name) for name, value in LLAMA.items() if getattr(config, name) != value}
    if other:
        given = ", ".join(f"model.{name}: {value}" for name, value in other.items())
        wanted = ", ".join(f"{name}: {LLAMA[name]}" for name in other)
        raise UserError(f"{given} has no counterpart in {ARCHITECTURE}, which has {wanted}", field=f"model.{next(iter(other))}")
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.inner_size,
        "max_position_embeddings": config.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # where readers look that are older than rope_parameters
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def from_llama(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `model:` for a `config.json`. Raises UserError for what our Transformer does not have."""

    def refuse(name: str, expected: str) -> UserError:
        return UserError(f"config.json: {name}: {given.get(name)!r} given, expected {expected}", field=name)

    if ARCHITECTURE not in (given.get("architectures") or []):
        raise refuse("architectures", f"[{ARCHITECTURE!r}]")
    if given.get("hidden_act", "silu") not in ("silu", "swish"):
        raise refuse("hidden_act", "silu")
    bias = bool(given.get("attention_bias", False))
    if bool(given.get("mlp_bias", False)) != bias:
        raise refuse("mlp_bias", f"as attention_bias ({bias})")
    rope = dict(given.get("rope_parameters") or given.get("rope_scaling") or {})
    if (rope.get("rope_type") or rope.get("type") or "default") != "default":
        raise refuse("rope_parameters" if given.get("rope_parameters") else "rope_scaling", "rope_type: default")
    heads = given["num_attention_heads"]
    head_size = given.get("head_dim") or given["hidden_size"] // heads
    return LLAMA | {
        "vocab_size": given["vocab_size"],
        "hidden_size": given["hidden_size"],
        "num_layers": given["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": given.get("num_key_value_heads") or heads,
        "head_size": None if head_size * heads == given["hidden_size"] else head_size,
        "intermediate_size": given["intermediate_size"],
        "context_length": given.get("max_position_embeddings", 2048),
        "norm_eps": given.get("rms_norm_eps", 1e-6),
        "rope_theta": float(rope.get("rope_theta") or given.get("rope_theta") or 10_000.0),
        "tie_embeddings": bool(given.get("tie_word_embeddings", False)),
        "bias": bias,
    }


def weights_to_llama(tensors: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """A Transformer's tensors under their names."""
    out = {theirs: tensors[ours] for ours, theirs in ENDS.items()}
    if not config.tie_embeddings:
        out["lm_head.weight"] = tensors["head.weight"]
    for layer in range(config.num_layers):
        for ours, theirs in NORMS.items():
            out[f"model.layers.{layer}.{theirs}.weight"] = tensors[f"blocks.{layer}.{ours}.weight"]
        for ours, parts in PARTS.items():
            for kind in ("weight", "bias") if config.bias else ("weight",):
                whole = tensors[f"blocks.{layer}.{ours}.{kind}"]
                for part, tensor in zip(parts, torch.split(whole, _sizes(ours, config)), strict=True):
                    out[f"model.layers.{layer}.{part}.{kind}"] = tensor
    return {name: tensor.contiguous() for name, tensor in out.items()}


def weights_from_llama(names: Iterable[str], read: Callable[[str], Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """A Transformer's tensors, float32, from theirs. names: those that are there. Raises UserError for one that is missing."""
    there = set(names)

    def get(name: str) -> Tensor:
        if name not in there:
            raise UserError(f"the weights have no {name}; expected those of a {ARCHITECTURE} as config.json says")
        return read(name).float()

    out = {ours: get(theirs) for ours, theirs in ENDS.items()}
    if not config.tie_embeddings:
        out["head.weight"] = get("lm_head.weight")
    for layer in range(config.num_layers):
        for ours, theirs in NORMS.items():
            out[f"blocks.{layer}.{ours}.weight"] = get(f"model.layers.{layer}.{theirs}.weight")
        for ours, parts in PARTS.items():
            for kind in ("weight", "bias") if config.bias else ("weight",):
                out[f"blocks.{layer}.{ours}.{kind}"] = torch.cat([get(f"model.layers.{layer}.{p}.{kind}") for p in parts])
    return out


def _sizes(name: str, config: TransformerConfig) -> list[int]:
    """Rows of each part of a stacked matrix."""
    if name == "attention.qkv":
        return [n * config.head_dim for n in (config.num_heads, config.kv_heads, config.kv_heads)]
    return [config.inner_size] * 2 if name == "ffn.up" else [config.hidden_size]
