"""Batches of sequences: rows of like length together, padded to the longest of their part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seekray.data.batches import Batch, RankBatches, as_tensor
from seekray.data.prepared import Arrays
from seekray.data.sequences.ragged import RAGGED, pad

if TYPE_CHECKING:
    from seekray.config import Training

# Rows of so many batches are sorted by length together: like lengths meet, and epochs still differ.
POOL = 16
EVALUATED_STEPS = 2**18


class SequenceBatches(RankBatches):
    """Batches of ragged rows that fit in memory.

    As `TableBatches`, the order depends on the seed and the epoch alone, so that a run with another number of
    workers sees the same global batches. Rows are shuffled, sorted by length within pools of 16 batches, and the
    batches are shuffled again. `inputs` has `length` (B,) and the ragged inputs padded with zeros, (B, T, …).

    Where there is a target for each step, targets are (B, T) with -1 where there is none, and what a step's loss is
    divided by is the number of labelled steps.
    """

    def __init__(self, arrays: Arrays, training: Training, *, evaluate: bool = False, **where: Any) -> None:
        assert arrays.offsets is not None
        offsets = as_tensor(arrays.offsets)
        self._starts, self._lengths = offsets[:-1], offsets.diff()
        longest = int(self._lengths.max()) if len(arrays) else 1
        size = max(1, EVALUATED_STEPS // longest) if evaluate else training.batch_size
        parts = 1 if evaluate else training.accumulate
        super().__init__(len(arrays), batch_size=size, parts=parts, seed=training.seed, shuffle=not evaluate, **where)
        tensors = {k: self._typed(v) for k, v in arrays.inputs.items()}
        self._ragged = {k: v for k, v in tensors.items() if k in RAGGED}
        self._plain = {k: v for k, v in tensors.items() if k not in RAGGED}
        if len(arrays) and bool((self._lengths == longest).all()):  # windows: nothing to pad, so rows are taken whole
            self._plain |= {k: v.view(len(arrays), longest, *v.shape[1:]) for k, v in self._ragged.items()}
            self._ragged = {}
        self._targets = None if arrays.targets is None else self._typed(arrays.targets)
        self._labelled = arrays.labelled
        self._known = self._steps_known() if arrays.labelled else None
        self._rows = as_tensor(arrays.rows)

    def _steps_known(self) -> Tensor:
        """Labelled steps of each row, (N,)."""
        assert self._targets is not None
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), (self._targets >= 0).cumsum(0)])
        return ends[self._starts + self._lengths] - ends[self._starts]

    def _order(self) -> Callable[[int], Tensor]:
        if not self._shuffle:
            return self._slices(torch.arange(self.num_rows))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        pools = torch.split(order, POOL * self.batch_size)
        batches = [b for p in pools for b in torch.split(p[self._lengths[p].argsort(stable=True)], self.batch_size)]
        turns = torch.randperm(len(batches), generator=generator).tolist()
        return lambda step: batches[turns[step]]

    def _count(self, index: Tensor) -> int:
        return len(index) if self._known is None else max(1, int(self._known[index].sum()))

    def _batch(self, index: Tensor, global_rows: int, last: bool) -> Batch:
        starts, lengths = self._starts[index], self._lengths[index]
        inputs = {k: v.index_select(0, index) for k, v in self._plain.items()}
        inputs |= {k: pad(v, starts, lengths) for k, v in self._ragged.items()}
        targets = self._targets
        if targets is not None:
            # One more than the label, so that what pads is -1.
            targets = pad(targets + 1, starts, lengths) - 1 if self._labelled else targets.index_select(0, index)
        return Batch(
            inputs={k: self._move(v) for k, v in inputs.items()} | {"length": lengths},  # packing wants it on the CPU
            targets=None if targets is None else self._move(targets),
            rows=self._rows.index_select(0, index),
            global_rows=global_rows,
            last=last,
        )
