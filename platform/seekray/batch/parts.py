"""One part of a batch prediction: rows in, encoded answers out, bad rows with their reasons."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from seekray.batch.output import PartResult, encode, json_lines
from seekray.data.sequences.ragged import STEPS, joined
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from seekray.data.schema import Schema
    from seekray.data.sources.source import Source
    from seekray.predictor import Predictor

T = TypeVar("T")
CHUNK_VALUES = 2**24
CHUNK_ROWS = 8192


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
                reasons[start] = re.sub(r", row \d+:", ":", error.message)
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

    table = table.select([f.name for f in predictor.schema.features])
    values = max(predictor.schema.dense_size, table.nbytes // 8 // max(1, len(table)))  # lists are longer than `dense`
    size = max(1, min(CHUNK_ROWS, CHUNK_VALUES // max(1, values)))
    index: list[np.ndarray[Any, Any]] = []
    outputs = []
    reasons: dict[int, str] = {}
    for start in range(0, len(table), size):
        chunk = table.slice(start, size)
        try:
            inputs = predictor.prepare(chunk)
            good = np.arange(len(chunk))
        except DataError:
            bad = bad_rows(predictor.schema, chunk)
            reasons |= {start + row: reason for row, reason in bad.items()}
            good = np.setdiff1d(np.arange(len(chunk)), list(bad))
            if not len(good):
                continue
            inputs = predictor.prepare(chunk.take(pa.array(good)))
        index.append(good + start)
        outputs.append(predictor.forward(inputs))
    if not outputs:
        return Forwarded(np.zeros(0, np.int64), torch.zeros(0, predictor.schema.num_outputs), reasons)
    return Forwarded(np.concatenate(index), joined(outputs, torch.nan), reasons)


def bad_rows(schema: Any, table: pa.Table) -> dict[int, str]:
    """The rows that features refuse, found feature by feature: halving one column is cheap.

    Those that have steps are looked at together: their lengths must agree.
    """
    reasons: dict[int, str] = {}
    features = schema.features
    groups = [(f,) for f in features if f.kind not in STEPS]
    for group in (*groups, tuple(f for f in features if f.kind in STEPS)):
        if not group:
            continue
        alone = schema.only(*group)
        reasons = salvage(alone.transform, table.select([f.name for f in group]))[1] | reasons
    return reasons


@dataclass(frozen=True)
class Plan:
    """What every process of a run is told. columns: read; keys: carried through, none for `row`; schema: of the answers."""

    columns: tuple[str, ...]
    keys: tuple[str, ...]
    part_rows: int
    encoding: str
    schema: pa.Schema


@dataclass(frozen=True)
class Part:
    """Rows that travel together. first: the source's number of the first; malformed: records among them that are no rows."""

    index: int
    first: int
    malformed: list[dict[str, Any]]
    table: pa.Table

    @property
    def numbers(self) -> np.ndarray[Any, Any]:
        """The source's number of each row; malformed records have theirs too."""
        if not self.malformed:
            return np.arange(self.first, self.first + len(self.table))
        gone = [m["row"] for m in self.malformed]
        return np.setdiff1d(np.arange(self.first, self.first + len(self.table) + len(gone)), gone)[: len(self.table)]


def answer_schema(schema: Schema, source: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    """Columns of the answers: the keys or `row`, `prediction`, `probability_<class>`, `quantile_<q>`."""
    fields = [pa.field(k, source.field(k).type) for k in keys] or [pa.field("row", pa.int64())]
    fields.append(pa.field("prediction", schema.answer_type))
    numbers = pa.list_(pa.float64()) if schema.task in ("labelling", "forecast") else pa.float64()
    fields += [pa.field(f"probability_{c}", numbers) for c in schema.classes or ()]
    if schema.task == "forecast":
        fields += [pa.field(f"quantile_{q:g}", numbers) for q in getattr(schema, "quantiles", ())]
    return pa.schema(fields)


def predict_part(predictor: Predictor, plan: Plan, part: Part) -> PartResult:
    """The answers to one part, encoded, and its rejected rows."""
    done = forward_rows(predictor, part.table)
    numbers = part.numbers
    answers = predictor.decode(done.outputs).columns()
    kept = part.table if len(done.index) == len(part.table) else part.table.take(pa.array(done.index))
    columns: dict[str, Any] = {k: kept.column(k) for k in plan.keys} or {"row": pa.array(numbers[done.index])}
    arrays = [columns[f.name] if f.name in columns else pa.array(answers[f.name], f.type) for f in plan.schema]
    result = pa.table(arrays, names=plan.schema.names).cast(plan.schema)
    bad = sorted(done.reasons)
    values = part.table.take(pa.array(bad, pa.int64())).to_pylist()
    rejects = [{"row": m["row"], "reason": m["reason"], "values": m["value"]} for m in part.malformed] + [
        {"row": int(numbers[row]), "reason": done.reasons[row], "values": v} for row, v in zip(bad, values, strict=True)
    ]
    lines = json_lines(sorted(rejects, key=lambda r: r["row"])) if rejects else b""
    return PartResult(part.index, len(result), len(rejects), encode(result, plan.encoding, len(rejects)), lines)


def read_parts(source: Source, plan: Plan, skip: frozenset[int]) -> Iterator[Part]:
    """The source in parts of `plan.part_rows` rows, but those in `skip`. Raises DataError."""
    held: list[pa.RecordBatch] = []
    index = rows = read = told = first = 0

    def part(end: bool = False) -> Part:
        nonlocal told, first
        # What was malformed up to the last row of the part is known: it was read before that row.
        waiting = sorted(source.malformed, key=lambda m: m["row"])[told:]
        among: list[dict[str, Any]] = []
        for record in waiting:
            if end or record["row"] < read + told + len(among):
                among.append(record)
        told += len(among)
        start, first = first, read + told
        table = pa.concat_tables([pa.Table.from_batches([b]) for b in held]) if held else empty
        return Part(index, start, among, table)

    empty = pa.schema([source.schema.field(c) for c in plan.columns]).empty_table()
    for batch in source.batches(plan.columns):
        while batch.num_rows:
            piece = batch.slice(0, plan.part_rows - rows)
            batch = batch.slice(piece.num_rows)
            rows, read = rows + piece.num_rows, read + piece.num_rows
            if index not in skip:
                held.append(piece)
            if rows == plan.part_rows:
                made = part()
                if index not in skip:
                    yield made
                held, rows, index = [], 0, index + 1
    if (rows or len(source.malformed) > told) and index not in skip:
        yield part(end=True)
