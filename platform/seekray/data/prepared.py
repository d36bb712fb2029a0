"""What preparing gives, whatever the data: rows ready for a model, and all that is known of where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from seekray.data.parse import Array
from seekray.data.schema import Schema

if TYPE_CHECKING:
    from torch import Tensor


class Dataset(Protocol):
    """What a family's `batches` reads; its length is what a step counts (rows, windows, sequences)."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Arrays:
    """Rows ready for a model.

    inputs: `dense` float32 (N, D) and `categorical` int64 (N, K); with sequences also `sequence` float32 (S, C)
    and `symbols` int64 (S, K), the steps of all rows one after another, row i's from offsets[i] to offsets[i + 1].
    targets: see `FeatureSchema.encode_targets`; None without targets; where `labelled` (S,), one a step. rows: int64
    (N,) row numbers in the source, from 0, the header not counted.
    """

    inputs: dict[str, Array]
    targets: Array | None
    rows: Array
    offsets: Array | None = None
    labelled: bool = False

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Prepared:
    """The data of an experiment.

    held_out: rows as they were read, with targets and keys: of the test, or of validation, or of
    training, whichever is the first to have rows (`held_out_name`). fingerprint: `schema`, `content`
    and `split` hashes, and `rows`. rejected: {row, column, value, reason} of rows left out. rows: rows used.
    reading: see `Source.reading`.
    initial: `module/key` weights to start from, those of another model; None: fresh ones.
    training_rows: as they were read, where the family asked to keep them.
    """

    schema: Schema
    train: Dataset
    validation: Dataset
    held_out: pa.Table
    held_out_rows: Array
    held_out_name: str
    fingerprint: dict[str, Any]
    rejected: list[dict[str, Any]]
    warnings: list[str]
    rows: int
    reading: dict[str, str] = field(default_factory=dict)
    initial: dict[str, Tensor] | None = None
    training_rows: pa.Table | None = None
