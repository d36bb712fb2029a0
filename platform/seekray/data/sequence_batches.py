"""Batches of sequences: rows of like length together, padded to the longest of their part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seekray.data.batches import Batch, as_tensor
from seekray.data.prepare import Arrays
from seekray.data.sequences import RAGGED, pad

if TYPE_CHECKING:
    from seekray.config import Training

# Rows of so many batches are sorted by length together: like lengths meet, and epochs still differ.
POOL = 16
EVALUATED_STEPS = 2**18


class SequenceBatches:
    """Batches of ragged rows that fit in memory.

    As `TableBatches`, the order depends on the seed and the epoch alone, so that a run with another number of
    workers sees the same global batches. Rows are shuffled, sorted by length within pools of 16 batches, and the
    batches are shuffled again. `inputs` has `length` (B,) and the ragged inputs padded with zeros, (B, T, …).

    Where there is a target for each step, targets are (B, T) with -1 where there is none, and what a step's loss is
    divided by is the number of labelled steps.
    """

    def __init__(
        self,
        arrays: Arrays,
        training: Training,
        *,
        evaluate: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pin_memory: bool = False,
    ) -> None:
        assert arrays.offsets is not None
        self.num_rows = len(arrays)
        offsets = as_tensor(arrays.offsets)
        self._starts, self._lengths = offsets[:-1], offsets.diff()
        tensors = {k: as_tensor(v) for k, v in arrays.inputs.items()}
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
        self._ragged = {k: v for k, v in tensors.items() if k in RAGGED}
        self._plain = {k: v for k, v in tensors.items() if k not in RAGGED}
        self._targets = None if arrays.targets is None else as_tensor(arrays.targets)
        if self._targets is not None and self._targets.is_floating_point():
            self._targets = self._targets.to(dtype)
        self._labelled = arrays.labelled
        self._known = self._steps_known() if arrays.labelled else None
        self._rows = as_tensor(arrays.rows)
        longest = int(self._lengths.max()) if self.num_rows else 1
        self.batch_size = max(1, EVALUATED_STEPS // longest) if evaluate else training.batch_size
        self.steps_per_epoch = -(-self.num_rows // self.batch_size)
        self._parts = 1 if evaluate else training.accumulate
        self._seed, self._shuffle = training.seed, not evaluate
        self._rank, self._world_size = rank, world_size
        self._device, self._pin = torch.device(device), pin_memory
        self.epoch = 0
        self.step = 0

    def _steps_known(self) -> Tensor:
        """Labelled steps of each row, (N,)."""
        assert self._targets is not None
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), (self._targets >= 0).cumsum(0)])
        return ends[self._starts + self._lengths] - ends[self._starts]

    def state_dict(self) -> dict[str, int]:
        """The position: epoch and steps done in it."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.epoch, self.step = state["epoch"], state["step"]

    def _order(self) -> list[Tensor]:
        """Row numbers of each global batch of the epoch."""
        if not self._shuffle:
            return list(torch.split(torch.arange(self.num_rows), self.batch_size))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        pools = torch.split(order, POOL * self.batch_size)
        batches = [b for p in pools for b in torch.split(p[self._lengths[p].argsort(stable=True)], self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        while self.step < self.steps_per_epoch:
            index = order[self.step]
            self.step += 1
            total = len(index) if self._known is None else max(1, int(self._known[index].sum()))
            # Parts are cut before ranks, so that a part holds the same rows whatever the number of workers.
            parts = index.tensor_split(self._parts) if self._parts > 1 else (index,)
            for number, part in enumerate(parts):
                yield self._batch(part[self._rank :: self._world_size], total, number == len(parts) - 1)
        self.epoch, self.step = self.epoch + 1, 0

    def _batch(self, index: Tensor, total: int, last: bool) -> Batch:
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
            global_rows=total,
            last=last,
        )

    def _move(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        if self._pin:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=self._pin)
