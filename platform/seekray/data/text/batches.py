"""A rank's share of each step's windows of a token stream, with an exact position."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from seekray.data.batches import Batch, RankBatches
from seekray.data.parse import Array
from seekray.data.text.passages import EVALUATED_TOKENS, IGNORED, PassageBatches, Passages
from seekray.data.text.tokens import TokenStream

if TYPE_CHECKING:
    from seekray.config import Training

_MIX = np.uint64(0x9E3779B97F4A7C15)


def shuffled(numbers: Array, size: int, key: int) -> Array:
    """Where a permutation of 0 … size-1 puts each number: four Feistel rounds, no table, so memory does not grow.

    A permutation of the next power of 4, walked until the number is below `size`.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    out = np.asarray(numbers, dtype=np.uint64).copy()
    todo = np.ones(len(out), dtype=bool)
    with np.errstate(over="ignore"):
        while todo.any():
            left, right = out[todo] >> half, out[todo] & mask
            for turn in range(4):
                mixed = (right + np.uint64((key * 4 + turn + 1) % 2**64)) * _MIX
                mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
                left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
            out[todo] = (left << half) | right
            todo[todo] = out[todo] >= size
    return out.astype(np.int64)


class TokenBatches(RankBatches):
    """Windows of a stream: `tokens` (B, T) and, as targets, the tokens that follow (B, T).

    Each epoch takes the windows in another order and, in training, from another offset, so that a token is not always
    seen with the same context. The position is epoch and step alone. In evaluation every token is a target
    once, `inputs["bytes"]` (B,) is the text that a window's targets stand for, and a short last window is filled with IGNORED.
    """

    def __init__(self, stream: TokenStream, *, shuffle: bool = True, **where: Any) -> None:
        self._stream, self._context = stream, min(stream.context, max(1, stream.size - 1))
        spare = shuffle and len(stream) > 1
        # Training takes whole windows after an offset: one fewer than fit.
        rows = max(1, (stream.size - 1) // self._context - 1) if spare else len(stream)
        super().__init__(rows, shuffle=shuffle, **where)
        self._offsets = stream.size - rows * self._context if spare else 1
        self._offset = 0  # of the epoch
        self.positions = self._context  # of a row: a weight is used at each

    def _order(self) -> Callable[[int], Tensor]:
        key, self._offset = self._seed * 1_000_003 + self.epoch, 0
        if self._shuffle:
            self._offset = int(np.random.default_rng((self._seed, self.epoch)).integers(0, self._offsets))

        def rows(step: int) -> Tensor:
            index = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.num_rows))
            return torch.from_numpy(shuffled(index, self.num_rows, key) if self._shuffle else index)

        return rows

    def _count(self, index: Tensor) -> int:
        starts = self._offset + index.numpy() * self._context
        return int(np.minimum(self._context, self._stream.size - 1 - starts).sum())

    def _batch(self, index: Tensor, global_rows: int, last: bool) -> Batch:
        windows = np.full((len(index), self._context + 1), -1, dtype=np.int64)
        for row, start in enumerate((self._offset + index * self._context).tolist()):
            found = self._stream.read(start, self._context + 1)
            windows[row, : len(found)] = found
        whole = self._move(torch.from_numpy(windows))
        targets = whole[:, 1:]
        inputs = {"tokens": whole[:, :-1].clamp_min(0)}
        if not self._shuffle:
            targets = targets.masked_fill(targets < 0, IGNORED)
            share = self._stream.bytes / max(1, self._stream.size - 1)
            inputs["bytes"] = (targets != IGNORED).sum(1).to(self._dtype) * share
        return Batch(inputs, targets, index, global_rows, last)


def text_batches(
    data: TokenStream | Passages, training: Training, *, evaluate: bool = False, **where: Any
) -> TokenBatches | PassageBatches:
    """Batches for a family of texts; see `Family.batches`. A row of `training.batch_size` is a window or a text."""
    longest = data.context if isinstance(data, TokenStream) else int(data.lengths.max(initial=1))
    kind: Any = TokenBatches if isinstance(data, TokenStream) else PassageBatches
    if evaluate:
        size = max(1, EVALUATED_TOKENS // longest) * where.get("world_size", 1)
        batches: TokenBatches | PassageBatches = kind(data, batch_size=size, shuffle=False, **where)
    else:
        batches = kind(data, batch_size=training.batch_size, parts=training.accumulate, seed=training.seed, **where)
    return batches
