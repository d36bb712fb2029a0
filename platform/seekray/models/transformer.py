"""The Transformer (arXiv:1706.03762) and its Llama-shaped descendant (arXiv:2302.13971), by configuration.

B sequences, T positions, C channels (`hidden_size`), H query heads and G key/value heads of D channels each,
V entries of the vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seekray.models.family import ModelConfig
from seekray.models.products import Linear, linear


class TransformerConfig(ModelConfig):
    """The shape of the network. The defaults are Llama's: rotary positions, RMS norm before each part, SwiGLU."""

    hidden_size: int = Field(128, ge=1, description="channels of a position")
    num_layers: int = Field(4, ge=0)
    num_heads: int = Field(4, ge=1, description="query heads of each attention")
    num_kv_heads: int | None = Field(None, ge=1, description="key/value heads that query heads share; null: as num_heads")
    head_size: int | None = Field(None, ge=1, description="channels of a head; null: hidden_size / num_heads")
    intermediate_size: int | None = Field(
        None, ge=1, description="of the feed-forward; null: 4 × hidden_size, for swiglu 8/3 of it rounded up to 32"
    )
    vocab_size: int = Field(1024, ge=1, description="entries of the vocabulary; a tokenizer that is trained gets this many")
    context_length: int = Field(256, ge=1, description="positions that the model can look at")
    position: Literal["sinusoidal", "learned", "rope"] = Field("rope", description="sinusoidal is the source's")
    norm: Literal["layer", "rms"] = Field("rms", description="layer is the source's")
    norm_first: bool = Field(True, description="before each part and at the end; false: after each sum, as the source's")
    ffn: Literal["relu", "gelu", "swiglu"] = Field("swiglu", description="relu is the source's")
    tie_embeddings: bool = Field(True, description="the output layer is the embedding's own matrix")
    bias: bool = Field(False, description="in the linear layers; the source's has them")
    dropout: float = Field(0.0, ge=0, lt=1, description="on embeddings, attention weights and each part's output")
    rope_theta: float = Field(10_000.0, gt=0, description="rope: the longest wavelength is 2π times this")
    norm_eps: float = Field(1e-5, gt=0)

    @model_validator(mode="after")
    def _shape(self) -> TransformerConfig:
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.hidden_size: {self.hidden_size} given, expected a multiple of model.num_heads ({self.num_heads})"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_kv_heads: {self.kv_heads} given, expected a divisor of model.num_heads ({self.num_heads})"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"model.position: rope turns pairs of channels, a head has {self.head_dim}")
        return self

    @property
    def kv_heads(self) -> int:
        """G."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """D."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def inner_size(self) -> int:
        """Channels inside the feed-forward."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        return 32 * math.ceil(self.hidden_size * 8 / 3 / 32) if self.ffn == "swiglu" else 4 * self.hidden_size


def rope_tables(config: TransformerConfig) -> Tensor:
    """cos and sin of position × frequency, (2, context_length, D / 2) (arXiv:2104.09864)."""
    frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angles = torch.arange(config.context_length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of heads x (B, H, T, D) by cos and sin (2, T, D/2)."""
    cos, sin = tables.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def sinusoids(positions: int, channels: int) -> Tensor:
    """sin and cos of geometrically falling frequencies, (positions, channels) (arXiv:1706.03762, 3.5)."""
    steps = torch.arange(0, channels, 2, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * 10_000.0 ** (-steps / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :channels].float()


class Attention(nn.Module):
    """softmax(QKᵀ/√D)V over H heads; query heads share key/value heads in groups (arXiv:2305.13245)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.kv_heads, config.head_dim
        # One product for queries, keys and values: rows are H·D of Q, then G·D of K, then G·D of V.
        self.qkv = Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=config.bias)
        self.out = Linear(self.heads * self.head_dim, config.hidden_size, bias=config.bias)
        self.dropout = config.dropout

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> q (B, H, T, D), k and v (B, G, T, D)."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2G, T, D)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return q, k, v

    def forward(
        self, x: Tensor, *, causal: bool, mask: Tensor | None = None, rope: Tensor | None = None
    ) -> Tensor:  # (B, T, C) -> (B, T, C)
        q, k, v = self.project(x)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(  # (B, H, T, D)
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with relu or gelu between, or SwiGLU: (silu(gate) · up) down (arXiv:2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kind, inner = config.ffn, config.inner_size
        self.up = Linear(config.hidden_size, inner * (2 if self.kind == "swiglu" else 1), bias=config.bias)
        self.down = Linear(inner, config.hidden_size, bias=config.bias)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and up. Two products, since silu of one half of each row takes several times as long as of whole rows."""
        if type(self.up) is not Linear:  # an adapter
            gate, up = self.up(x).chunk(2, dim=-1)
            return gate, up
        gates, ups = self.up.weight.chunk(2)
        biases = (None, None) if self.up.bias is None else self.up.bias.chunk(2)
        return linear(x, gates, biases[0]), linear(x, ups, biases[1])

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        if self.kind == "swiglu":
            gate, y = self._halves(x)
            y = F.silu(gate) * y
        else:
            y = self.up(x)
            y = F.relu(y) if self.kind == "relu" else F.gelu(y)
        return self.down(y)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each added to what came in."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention_norm, self.ffn_norm = _norm(config), _norm(config)
        self.attention, self.ffn = Attention(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, causal: bool, mask: Tensor | None, rope: Tensor | None) -> Tensor:  # (B, T, C) -> (B, T, C)
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), causal=causal, mask=mask, rope=rope))
            return x + self.dropout(self.ffn(self.ffn_norm(x)))  # type: ignore[no-any-return]
        x = self.attention_norm(x + self.dropout(self.attention(x, causal=causal, mask=mask, rope=rope)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Token ids (B, T) -> logits (B, T, V).

    checkpointing: recompute each block in the backward pass instead of keeping its activations (arXiv:1604.06174).
    """

    def __init__(self, config: TransformerConfig, vocab_size: int | None = None) -> None:
        super().__init__()
        self.config, self.checkpointing = config, False
        self.vocab_size = vocab_size or config.vocab_size
        self.embedding = nn.Embedding(self.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.context_length, config.hidden_size) if config.position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = _norm(config) if config.norm_first else nn.Identity()
        self.head = None if config.tie_embeddings else Linear(config.hidden_size, self.vocab_size, bias=False)
        self.register_buffer("rope", rope_tables(config) if config.position == "rope" else None, persistent=False)
        waves = sinusoids(config.context_length, config.hidden_size) if config.position == "sinusoidal" else None
        self.register_buffer("waves", waves, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's: normal with 0.02, less by √(2L) where a part's output is added to the stream."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.num_layers) if last else 0.02)
        if self.waves is not None:  # scaled by √C in `embed`: as large as the sinusoids
            nn.init.normal_(self.embedding.weight, std=self.config.hidden_size**-0.5)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, T) and positions (T,) or (B, T) -> (B, T, C)."""
        x: Tensor = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(positions)
        if self.waves is not None:
            x = x * math.sqrt(self.config.hidden_size) + self.waves[positions]  # type: ignore[index]
        return self.dropout(x)  # type: ignore[no-any-return]

    def hidden(self, tokens: Tensor, *, causal: bool = True, lengths: Tensor | None = None) -> Tensor:
        """States before the output layer, (B, T) -> (B, T, C).

        causal: a position sees itself and what is before it; else it sees all.
        lengths: (B,) tokens of each sequence, the rest being padding on the right that no other position sees
            (under `causal` none would, so that nothing needs masking).
        Raises ValueError beyond `context_length`. (`decoding` is for making tokens: it keeps keys and values.)
        """
        T, room = tokens.shape[1], self.config.context_length
        if room < T:
            raise ValueError(f"{T} positions given, there is room for {room}")
        mask = None
        if lengths is not None and not causal:
            mask = (torch.arange(T, device=tokens.device) < lengths[:, None])[:, None, None]  # (B, 1, 1, T)
        x = self.embed(tokens, torch.arange(T, device=tokens.device))
        rope = None if self.rope is None else self.rope[:, :T]  # type: ignore[index]
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, causal, mask, rope, use_reentrant=False)
            else:
                x = block(x, causal, mask, rope)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        return linear(hidden, self.embedding.weight if self.head is None else self.head.weight)

    def forward(self, tokens: Tensor, *, causal: bool = True, lengths: Tensor | None = None, logits: bool = True) -> Tensor:
        """Logits, (B, T) -> (B, T, V), or without them the states of `hidden`."""
        hidden = self.hidden(tokens, causal=causal, lengths=lengths)
        return self.logits(hidden) if logits else hidden


def _norm(config: TransformerConfig) -> nn.Module:
    """Layer normalisation (arXiv:1607.06450) or by the root of the mean square (arXiv:1910.07467)."""
    if config.norm == "rms":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)
