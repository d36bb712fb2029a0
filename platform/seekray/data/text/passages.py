"""Texts that are learned one by one: prompts with responses, or texts with labels; padded only within a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seekray.data.batches import Batch, RankBatches
from seekray.data.parse import Array

IGNORED = -100  # a target that does not count
BUCKET = 32  # batches whose passages are sorted by length together
EVALUATED_TOKENS = 16_384


@dataclass(frozen=True)
class Passages:
    """Tokens of N texts, flat, with their starts (N + 1,).

    first: (N,) place in its text of the first token that is a target; labels: (N,) classes instead, or None.
    rows: (N,) row numbers in the source.
    """

    tokens: Array
    starts: Array
    first: Array | None
    labels: Array | None
    rows: Array

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Array:
        """(N,) tokens of each text."""
        return np.diff(self.starts)

    def weights(self) -> Array:
        """(N,) what each text adds to `global_rows`: its target tokens, or 1 for a label."""
        if self.first is None:
            return np.ones(len(self), dtype=np.int64)
        return self.lengths - self.first


def join(texts: list[list[int]], first: Array | None, labels: Array | None, rows: Array, dtype: Any) -> Passages:
    """Passages of lists of ids."""
    starts = np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64)
    tokens = np.concatenate([np.asarray(t, dtype=dtype) for t in texts]) if texts else np.zeros(0, dtype)
    return Passages(tokens, starts, first, labels, rows)


class PassageBatches(RankBatches):
    """Batches of texts of similar length, in another order each epoch; the position is epoch and step alone.

    Prompts with responses: `tokens` (B, T) and targets (B, T), IGNORED before the response and in the padding.
    Labels: `tokens`, `lengths` (B,) and targets (B,).
    """

    def __init__(self, passages: Passages, **where: Any) -> None:
        super().__init__(len(passages), **where)
        self._data, self._lengths, self._weights = passages, passages.lengths, passages.weights()
        self.positions = int(self._lengths.mean()) if len(passages) else 1  # of a row: a weight is used at each

    def _order(self) -> Callable[[int], Tensor]:
        """Within BUCKET batches by length, the batches in random order, the short one last."""
        if not self._shuffle:
            return self._slices(torch.arange(self.num_rows))
        rng = np.random.default_rng((self._seed, self.epoch))
        order = rng.permutation(self.num_rows)
        size = BUCKET * self.batch_size
        for start in range(0, self.num_rows, size):
            part = order[start : start + size]
            order[start : start + size] = part[np.argsort(self._lengths[part], kind="stable")]
        whole = self.num_rows // self.batch_size
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)[rng.permutation(whole)]
        return self._slices(torch.from_numpy(np.concatenate([batches.reshape(-1), order[whole * self.batch_size :]])))

    def _count(self, index: Tensor) -> int:
        return int(self._weights[index.numpy()].sum())

    def _batch(self, index: Tensor, global_rows: int, last: bool) -> Batch:
        numbers = index.numpy()
        data, lengths = self._data, self._lengths[numbers]
        tokens = np.zeros((len(index), max(2, int(lengths.max(initial=2)))), dtype=np.int64)
        targets = np.full(tokens.shape, IGNORED, dtype=np.int64)
        for row, number in enumerate(index.tolist()):
            found = data.tokens[data.starts[number] : data.starts[number + 1]]
            tokens[row, : len(found)] = found
            if data.first is not None:
                targets[row, data.first[number] : len(found)] = found[data.first[number] :]
        rows = torch.from_numpy(data.rows[numbers])
        if data.labels is not None:
            inputs = {"tokens": self._moved(tokens), "lengths": self._moved(lengths)}
            return Batch(inputs, self._moved(data.labels[numbers]), rows, global_rows, last)
        inputs = {"tokens": self._moved(tokens[:, :-1])}
        return Batch(inputs, self._moved(targets[:, 1:]), rows, global_rows, last)

    def _moved(self, array: Array) -> Tensor:
        return self._move(torch.from_numpy(np.ascontiguousarray(array)))
