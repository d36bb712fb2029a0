"""A Transformer arranged for making tokens: packed weights, and a preallocated cache of keys and values.

N sequences that are being made, each with its own length; the other letters are those of `transformer`. What it gives
differs from the module's own logits by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seekray.models.products import ONEDNN
from seekray.models.transformer import Transformer, TransformerConfig

FEW_ROWS = 3  # up to here a product with the transposed matrix is the fastest, beyond it oneDNN's
TYPICAL_ROWS = 16  # that oneDNN arranges a matrix for


class Packed:
    """A linear layer whose matrix is stored as the processor reads it fastest; (N, in) -> (N, out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.transposed = weight.t().contiguous()
        self.bias = bias
        self._blocked: Tensor | None = None
        self._blocks = weight.device.type == "cpu" and weight.dtype == torch.float32 and ONEDNN

    def __call__(self, x: Tensor) -> Tensor:
        if self._blocks and x.shape[0] > FEW_ROWS:
            if self._blocked is None:
                self._blocked = torch.ops.mkldnn._reorder_linear_weight(self.transposed.t().contiguous(), TYPICAL_ROWS)
            return torch.ops.mkldnn._linear_pointwise(x, self._blocked, self.bias, "none", [], "")  # type: ignore[no-any-return]
        return torch.mm(x, self.transposed) if self.bias is None else torch.addmm(self.bias, x, self.transposed)


class Norm:
    """Normalisation of x (N, C), its gain left out where `folded` into the matrix that follows."""

    def __init__(self, norm: nn.Module, folded: bool) -> None:
        self._norm = norm
        self._eps: Tensor | None = None
        if folded and isinstance(norm, nn.RMSNorm):
            # x / √(Σx² + C·eps): the factor √C is folded too
            assert norm.eps is not None
            self._eps = torch.full_like(norm.weight[:1], math.sqrt(norm.weight.numel() * norm.eps))

    def __call__(self, x: Tensor) -> Tensor:
        if self._eps is None:
            return self._norm(x)  # type: ignore[no-any-return]
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / length.hypot(self._eps)

    def fold(self, weight: Tensor) -> Tensor:
        """The matrix (out, C) that follows, with what this norm leaves out."""
        if self._eps is None:
            return weight
        gain: Tensor = self._norm.weight * math.sqrt(weight.shape[1])  # type: ignore[assignment, operator]
        return weight * gain


@dataclass(frozen=True)
class Layer:
    """One block's packed weights."""

    attention_norm: Norm
    qkv: Packed
    out: Packed
    ffn_norm: Norm
    up: Packed
    down: Packed


class Weights:
    """A Transformer's weights, arranged once; any number of decoders may share them. It holds them beside the module's own."""

    def __init__(self, net: Transformer) -> None:
        self.config, self.net = net.config, net
        with torch.no_grad():
            self.layers = [self._layer(block, net.config) for block in net.blocks]
            self.norm = Norm(net.norm, folded=True)
            head = net.embedding.weight if net.head is None else net.head.weight
            self.head = Packed(self.norm.fold(head))
            self.turns: Tensor | None = None
            if net.rope is not None:
                cos, sin = net.rope  # type: ignore[misc]
                self.turns = torch.complex(cos.float(), sin.float())  # (context_length, D / 2)

    @classmethod
    def of(cls, net: Transformer) -> Weights:
        """Those made last, unless the module has learned since."""
        state = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in net.parameters())
        kept: tuple[object, Weights] | None = net.__dict__.get("_packed")
        if kept is None or kept[0] != state:
            kept = net.__dict__["_packed"] = (state, cls(net))
        return kept[1]

    @staticmethod
    def _layer(block: nn.Module, config: TransformerConfig) -> Layer:
        first = config.norm_first
        attention_norm, ffn_norm = Norm(block.attention_norm, first), Norm(block.ffn_norm, first)  # type: ignore[arg-type]
        qkv, out = block.attention.qkv, block.attention.out  # type: ignore[union-attr]
        up, down = block.ffn.up, block.ffn.down  # type: ignore[union-attr]
        order = _order(config).to(qkv.weight.device)  # type: ignore[union-attr, arg-type]
        scale = torch.ones(len(order), 1, dtype=qkv.weight.dtype, device=qkv.weight.device)  # type: ignore[union-attr, arg-type]
        scale[: config.num_heads * config.head_dim] = config.head_dim**-0.5
        bias = None if qkv.bias is None else (qkv.bias[order] * scale[:, 0])  # type: ignore[union-attr, index]
        return Layer(
            attention_norm,
            Packed(attention_norm.fold(qkv.weight)[order] * scale, bias),  # type: ignore[union-attr, arg-type]
            Packed(out.weight, out.bias),  # type: ignore[union-attr, arg-type]
            ffn_norm,
            Packed(ffn_norm.fold(up.weight), up.bias),  # type: ignore[union-attr, arg-type]
            Packed(down.weight, down.bias),  # type: ignore[union-attr, arg-type]
        )


def _order(config: TransformerConfig) -> Tensor:
    """Rows of `qkv` so that the pairs which rope turns, (i, i + D/2) of queries and keys, lie side by side.

    Scores do not change where queries and keys are permuted alike, and a pair can be turned as one complex number.
    """
    heads = config.num_heads + config.kv_heads
    rows = torch.arange((heads + config.kv_heads) * config.head_dim)
    if config.position == "rope":
        turned = rows[: heads * config.head_dim].view(heads, 2, config.head_dim // 2).transpose(1, 2)
        rows = torch.cat([turned.flatten(), rows[heads * config.head_dim :]])
    return rows


class Decoder:
    """Sequences that grow a token at a time. They are the first N rows of a cache with room for `rows` × `size` tokens.

    `add` starts one more, `step` gives every one its next token, `drop` ends one; so sequences may come and go.
    """

    def __init__(self, weights: Weights, rows: int, size: int) -> None:
        self.weights, self.config = weights, weights.config
        self.rows, self.size = rows, min(size, self.config.context_length)
        first = weights.net.embedding.weight
        c = self.config
        self._heads, self._kv_heads, self._head_dim = c.num_heads, c.kv_heads, c.head_dim
        self._cache = torch.zeros(
            c.num_layers, 2, rows, c.kv_heads, self.size, c.head_dim, dtype=first.dtype, device=first.device
        )  # (L, 2, rows, G, S, D)
        self._flat = self._cache.view(c.num_layers, -1, c.head_dim)
        # where row b's keys and values of head g begin in `_flat`, in the order of a row of `qkv`: (rows, 2 G)
        starts = torch.arange(2 * rows * c.kv_heads, device=first.device).view(2, rows, c.kv_heads) * self.size
        self._starts = starts.transpose(0, 1).reshape(rows, -1)
        self._columns = torch.arange(self.size, device=first.device)
        self.lengths: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, prompts: Sequence[Sequence[int]], copies: Sequence[int] | None = None) -> Tensor:
        """Start a sequence for each prompt of ids (each `copies` times), without padding; logits (N', V) of the next token."""
        copies = copies or [1] * len(prompts)
        lengths = [len(p) for p in prompts]
        if len(self) + sum(copies) > self.rows or max(lengths) > self.size or min(lengths) == 0:
            raise ValueError(
                f"{sum(copies)} prompts of up to {max(lengths)} tokens given, expected 1 to {self.size} in free rows"
            )
        device = self._cache.device
        tokens = torch.tensor([t for p in prompts for t in p], device=device)
        positions = torch.cat([self._columns[:n] for n in lengths])
        firsts = [len(self) + sum(copies[:i]) for i in range(len(prompts))]

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            # q (sum T, H, D), kv (sum T, 2, G, D): one causal attention a prompt
            parts = []
            for row, count, q1, kv1 in zip(firsts, copies, torch.split(q, lengths), torch.split(kv, lengths), strict=True):
                k, v = kv1.permute(1, 2, 0, 3)  # (G, T, D)
                for copy in range(row, row + count):
                    self._cache[layer, 0, copy, :, : k.shape[1]] = k
                    self._cache[layer, 1, copy, :, : k.shape[1]] = v
                y = F.scaled_dot_product_attention(
                    q1.transpose(0, 1)[None], k[None], v[None], is_causal=True, scale=1.0, enable_gqa=k.shape[0] != q1.shape[1]
                )
                parts.append(y[0].transpose(0, 1))
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        hidden = self._hidden(tokens, positions, attend)
        self.lengths += [n for n, count in zip(lengths, copies, strict=True) for _ in range(count)]
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        logits = self.weights.head(hidden[last])
        return logits if len(logits) == sum(copies) else logits.repeat_interleave(torch.tensor(copies, device=device), dim=0)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Each sequence's newest token, (N,) -> logits (N, V) of the one after it."""
        n, groups, size = len(self), len(self) * self._kv_heads, self._head_dim
        end = max(self.lengths) + 1
        if end > self.size:
            raise ValueError(f"a sequence has {end - 1} tokens, there is room for {self.size}")
        positions = torch.tensor(self.lengths, device=self._cache.device)
        places = (self._starts[:n] + positions[:, None]).flatten()
        hidden_columns = None
        if min(self.lengths) + 1 < end:
            later = self._columns[:end] > positions[:, None]
            hidden_columns = later.repeat_interleave(self._kv_heads, 0)[:, None]  # (N G, 1, end)
        shared = self._heads // self._kv_heads

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            self._flat[layer].index_copy_(0, places, kv.reshape(-1, size))
            k, v = self._cache[layer, :, :n].view(2, groups, self.size, size)[:, :, :end]
            scores = torch.bmm(q.reshape(groups, shared, size), k.transpose(1, 2))  # (N G, H / G, end)
            if hidden_columns is not None:
                scores.masked_fill_(hidden_columns, -math.inf)
            return torch.bmm(scores.softmax(-1), v).view(n, -1, size)

        logits = self.weights.head(self._hidden(torch.tensor(tokens, device=self._cache.device), positions, attend))
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def drop(self, row: int) -> None:
        """End a sequence; the last one takes its row."""
        last = len(self) - 1
        if row != last:
            length = self.lengths[last]
            self._cache[:, :, row, :, :length] = self._cache[:, :, last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()

    def _hidden(self, tokens: Tensor, positions: Tensor, attend: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """Tokens and their positions (M,) -> normalised states (M, C); `attend(layer, q, kv)` gives (M, H, D)."""
        weights, first, ffn, size = self.weights, self.config.norm_first, self.config.ffn, self._head_dim
        queries, turning = self._heads * size, (self._heads + self._kv_heads) * size
        count = len(positions)
        x = weights.net.embed(tokens, positions)
        turns = None if weights.turns is None else weights.turns[positions][:, None]  # (M, 1, D / 2)
        for number, layer in enumerate(weights.layers):
            qkv = layer.qkv(layer.attention_norm(x) if first else x)
            if turns is not None:
                pairs = qkv[:, :turning].view(count, -1, size // 2, 2)
                if qkv.dtype == torch.float32:
                    torch.view_as_complex(pairs).mul_(turns)
                else:
                    pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * turns))
            q, kv = qkv[:, :queries].view(count, -1, size), qkv[:, queries:].view(count, 2, -1, size)
            y = layer.out(attend(number, q, kv).flatten(1))
            x = x.add_(y) if first else layer.attention_norm(x + y)
            y = layer.up(layer.ffn_norm(x) if first else x)
            if ffn == "swiglu":
                gate, y = y.chunk(2, dim=-1)
                y = F.silu(gate).mul_(y)
            else:
                y = F.relu(y) if ffn == "relu" else F.gelu(y)
            y = layer.down(y)
            x = x.add_(y) if first else layer.ffn_norm(x + y)
        return weights.norm(x)
