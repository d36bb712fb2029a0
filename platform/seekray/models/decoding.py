"""A Transformer arranged for making tokens: packed weights, and a cache of keys and values in blocks.

N sequences that are being made, each with its own length; the other letters are those of `transformer`. What it gives
differs from the module's own logits by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seekray.models.blocks import BLOCK
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


@dataclass(frozen=True)
class Run:
    """What a sequence puts through the network in one step: tokens after the `start` that are in its blocks already."""

    tokens: Sequence[int]
    start: int
    table: Sequence[int]  # its blocks, with room for the tokens too


class Decoder:
    """Runs of many sequences at once over a cache of `blocks` of `size` tokens. Who owns which block is the caller's matter.

    Keys and values of a step are written before they are read, so that a sequence may share a block that another one fills
    in the same step.
    """

    def __init__(self, weights: Weights, blocks: int, size: int = BLOCK) -> None:
        self.weights, self.config, self.size = weights, weights.config, size
        first = weights.net.embedding.weight
        c = self.config
        self._heads, self._kv_heads, self._head_dim = c.num_heads, c.kv_heads, c.head_dim
        self._device, self._dtype = first.device, first.dtype
        # (L, 2, blocks × G, size, D): what a sequence's head reads of a block lies together
        self._cache = torch.zeros(
            c.num_layers, 2, blocks * c.kv_heads, size, c.head_dim, dtype=first.dtype, device=first.device
        )
        self._flat = self._cache.view(c.num_layers, -1, c.head_dim)
        heads = torch.arange(c.kv_heads, device=first.device)
        self._of_head = heads[:, None]  # (G, 1)
        # where a token's keys and values lie in `_flat` from its block on, in the order of a row of `qkv`: (2 G,)
        self._places = torch.cat([heads, heads + blocks * c.kv_heads]) * size
        self._columns = torch.arange(c.context_length, device=first.device)
        self._gathered = self._cache.new_empty(2, 0, size, c.head_dim)

    def __call__(self, runs: Sequence[Run]) -> Tensor:
        """Logits (N, V) of the token after each run."""
        for run in runs:
            length, room = run.start + len(run.tokens), len(run.table) * self.size
            if length > min(self.config.context_length, room):
                raise ValueError(
                    f"a sequence of {length} tokens given, there is room for {self.config.context_length}, "
                    f"and for {room} in {len(run.table)} blocks of {self.size}"
                )
        # Single tokens first, the longest sequences before the others; then prompts.
        order = sorted(range(len(runs)), key=lambda i: (_prompt(runs[i]), -runs[i].start))
        ordered = [runs[i] for i in order]
        counts = [len(run.tokens) for run in ordered]
        at = [p for run, n in zip(ordered, counts, strict=True) for p in range(run.start, run.start + n)]
        blocks = [
            run.table[p // self.size] for run, n in zip(ordered, counts, strict=True) for p in range(run.start, run.start + n)
        ]
        given = [[t for run in ordered for t in run.tokens], at, blocks]
        tokens, positions, inside = torch.tensor(given, device=self._device)
        first = (inside * self._kv_heads).mul_(self.size).add_(positions % self.size)
        places = (first[:, None] + self._places).view(-1)
        readers: list[Callable[[int, Tensor, Tensor], Tensor]] = []
        sizes: list[int] = []
        singles = sum(not _prompt(run) for run in ordered)
        for begin, end in _alike(ordered[:singles]):
            readers.append(self._singles(ordered[begin:end], positions[begin:end]))
            sizes.append(end - begin)
        for run, n in zip(ordered[singles:], counts[singles:], strict=True):
            begin = sum(sizes)
            readers.append(self._prompt(run, positions[begin : begin + n]))
            sizes.append(n)

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            self._flat[layer].index_copy_(0, places, kv.reshape(-1, self._head_dim))
            if len(readers) == 1:
                return readers[0](layer, q, kv)
            parts = zip(readers, torch.split(q, sizes), torch.split(kv, sizes), strict=True)
            return torch.cat([read(layer, q1, kv1) for read, q1, kv1 in parts])

        hidden = self._hidden(tokens, positions, attend)
        ends = list(accumulate(counts))
        back = [0] * len(runs)
        for number, end in zip(order, ends, strict=True):
            back[number] = end - 1
        return self.weights.head(hidden if back == list(range(len(hidden))) else hidden[back])

    def _singles(self, runs: Sequence[Run], positions: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
        """Attention of one token each, q (N, H, D) -> (N, H, D).

        Keys and values are gathered from the blocks and multiplied as one batch: on a CPU as fast as a cache that
        is contiguous for each sequence, up to 256 tokens (docs/benchmarks.md).
        """
        n, size, shared = len(runs), self._head_dim, self._heads // self._kv_heads
        groups, end = n * self._kv_heads, runs[0].start + 1
        blocks = -(-end // self.size)
        table = torch.tensor([[*run.table[:blocks], *[0] * (blocks - len(run.table))] for run in runs], device=self._device)
        index = ((table * self._kv_heads)[:, None] + self._of_head).view(-1)  # (N G blocks,)
        later = None
        if runs[-1].start + 1 < end:
            later = (self._columns[:end] > positions[:, None]).repeat_interleave(self._kv_heads, 0)[:, None]  # (N G, 1, end)
        if self._gathered.shape[1] < len(index):
            self._gathered = self._cache.new_empty(2, len(index), self.size, size)
        room = self._gathered.view(-1)[: 2 * len(index) * self.size * size].view(2, len(index), self.size, size)

        def read(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            k, v = torch.index_select(self._cache[layer], 1, index, out=room).view(2, groups, -1, size)[:, :, :end]
            scores = torch.bmm(q.reshape(groups, shared, size), k.transpose(1, 2))  # (N G, H / G, end)
            if later is not None:
                scores.masked_fill_(later, -math.inf)
            return torch.bmm(scores.softmax(-1), v).view(n, -1, size)

        return read

    def _prompt(self, run: Run, positions: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
        """Causal attention of a part of a prompt, q (T, H, D) -> (T, H, D), over what is in its blocks before and itself."""
        grouped = self._heads != self._kv_heads
        end = run.start + len(run.tokens)
        table = torch.tensor(run.table[: -(-end // self.size)], device=self._device)
        index = (table * self._kv_heads + self._of_head).flatten()  # (G blocks,)
        seen = None if run.start == 0 else self._columns[:end] <= positions[:, None]  # (T, end)

        def read(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            k, v = kv.permute(1, 2, 0, 3)  # (G, T, D)
            if seen is not None:
                k, v = self._cache[layer].index_select(1, index).view(2, self._kv_heads, -1, self._head_dim)[:, :, :end]
            y = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], k[None], v[None], attn_mask=seen, is_causal=seen is None, scale=1.0, enable_gqa=grouped
            )
            return y[0].transpose(0, 1)

        return read

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


def _prompt(run: Run) -> bool:
    return len(run.tokens) > 1 or run.start == 0


def _alike(runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """Begins and ends of those, longest first, that are at least half as long as their first: padding stays below a half."""
    begin = 0
    for number in range(1, len(runs) + 1):
        if number == len(runs) or 2 * runs[number].start < runs[begin].start:
            yield begin, number
            begin = number
