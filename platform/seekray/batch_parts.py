"""One part of a batch prediction: rows in, encoded answers out, bad rows with their reasons."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from seekray.batch_output import PartResult, encode, json_lines
from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from seekray.data.features import FeatureSchema
    from seekray.predictor import Predictor

T = TypeVar("T")
CHUNK_VALUES = 2**24
CHUNK_ROWS = 8192


def nearest(name: str, there: Sequence[str]) -> str:
    """The end of an error message: which column was perhaps meant, or which there are."""
    close = difflib.get_close_matches(name, there, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(there[:20])}"


def salvage(attempt: Callable[[pa.Table], T], table: pa.Table) -> tuple[list[tuple[int, int, T]], dict[int, str]]:
    """What `attempt` gives for the rows it can take: pieces (start, stop, result), and a reason for each other row.

    A table that raises DataError is halved until the bad rows stand alone.
    """
    pieces: list[tuple[int, int, T]] = []
    reasons: dict[int, str] = {}
    waiting = [(0, len(table))]
    while waiting:
        start, stop = waiting.pop()
        if start == stop:
            continue
        try:
            pieces.append((start, stop, attempt(table.slice(start, stop - start))))
        except DataError as error:
            if stop - start == 1:
                # The row number in the message is that of the one-row table.
                reasons[start] = re.sub(r", row 0:", ":", error.message)
                continue
            middle = (start + stop) // 2
            waiting += [(middle, stop), (start, middle)]
    return pieces, reasons


@dataclass(frozen=True)
class Forwarded:
    """index: (G,) rows that have outputs; outputs: (G, C); reasons: row -> why it has none."""

    index: np.ndarray[Any, Any]
    outputs: Tensor
    reasons: dict[int, str]


def forward_rows(predictor: Predictor, table: pa.Table) -> Forwarded:
    """Outputs of all rows that the features can be read from, in chunks whose tensors stay small."""
    import torch

    size = max(1, min(CHUNK_ROWS, CHUNK_VALUES // max(1, predictor.schema.dense_size)))
    table = table.select([f.name for f in predictor.schema.features])
    index: list[np.ndarray[Any, Any]] = []
    outputs = []
    reasons: dict[int, str] = {}
    for start in range(0, len(table), size):
        chunk = table.slice(start, size)
        try:
            inputs = predictor.prepare(chunk)
            good = np.arange(len(chunk))
        except DataError:
            bad = _bad_rows(predictor, chunk)
            reasons |= {start + row: reason for row, reason in bad.items()}
            good = np.setdiff1d(np.arange(len(chunk)), list(bad))
            if not len(good):
                continue
            inputs = predictor.prepare(chunk.take(pa.array(good)))
        index.append(good + start)
        outputs.append(predictor.forward(inputs))
    if not outputs:
        return Forwarded(np.zeros(0, np.int64), torch.zeros(0, predictor.schema.num_outputs), reasons)
    return Forwarded(np.concatenate(index), torch.cat(outputs), reasons)


def _bad_rows(predictor: Predictor, table: pa.Table) -> dict[int, str]:
    """The rows that features refuse, found feature by feature: halving one column is cheap."""
    reasons: dict[int, str] = {}
    for feature in predictor.schema.features:
        alone = dataclasses.replace(predictor.schema, features=(feature,))
        reasons = salvage(alone.transform, table.select([feature.name]))[1] | reasons
    return reasons


@dataclass(frozen=True)
class Plan:
    """What every process of a run is told. columns: read; names: the keys, or none for `row`; schema: of the answers."""

    data: Data
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    types: Mapping[str, pa.DataType]
    part_rows: int
    encoding: str
    schema: pa.Schema


def answer_schema(schema: FeatureSchema, source: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    """Columns of the answers: the keys or `row`, `prediction`, `probability_<class>`."""
    fields = [pa.field(k, source.field(k).type) for k in keys] or [pa.field("row", pa.int64())]
    classes = pa.array(schema.classes or [0.0])
    kind = pa.list_(classes.type) if schema.task == "multilabel" else classes.type
    fields.append(pa.field("prediction", kind))
    fields += [pa.field(f"probability_{c}", pa.float64()) for c in schema.classes or ()]
    return pa.schema(fields)


def predict_part(predictor: Predictor, plan: Plan, index: int, table: pa.Table) -> PartResult:
    """The answers to one part, encoded, and its rejected rows."""
    done = forward_rows(predictor, table)
    start = index * plan.part_rows
    answers = predictor.decode(done.outputs).columns()
    kept = table if len(done.index) == len(table) else table.take(pa.array(done.index))
    columns: dict[str, Any] = {k: kept.column(k) for k in plan.keys} or {"row": pa.array(done.index + start)}
    arrays = [columns[f.name] if f.name in columns else pa.array(answers[f.name], f.type) for f in plan.schema]
    result = pa.table(arrays, names=plan.schema.names).cast(plan.schema)
    rejects = b""
    if done.reasons:
        numbers = sorted(done.reasons)
        rows = table.take(pa.array(numbers)).to_pylist()
        rejects = json_lines(
            {"row": start + n, "reason": done.reasons[n], "values": row} for n, row in zip(numbers, rows, strict=True)
        )
    data = encode(result, plan.encoding, len(done.reasons))
    return PartResult(index, len(result), len(done.reasons), data, rejects)


class AsText(Exception):
    """A CSV column's values do not fit the type its first block has; the file has to be read again with it as text."""


def read_parts(plan: Plan, skip: frozenset[int]) -> Iterator[tuple[int, pa.Table]]:
    """The input in parts of `plan.part_rows` rows, but those in `skip`. Raises DataError, AsText."""
    source = open_source(plan.data)
    held: list[pa.RecordBatch] = []
    index = rows = 0
    try:
        for batch in source.batches(plan.columns, plan.types):
            while batch.num_rows:
                piece = batch.slice(0, plan.part_rows - rows)
                batch = batch.slice(piece.num_rows)
                rows += piece.num_rows
                if index not in skip:
                    held.append(piece)
                if rows == plan.part_rows:
                    if held:
                        yield index, _joined(held)
                    held, rows, index = [], 0, index + 1
    except DataError as error:
        found = re.search(r"In CSV column #(\d+): CSV conversion error", error.message)
        name = source.schema.names[int(found[1])] if found else None
        if name is None or plan.types.get(name) == pa.string():
            raise
        raise AsText(name) from error
    if held:
        yield index, _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.Table:
    return pa.concat_tables([pa.Table.from_batches([b]) for b in batches], promote_options="permissive")
