"""Texts that are learned one by one: prompts with responses, or texts with labels; padded only within a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seekray.data.batches import Batch
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


class PassageBatches:
    """Batches of texts of similar length, in another order each epoch; the position is epoch and step alone.

    Prompts with responses: `tokens` (B, T) and targets (B, T), IGNORED before the response and in the padding.
    Labels: `tokens`, `lengths` (B,) and targets (B,).
    """

    def __init__(
        self,
        passages: Passages,
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
        self._data, self._lengths, self._weights = passages, passages.lengths, passages.weights()
        self.num_rows, self.batch_size = len(passages), batch_size
        self.steps_per_epoch = -(-self.num_rows // batch_size)
        self._parts, self._seed, self._shuffle = parts, seed, shuffle
        self._rank, self._world_size = rank, world_size
        self._device, self._pin = torch.device(device), pin_memory
        self.positions = int(self._lengths.mean()) if len(passages) else 1  # of a row: a weight is used at each
        self.epoch = 0
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        """The position: epoch and steps done in it."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.epoch, self.step = state["epoch"], state["step"]

    def _order(self) -> Array:
        """Rows of all steps; within BUCKET batches by length, the batches in random order, the short one last."""
        if not self._shuffle:
            return np.arange(self.num_rows)
        rng = np.random.default_rng((self._seed, self.epoch))
        order = rng.permutation(self.num_rows)
        size = BUCKET * self.batch_size
        for start in range(0, self.num_rows, size):
            part = order[start : start + size]
            order[start : start + size] = part[np.argsort(self._lengths[part], kind="stable")]
        whole = self.num_rows // self.batch_size
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)[rng.permutation(whole)]
        return np.concatenate([batches.reshape(-1), order[whole * self.batch_size :]])

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        while self.step < self.steps_per_epoch:
            index = order[self.step * self.batch_size : (self.step + 1) * self.batch_size]
            self.step += 1
            global_rows = int(self._weights[index].sum())
            parts = np.array_split(index, self._parts) if self._parts > 1 else [index]
            for number, part in enumerate(parts):
                yield self._batch(part[self._rank :: self._world_size], global_rows, number == len(parts) - 1)
        self.epoch, self.step = self.epoch + 1, 0

    def _batch(self, index: Array, global_rows: int, last: bool) -> Batch:
        data, lengths = self._data, self._lengths[index]
        tokens = np.zeros((len(index), max(2, int(lengths.max(initial=2)))), dtype=np.int64)
        targets = np.full(tokens.shape, IGNORED, dtype=np.int64)
        for row, number in enumerate(index.tolist()):
            found = data.tokens[data.starts[number] : data.starts[number + 1]]
            tokens[row, : len(found)] = found
            if data.first is not None:
                targets[row, data.first[number] : len(found)] = found[data.first[number] :]
        rows = torch.from_numpy(data.rows[index])
        if data.labels is not None:
            inputs = {"tokens": self._move(tokens), "lengths": self._move(lengths)}
            return Batch(inputs, self._move(data.labels[index]), rows, global_rows, last)
        inputs = {"tokens": self._move(tokens[:, :-1])}
        return Batch(inputs, self._move(targets[:, 1:]), rows, global_rows, last)

    def _move(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cpu":
            return tensor
        return (tensor.pin_memory() if self._pin else tensor).to(self._device, non_blocking=self._pin)
