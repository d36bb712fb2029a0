"""Batches of the rows of a table, in an order of each epoch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seekray.data.batches import Batch, RankBatches, as_tensor
from seekray.data.prepared import Arrays

if TYPE_CHECKING:
    from seekray.config import Training

EVALUATED_ROWS = 8192


def table_batches(arrays: Arrays, training: Training, *, evaluate: bool = False, **where: Any) -> TableBatches:
    """Batches of rows for a family of tables; see `Family.batches`."""
    if evaluate:
        return TableBatches(arrays, batch_size=EVALUATED_ROWS, shuffle=False, **where)
    return TableBatches(arrays, batch_size=training.batch_size, parts=training.accumulate, seed=training.seed, **where)


class TableBatches(RankBatches):
    """Batches of rows that fit in memory (or in a memory map); an epoch visits each row once, in an order of its own."""

    def __init__(self, arrays: Arrays, **where: Any) -> None:
        super().__init__(len(arrays.rows), **where)
        self._inputs = {k: self._typed(v) for k, v in arrays.inputs.items()}
        self._targets = None if arrays.targets is None else self._typed(arrays.targets)
        self._rows = as_tensor(arrays.rows)

    def _order(self) -> Callable[[int], Tensor]:
        if not self._shuffle:
            return self._slices(torch.arange(self.num_rows))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        return self._slices(torch.randperm(self.num_rows, generator=generator))

    def _batch(self, index: Tensor, global_rows: int, last: bool) -> Batch:
        return Batch(
            inputs={k: self._move(v.index_select(0, index)) for k, v in self._inputs.items()},
            targets=None if self._targets is None else self._move(self._targets.index_select(0, index)),
            rows=self._rows.index_select(0, index),
            global_rows=global_rows,
            last=last,
        )
