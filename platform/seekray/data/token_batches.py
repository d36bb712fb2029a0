"""A rank's share of each step's windows of a token stream, with an exact position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seekray.data.batches import Batch
from seekray.data.parse import Array
from seekray.data.passages import EVALUATED_TOKENS, IGNORED, PassageBatches, Passages
from seekray.data.tokens import TokenStream

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


class TokenBatches:
    """Windows of a stream: `tokens` (B, T) and, as targets, the tokens that follow (B, T).

    Each epoch takes the windows in another order and, in training, from another offset, so that a token is not always
    seen with the same context. The position is epoch and step alone. In evaluation every token is a target
    once, `inputs["bytes"]` (B,) is the text that a window's targets stand for, and a short last window is filled with IGNORED.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        batch_size: int,
        parts: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pin_memory: bool = False,
    ) -> None:
        self._stream, self._context = stream, min(stream.context, max(1, stream.size - 1))
        spare = shuffle and len(stream) > 1
        # Training takes whole windows after an offset: one fewer than fit.
        self.num_rows = max(1, (stream.size - 1) // self._context - 1) if spare else len(stream)
        self._offsets = stream.size - self.num_rows * self._context if spare else 1
        self.batch_size = batch_size
        self.steps_per_epoch = -(-self.num_rows // batch_size)
        self._parts, self._seed, self._shuffle = parts, seed, shuffle
        self._rank, self._world_size = rank, world_size
        self._device, self._dtype, self._pin = torch.device(device), dtype, pin_memory
        self.positions = self._context  # of a row: a weight is used at each
        self.epoch = 0
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        """The position: epoch and steps done in it."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.epoch, self.step = state["epoch"], state["step"]

    def _offset(self) -> int:
        if not self._shuffle:
            return 0
        return int(np.random.default_rng((self._seed, self.epoch)).integers(0, self._offsets))

    def __iter__(self) -> Iterator[Batch]:
        offset, key = self._offset(), self._seed * 1_000_003 + self.epoch
        while self.step < self.steps_per_epoch:
            index = np.arange(self.step * self.batch_size, min((self.step + 1) * self.batch_size, self.num_rows))
            if self._shuffle:
                index = shuffled(index, self.num_rows, key)
            self.step += 1
            starts = offset + index * self._context
            targets = int(np.minimum(self._context, self._stream.size - 1 - starts).sum())
            parts = np.array_split(index, self._parts) if self._parts > 1 else [index]
            for number, part in enumerate(parts):
                mine = part[self._rank :: self._world_size]
                yield self._batch(mine, offset, targets, number == len(parts) - 1)
        self.epoch, self.step = self.epoch + 1, 0

    def _batch(self, index: Array, offset: int, global_rows: int, last: bool) -> Batch:
        windows = np.full((len(index), self._context + 1), -1, dtype=np.int64)
        for row, start in enumerate((offset + index * self._context).tolist()):
            found = self._stream.read(start, self._context + 1)
            windows[row, : len(found)] = found
        whole = self._move(torch.from_numpy(windows))
        targets = whole[:, 1:]
        inputs = {"tokens": whole[:, :-1].clamp_min(0)}
        if not self._shuffle:
            targets = targets.masked_fill(targets < 0, IGNORED)
            share = self._stream.bytes / max(1, self._stream.size - 1)
            inputs["bytes"] = (targets != IGNORED).sum(1).to(self._dtype) * share
        return Batch(inputs, targets, torch.from_numpy(index), global_rows, last)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return tensor
        return (tensor.pin_memory() if self._pin else tensor).to(self._device, non_blocking=self._pin)


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
