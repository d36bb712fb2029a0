"""What a stranger's table is: the task, the features, the keys, and what a person should look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seekray.data.columns import as_columns, check_columns
from seekray.data.kinds import Inferred, infer_kinds
from seekray.data.options import Data, FeatureOptions
from seekray.data.parse import Rejects
from seekray.data.tables.fitting import typed
from seekray.data.tables.targets import read_targets
from seekray.errors import DataError, SeekrayError
from seekray.inspect.defaults import PROBED_ROWS
from seekray.inspect.probe import Shape, probe
from seekray.inspect.sampling import Sample, take_sample
from seekray.inspect.task import guess_task

SUFFIXES = {".csv", ".tsv", ".txt", ".parquet", ".pq", ".jsonl", ".ndjson", ".json", ".arrow", ".feather", ".ipc", ".gz"}
MIN_PROBE_ROWS = 30
READING = {
    "decimal": "numbers are written with a decimal comma, as in 1.234{}5",
    "encoding": "the file is not UTF-8; it was read as {}: do its letters look right?",
}


@dataclass(frozen=True)
class Left:
    """A column that is not learned from, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Look:
    """What was found. rows: of the whole source; estimated: counted from a sample. unsure: for a person to judge.

    skip: rows that cannot be learned from were seen. shape: see `probe`; None where the table is large.
    reading: what `data:` has to say so that the source is read as it was here.
    """

    source: str
    name: str
    targets: tuple[str, ...]
    task: str
    task_reason: str
    rows: int
    estimated: bool
    features: list[Inferred]
    key: list[Left] = field(default_factory=list)
    exclude: list[Left] = field(default_factory=list)
    skip: bool = False
    unsure: list[str] = field(default_factory=list)
    shape: Shape | None = None
    reading: dict[str, str] = field(default_factory=dict)


def look(address: str, targets: Sequence[str]) -> Look:
    """Look at a source. Raises DataError where it cannot be read or a target is not in it."""
    sample = _sample(address)
    table = sample.table
    if not targets:
        raise DataError("--target is missing; give the column to predict", field="data.target")
    check_columns(targets, table.column_names, field="--target")
    if len(set(targets)) < len(targets):
        raise DataError("--target: a column is given twice", field="data.target")
    if not table.num_rows:
        raise DataError(f"{address} has no rows", field="data.source")
    task, task_reason, unsure = guess_task([table.column(t) for t in targets], targets)
    if not sample.whole:
        unsure.append(
            f"only the first {table.num_rows:,} of {'about ' if sample.estimated else ''}{sample.rows:,} rows were looked at"
        )
    unsure += [READING[k].format(v) for k, v in sample.reading.items()]
    features, key, exclude, doubts = _sort_columns(sample, targets)
    if not features:
        raise DataError(f"{address} has no column to learn from besides {', '.join(targets)}", field="data.features")
    unsure += doubts
    data = Data(source="-", target=tuple(targets), features={f.name: FeatureOptions(kind=f.kind) for f in features})
    bad, first = bad_rows(table, data, task)
    if count := len(bad) + sample.malformed:
        first = first or "a line with too few or too many values"
        unsure.append(f"{count:,} rows cannot be used ({first}); on_bad_row: skip leaves them out and lists them in a file")
    shape = None
    if sample.whole and MIN_PROBE_ROWS <= table.num_rows <= PROBED_ROWS:
        good = np.setdiff1d(np.arange(table.num_rows), list(bad))
        try:
            shape = probe(table.take(pa.array(good)), data, task)
        except (SeekrayError, np.linalg.LinAlgError, ValueError):
            shape = None  # what is wrong with the table, the training will say
    return Look(
        source=address,
        name=name_of(address),
        targets=tuple(targets),
        task=task,
        task_reason=task_reason,
        rows=sample.rows,
        estimated=sample.estimated,
        features=features,
        key=key,
        exclude=exclude,
        skip=count > 0,
        unsure=unsure,
        shape=shape,
        reading=sample.reading,
    )


def _sample(address: str) -> Sample:
    try:
        return take_sample(Data(source=address))
    except DataError as error:
        if error.field != "data.encoding":
            raise
        return take_sample(Data(source=address, encoding="cp1252"))


def _sort_columns(sample: Sample, targets: Sequence[str]) -> tuple[list[Inferred], list[Left], list[Left], list[str]]:
    """Features, keys, columns left out, and doubts."""
    features: list[Inferred] = []
    key: list[Left] = []
    exclude: list[Left] = []
    unsure: list[str] = []
    for name in sample.table.column_names:
        if name in targets:
            continue
        found, reason = _judge(sample, name, targets)
        if found is None:
            exclude.append(Left(name, reason))
            unsure.append(f"{name}: {reason}; it is left out")
        elif found.looks_like_key:
            key.append(Left(name, found.reason))
            unsure.append(f"{name}: {found.reason}; it is carried through as a key, not learned from")
        else:
            features.append(found)
            if found.unsure:
                unsure.append(f"{name}: taken as {found.kind} ({found.reason})")
            if found.kind == "timestamp":
                unsure.append(
                    f"{name}: if rows of the future are to be predicted, use data.split: {{kind: time, by: {name}, test: 0.2}}"
                )
    return features, key, exclude, unsure


def _judge(sample: Sample, name: str, targets: Sequence[str]) -> tuple[Inferred | None, str]:
    """A column's kind, or None and why it is left out."""
    table = sample.table
    column = table.column(name)
    try:
        (found,) = infer_kinds(table.select([name]), Data(source="-"))
    except DataError as error:
        return None, error.message.partition("; put it")[0].removeprefix(f"column {name!r} ")
    if not sample.whole or pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        return found, ""
    if column.null_count == len(column):
        return None, "no row has a value"
    distinct = pc.count_distinct(column, mode="all").as_py()
    if distinct == 1:
        return None, "the same value in all rows"
    if found.kind == "categorical" and not found.looks_like_key and distinct > max(20, len(column) / 2):
        return None, f"{distinct:,} different texts in {len(column):,} rows: names or codes that hardly repeat"
    for target in targets:
        if column.type == table.column(target).type and column.equals(table.column(target)):
            return None, f"equal to the target {target} in every row, so it would give the answer away"
    return found, ""


def bad_rows(table: pa.Table, data: Data, task: str) -> tuple[set[int], str]:
    """Rows that training would refuse, and what is wrong with the first."""
    rejects = Rejects(strict=False)
    for name, options in (data.features or {}).items():
        typed(table.column(name), name, options.kind or "numeric", options, rejects)
    read_targets(task, data.targets, as_columns(table), rejects)
    if not rejects.found:
        return set(), ""
    first = min(rejects.found, key=lambda r: int(r["row"]))
    return {int(r["row"]) for r in rejects.found}, f"row {first['row']}, {first['column']}: {first['reason']}"


def name_of(address: str) -> str:
    """An experiment's name from where its data is: letters, digits, `_`, `.` and `-`."""
    path = PurePosixPath(address.removeprefix("sample:").split("?")[0].rstrip("/"))
    while path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name).strip("-._")[:100] or "experiment"
