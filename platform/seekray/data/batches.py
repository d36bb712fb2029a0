"""A rank's share of each global batch, as tensors, with a position that can be saved."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seekray.data.parse import Array


@dataclass(frozen=True)
class Batch:
    """One part of a step on one rank.

    inputs: feature tensors, first dimension B (this rank's rows).
    targets: (B, ...) or None.
    rows: (B,) int64 row numbers in the source.
    global_rows: rows of the whole step over all ranks and parts: a loss is a sum over B rows
        divided by it, so that gradients summed over ranks and parts are those of one big batch.
    last: True for the part that completes the step.
    """

    inputs: dict[str, Tensor]
    targets: Tensor | None
    rows: Tensor
    global_rows: int
    last: bool


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor on the same memory; arrays from Ray's object store are read-only, and only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class RankBatches(ABC):
    """A rank's share of each global batch, with a position that can be saved.

    Which rows a step has depends on the seed and the epoch alone, so that a run with another number of workers sees the
    same global batches. Iterating goes on from the saved position and ends with the epoch.

    batch_size: rows of a step over all ranks; parts: pieces a step is split into.
    """

    def __init__(
        self,
        num_rows: int,
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
        self.num_rows, self.batch_size = num_rows, batch_size
        self.steps_per_epoch = -(-num_rows // batch_size)
        self._parts, self._seed, self._shuffle = parts, seed, shuffle
        self._rank, self._world_size = rank, world_size
        self._device, self._dtype, self._pin = torch.device(device), dtype, pin_memory
        self.epoch = 0
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        """The position: epoch and steps done in it."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.epoch, self.step = state["epoch"], state["step"]

    @abstractmethod
    def _order(self) -> Callable[[int], Tensor]:
        """The rows of each step of this epoch: step -> row numbers."""

    @abstractmethod
    def _batch(self, index: Tensor, global_rows: int, last: bool) -> Batch:
        """The batch of these rows."""

    def _count(self, index: Tensor) -> int:
        """What the loss of a step with these rows is divided by."""
        return len(index)

    def _slices(self, order: Tensor) -> Callable[[int], Tensor]:
        """The steps of an order of all rows."""
        return lambda step: order[step * self.batch_size : (step + 1) * self.batch_size]

    def __iter__(self) -> Iterator[Batch]:
        rows_of = self._order()
        while self.step < self.steps_per_epoch:
            index = rows_of(self.step)
            self.step += 1
            total = self._count(index)
            # Parts are cut before ranks, so that a part holds the same rows whatever the number of workers.
            parts = index.tensor_split(self._parts) if self._parts > 1 else (index,)
            for number, part in enumerate(parts):
                yield self._batch(part[self._rank :: self._world_size], total, number == len(parts) - 1)
        self.epoch, self.step = self.epoch + 1, 0

    def _typed(self, array: Array) -> Tensor:
        """A tensor on the same memory, or of the run's precision."""
        tensor = as_tensor(array)
        return tensor.to(self._dtype) if tensor.is_floating_point() and tensor.dtype != self._dtype else tensor

    def _move(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        return (tensor.pin_memory() if self._pin else tensor).to(self._device, non_blocking=self._pin)
