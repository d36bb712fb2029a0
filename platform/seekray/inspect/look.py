"""What a stranger's table is: the task, the features, the keys, and what a person should look at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seekray.data.kinds import Guess, guess_kinds
from seekray.data.options import Data
from seekray.data.sources import Source, open_source
from seekray.errors import DataError
from seekray.inspect.nearest import not_there

WHOLE_BYTES = 64 * 2**20  # a larger source is sampled
SAMPLE_ROWS = 100_000
FEW_CLASSES = 20
SUFFIXES = {".csv", ".tsv", ".txt", ".parquet", ".pq", ".jsonl", ".ndjson", ".arrow", ".feather", ".ipc"}


@dataclass(frozen=True)
class Left:
    """A column that is not learned from, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Look:
    """What was found. rows: of the whole source; estimated: counted from a sample. unsure: for a person to judge."""

    source: str
    name: str
    targets: tuple[str, ...]
    task: str
    task_reason: str
    rows: int
    estimated: bool
    features: list[Guess]
    key: list[Left] = field(default_factory=list)
    exclude: list[Left] = field(default_factory=list)
    bad_rows: int = 0
    unsure: list[str] = field(default_factory=list)


def look(address: str, targets: Sequence[str]) -> Look:
    """Look at a source. Raises DataError where it cannot be read or a target is not in it."""
    source = open_source(Data(source=address))
    for name in targets:
        if name not in source.schema.names:
            raise DataError(not_there("--target", name, source.schema.names, address), field="data.target")
    if len(set(targets)) < len(targets):
        raise DataError("--target: a column is given twice", field="data.target")
    table, rows, estimated = sample(source)
    if not table.num_rows:
        raise DataError(f"{address} has no rows", field="data.source")
    task, task_reason, unsure = guess_task([table.column(t) for t in targets], targets)
    bad_rows = sum(table.column(t).null_count for t in targets)
    if estimated:
        unsure.append(f"only the first {table.num_rows:,} of about {rows:,} rows were looked at")
    if bad_rows:
        unsure.append(f"{bad_rows:,} rows have no target; on_bad_row: skip leaves them out and lists them in a file")
    features, key, exclude = [], [], []
    for name in table.column_names:
        if name in targets:
            continue
        guess, reason = _judge(table, name, targets, estimated)
        if guess is None:
            exclude.append(Left(name, reason))
            unsure.append(f"{name}: {reason}; it is left out")
        elif guess.identifier:
            key.append(Left(name, guess.reason))
            unsure.append(f"{name}: {guess.reason}; it is carried through as a key, not learned from")
        else:
            features.append(guess)
            if guess.unsure:
                unsure.append(f"{name}: taken as {guess.kind} ({guess.reason})")
            if guess.kind == "timestamp":
                unsure.append(
                    f"{name}: if rows of the future are to be predicted, split by time: {{kind: time, by: {name}, test: 0.2}}"
                )
    if not features:
        raise DataError(f"{address} has no column to learn from besides {', '.join(targets)}", field="data.features")
    return Look(
        address, name_of(address), tuple(targets), task, task_reason, rows, estimated, features, key, exclude, bad_rows, unsure
    )


def sample(source: Source) -> tuple[pa.Table, int, bool]:
    """The rows of a small source, the first ones of a large; how many there are, and whether that is estimated."""
    count = source.count()
    small = source.bytes is None or source.bytes <= WHOLE_BYTES
    if small and (count is None or count <= SAMPLE_ROWS):
        table = source.table()
        return table, table.num_rows, False
    table = pa.Table.from_batches(list(_some(source)), source.schema)
    if count is None:
        count = estimate_rows(source, table)
    return table.slice(0, SAMPLE_ROWS), max(count, table.num_rows), count > SAMPLE_ROWS


def _some(source: Source) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in islice(source.batches(), 1000):
        yield batch
        rows += batch.num_rows
        if rows >= SAMPLE_ROWS:
            return


def estimate_rows(source: Source, table: pa.Table) -> int:
    """Rows of a text source by the bytes that its first rows take when written as CSV or JSON lines."""
    if source.bytes is None or not table.num_rows:
        return int(table.num_rows)
    first = table.slice(0, 1000)
    sink = pa.BufferOutputStream()
    try:
        import pyarrow.csv as pacsv

        pacsv.write_csv(first, sink, pacsv.WriteOptions(include_header=False, quoting_style="needed"))
        size = sink.getvalue().size
        if source.paths and str(source.paths[0]).endswith(("jsonl", "ndjson")):
            size += first.num_rows * (sum(len(n) + 4 for n in first.column_names) + 2)
    except pa.ArrowException:
        size = first.nbytes
    return math.ceil(source.bytes / max(1, size) * first.num_rows)


def guess_task(columns: Sequence[Any], names: Sequence[str]) -> tuple[str, str, list[str]]:
    """Task, reason and doubts from the targets' values. Raises DataError where they fit no task."""
    if len(columns) > 1:
        for name, column in zip(names, columns, strict=True):
            if not _is_label(column):
                raise DataError(
                    f"--target {name}: several targets make a multilabel task, whose values are 0 or 1 (or true and false); "
                    f"this column has {_shown(column)}. Give one --target",
                    field="data.target",
                )
        return "multilabel", f"{len(columns)} targets of 0 and 1", []
    column, name = columns[0], names[0]
    values = column.drop_null()
    if not len(values):
        raise DataError(f"--target {name} has no values", field="data.target")
    kind = values.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise DataError(f"--target {name} holds {kind} values; expected numbers or classes", field="data.target")
    distinct = pc.count_distinct(values).as_py()
    if distinct == 1:
        raise DataError(f"--target {name} is {values[0].as_py()!r} in all rows; there is nothing to learn", field="data.target")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        whole = pc.all(pc.equal(pc.floor(values), values)).as_py()
        if not whole or distinct > FEW_CLASSES:
            return "regression", "the target is a number", []
        if distinct == 2:
            return "classification", "the target has 2 values", []
    elif not pa.types.is_integer(kind):
        if pa.types.is_temporal(kind):
            raise DataError(f"--target {name} holds times; expected numbers or classes", field="data.target")
        return _classes_of(values, name, distinct)
    if distinct == 2:
        return "classification", "the target has 2 values", []
    if distinct > FEW_CLASSES or distinct * 5 > len(values):
        doubt = [f"{name}: {distinct} different whole numbers, taken as a quantity (regression)"] if distinct <= 100 else []
        return "regression", f"the target is a whole number with {distinct:,} values", doubt
    return (
        "classification",
        f"the target is a whole number with only {distinct} values",
        [f"{name}: {distinct} different whole numbers, taken as classes; if they count or measure something, set task: regression"],
    )


def _classes_of(values: Any, name: str, distinct: int) -> tuple[str, str, list[str]]:
    if distinct > max(FEW_CLASSES, len(values) / 2):
        example = values[0].as_py()
        raise DataError(
            f"--target {name} holds {distinct:,} different texts in {len(values):,} rows, such as {example!r}; "
            "classes repeat. Is it a name, or a number with a unit?",
            field="data.target",
        )
    doubt = []
    if distinct > 50:
        doubt.append(f"{name}: {distinct:,} classes are many")
    counts = [v["counts"].as_py() for v in values.value_counts()]
    if (rare := sum(c < 5 for c in counts)) and distinct > 2:
        doubt.append(f"{name}: {rare} of {distinct} classes have under 5 rows")
    return "classification", f"the target has {distinct} classes", doubt


def _is_label(column: Any) -> bool:
    values = column.drop_null().unique().to_pylist()
    return bool(values) and {str(v).lower() for v in values} <= {"0", "1", "0.0", "1.0", "true", "false"}


def _shown(column: Any) -> str:
    return ", ".join(repr(v) for v in column.drop_null().unique().slice(0, 4).to_pylist()) or "no values"


def _judge(table: pa.Table, name: str, targets: Sequence[str], estimated: bool) -> tuple[Guess | None, str]:
    """A column's kind, or None and why it is left out."""
    column = table.column(name)
    try:
        (guess,) = guess_kinds(table.select([name]), Data(source="-"))
    except DataError as error:
        return None, error.message.partition(" holds ")[2].partition(";")[0] or error.message
    if estimated:
        return guess, ""
    if column.null_count == len(column):
        return None, "no row has a value"
    if not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type):
        distinct = pc.count_distinct(column, mode="all").as_py()
        if distinct == 1:
            return None, "the same value in all rows"
        if guess.kind == "categorical" and not guess.identifier and distinct > max(20, len(column) / 2):
            return None, f"{distinct:,} different texts in {len(column):,} rows: names or codes that hardly repeat"
        for target in targets:
            if column.type == table.column(target).type and column.equals(table.column(target)):
                return None, f"equal to the target {target} in every row, so it would give the answer away"
    return guess, ""


def name_of(address: str) -> str:
    """An experiment's name from where its data is: letters, digits, `_`, `.` and `-`."""
    last = PurePosixPath(address.removeprefix("sample:").split("?")[0].rstrip("/"))
    stem = last.stem if last.suffix.lower() in SUFFIXES else last.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:100] or "experiment"
