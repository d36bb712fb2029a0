"""A data source → splits, fitted features and arrays, with a fingerprint and a list of what was rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seekray.data import columns as cols
from seekray.data.features import FeatureSchema, fit
from seekray.data.kinds import MOSTLY, Inferred, infer_kinds
from seekray.data.options import Data, FeatureOptions
from seekray.data.sources import open_source
from seekray.data.split import split
from seekray.data.values import json_value
from seekray.errors import DataError

CHUNK = 65_536


@dataclass(frozen=True)
class Arrays:
    """One split. inputs: feature name -> (N, …); targets: (N, …) or None; rows: (N,) int64 source row numbers."""

    inputs: dict[str, np.ndarray[Any, Any]]
    targets: np.ndarray[Any, Any] | None
    rows: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Prepared:
    """Data ready for a run.

    held_out: raw rows that the result is judged by, from the split `held_out_name`.
    fingerprint: schema, rows, hash of the content and of the split.
    rejected: {row, column, value, reason} of each row left out. warnings: what a user should know.
    """

    schema: FeatureSchema
    train: Arrays
    validation: Arrays
    held_out: pa.Table
    held_out_rows: np.ndarray[Any, Any]
    held_out_name: str
    fingerprint: dict[str, Any]
    rows: int
    rejected: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def columns_read(data: Data, there: Sequence[str]) -> list[str]:
    """The columns an experiment uses. Raises DataError for one that is not there."""
    for name in [*data.targets, *(data.features or ()), *data.key, *([data.split.by] if data.split.by else [])]:
        if name not in there:
            what = "data.target" if name in data.targets else "data"
            raise DataError(f"{what}: column {name!r} is not in {data.source}{cols.nearest(name, there)}", field=name)
    if data.features is not None:
        wanted = {*data.features, *data.targets, *data.key, *([data.split.by] if data.split.by else [])}
        return [n for n in there if n in wanted]
    return [n for n in there if n not in data.exclude]


def prepare(data: Data, task: str) -> Prepared:
    """Read, clean, split, fit on the training rows, transform. Raises DataError."""
    source = open_source(data)
    names = columns_read(data, source.schema.names)
    table = source.table(names)
    if not table.num_rows:
        raise DataError(f"{data.source} has no rows", field="data.source")
    kinds = infer_kinds(table, data)
    if not kinds:
        raise DataError(f"{data.source} has no column to learn from besides {', '.join(data.targets)}", field="data.features")
    rows = np.arange(table.num_rows, dtype=np.int64)
    rejected = find_bad(table, data, task, kinds)
    if rejected:
        _refuse_or_skip(rejected, data, table.num_rows)
        keep = np.setdiff1d(rows, [r["row"] for r in rejected])
        table, rows = table.take(pa.array(keep)), rows[keep]
    classes = _classes(table, data, task)
    labels = None
    if classes is not None and task == "classification":
        index = {str(cols.key_of(c)): i for i, c in enumerate(classes)}
        labels = cols.lookup(cols.column(table, data.targets[0]), index, -1, -1)
    splits = split(table, data.split, labels)
    training = table.take(pa.array(splits.train))
    schema = fit(training, data, task, kinds, classes)
    fingerprint = {
        "schema": hashlib.sha256(str([(f.name, str(f.type)) for f in table.schema]).encode()).hexdigest(),
        "rows": table.num_rows,
        "content": content_hash(table),
        "split": hashlib.sha256(b"".join(p.tobytes() + b"|" for p in vars(splits).values())).hexdigest(),
    }
    parts = {"test": splits.test, "validation": splits.validation, "train": splits.train}
    held_out_name = next(name for name, part in parts.items() if len(part))
    held_out = parts[held_out_name]
    return Prepared(
        schema=schema,
        train=_arrays(schema, training, rows[splits.train], bool(data.targets)),
        validation=_arrays(schema, table.take(pa.array(splits.validation)), rows[splits.validation], bool(data.targets)),
        held_out=table.take(pa.array(held_out)),
        held_out_rows=rows[held_out],
        held_out_name=held_out_name,
        fingerprint=fingerprint,
        rows=table.num_rows,
        rejected=rejected,
        warnings=_warnings(schema, kinds, held_out_name),
    )


def _arrays(schema: FeatureSchema, table: pa.Table, rows: np.ndarray[Any, Any], supervised: bool) -> Arrays:
    """Transform chunk by chunk, so that texts and images are not all there twice."""
    chunks = [table.slice(i, CHUNK) for i in range(0, max(1, table.num_rows), CHUNK)]
    parts = [schema.transform(chunk) for chunk in chunks]
    inputs = {k: np.concatenate([p[k].numpy() for p in parts]) if len(parts) > 1 else parts[0][k].numpy() for k in parts[0]}
    targets = np.concatenate([schema.encode_targets(c) for c in chunks]) if supervised else None
    return Arrays(inputs, targets, rows)


def _classes(table: pa.Table, data: Data, task: str) -> list[Any] | None:
    if task != "classification":
        return None
    values = cols.column(table, data.targets[0])
    if pa.types.is_floating(values.type):
        whole = values.drop_null().to_numpy()
        if len(np.unique(whole)) > 100 or not np.equal(whole, np.floor(whole)).all():
            raise DataError(
                f"data.target {data.targets[0]!r} holds {len(np.unique(whole))} different fractional numbers, which are not "
                "classes; set task: regression",
                field="task",
            )
        values = pc.cast(values, pa.int64())
    by_key = {cols.key_of(v): json_value(v) for v in values.unique().to_pylist()}
    by_key.pop(None, None)
    classes = sorted(by_key.values(), key=lambda v: (isinstance(v, str), v))
    if len(classes) < 2:
        raise DataError(
            f"data.target {data.targets[0]!r} has one class only ({classes[0] if classes else 'none'}); "
            "a classifier needs at least two",
            field="data.target",
        )
    if len(classes) > 1000 and len(classes) > table.num_rows / 2:
        raise DataError(
            f"data.target {data.targets[0]!r} has {len(classes)} classes in {table.num_rows} rows; is it a key, or a regression?",
            field="data.target",
        )
    return classes


def find_bad(table: pa.Table, data: Data, task: str, kinds: Sequence[Inferred]) -> list[dict[str, Any]]:
    """Rows that cannot be learned from: one entry a row, with the first reason."""
    found: dict[int, dict[str, Any]] = {}
    for target in data.targets:
        for row, value, reason in _bad_targets(table, target, task):
            found.setdefault(row, {"row": row, "column": target, "value": value, "reason": reason})
    for kind in kinds:
        options = (data.features or {}).get(kind.name) or FeatureOptions()
        for row, value, reason in _bad_values(kind, table.column(kind.name).combine_chunks(), options):
            found.setdefault(row, {"row": row, "column": kind.name, "value": value, "reason": reason})
    return [found[row] for row in sorted(found)]


def _bad_targets(table: pa.Table, name: str, task: str) -> list[tuple[int, Any, str]]:
    values = cols.column(table, name)
    if task == "classification":
        missing = [i for i, v in enumerate(pc.is_null(values, nan_is_null=True).to_pylist()) if v]
        return [(i, None, "the target is missing") for i in missing]
    if task == "multilabel":
        found = cols.lookup(values, {"true": 1, "1": 1, "false": 0, "0": 0}, -1, -2)
        return [(int(i), json_value(values[int(i)].as_py()), "the label is not 0 or 1") for i in np.flatnonzero(found < 0)]
    texts = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if texts:
        listed = values.to_pylist()
        bad = [i for i, v in enumerate(listed) if v is not None and cols.number(v) is None]
        if len(bad) > (1 - MOSTLY) * len(listed):
            raise DataError(
                f"data.target {name!r} holds texts such as {listed[bad[0]]!r} (row {bad[0]}); regression needs numbers, "
                "or set task: classification",
                field="data.target",
            )
        wrong = [(i, listed[i], "the target is not a number") for i in bad]
        return wrong + [(i, None, "the target is missing") for i, v in enumerate(listed) if v is None]
    numbers = cols.numeric_matrix({name: values}, [name])[:, 0]
    return [
        (int(i), json_value(values[int(i)].as_py()), "the target is missing or not finite") for i in np.flatnonzero(np.isnan(numbers))
    ]


def _bad_values(kind: Inferred, values: pa.Array, options: FeatureOptions) -> list[tuple[int, Any, str]]:
    """Rows whose value is not of the column's kind; all at once where the whole column passes."""
    name = kind.name
    if kind.kind == "numeric":
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            cols.numeric_matrix({name: values.slice(0, 1)}, [name])
            return []
        listed = values.to_pylist()
        bad = [i for i, v in enumerate(listed) if v is not None and cols.number(v) is None]
        if len(bad) == len(listed) - values.null_count:
            raise DataError(f"column {name!r} is set to numeric and holds no numbers, for example {listed[bad[0]]!r}", field=name)
        return [(i, listed[i], "a text where a number was expected") for i in bad]
    if kind.kind == "timestamp":
        return _one_by_one(values, name, lambda v: cols.times(v, name))
    if kind.kind == "image":
        return _one_by_one(values, name, lambda v: cols.images(v, name, (1, 1), options.channels))
    if kind.kind == "vector":
        size = len(next((v for v in values.to_pylist() if v is not None), []))
        return _one_by_one(values, name, lambda v: cols.vectors(v, name, size))
    return []


def _one_by_one(values: pa.Array, name: str, check: Any) -> list[tuple[int, Any, str]]:
    bad = []
    for start in range(0, len(values), 1024):
        chunk = values.slice(start, 1024)
        try:
            check(chunk)
        except DataError:
            for i in range(len(chunk)):
                try:
                    check(chunk.slice(i, 1))
                except DataError as error:
                    value = chunk[i].as_py()
                    shown = f"{len(value)} bytes" if isinstance(value, bytes) else json_value(value)
                    bad.append((start + i, shown, error.message.partition(": ")[2] or error.message))
    return bad


def _refuse_or_skip(rejected: list[dict[str, Any]], data: Data, rows: int) -> None:
    first = rejected[0]
    if data.on_bad_row == "error":
        more = f" and {len(rejected) - 1} more rows" if len(rejected) > 1 else ""
        raise DataError(
            f"{data.source}, row {first['row']}, column {first['column']!r}: {first['value']!r}: {first['reason']}{more}; "
            "mend the data, or set data.on_bad_row: skip to leave such rows out and list them",
            field=first["column"],
        )
    if len(rejected) == rows:
        raise DataError(f"all {rows} rows of {data.source} are bad, the first because {first['reason']}", field=first["column"])


def _warnings(schema: FeatureSchema, kinds: Sequence[Inferred], held_out_name: str) -> list[str]:
    found = [f"column {k.name!r}: {k.reason}; put it into data.key or data.exclude" for k in kinds if k.looks_like_key]
    constant = [f.name for f in schema.features if f.kind == "numeric" and f.state["std"] == 0]
    if constant:
        shown = ", ".join(constant[:5]) + (f" and {len(constant) - 5} more" if len(constant) > 5 else "")
        found.append(f"constant columns teach nothing: {shown}")
    for feature in schema.features:
        if feature.kind == "categorical" and feature.state["distinct"] > len(feature.state["categories"]):
            found.append(
                f"column {feature.name!r} has {feature.state['distinct']:,} categories; the most frequent "
                f"{len(feature.state['categories']):,} are kept, the rest is one (max_categories)"
            )
    if held_out_name != "test":
        found.append(f"there are no test rows; the reported metrics are those of the {held_out_name} rows")
    return found


def content_hash(table: pa.Table) -> str:
    """sha256 of the values, whatever the chunks."""
    digest = hashlib.sha256()
    for name in table.column_names:
        values = table.column(name).combine_chunks()
        digest.update(f"{name}:{values.type}:{len(values)}:{values.null_count}".encode())
        if values.null_count:
            digest.update(np.packbits(pc.is_null(values).to_numpy(zero_copy_only=False)).tobytes())
        kind = values.type
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            filled = pc.fill_null(values, "" if pa.types.is_string(kind) else b"")
            digest.update(pc.binary_length(filled).to_numpy(zero_copy_only=False).tobytes())
            digest.update(pc.binary_join(pa.scalar(filled.to_pylist(), pa.list_(kind)), "" if pa.types.is_string(kind) else b"").as_buffer())
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            digest.update(pc.fill_null(values, 0).to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(repr(values.to_pylist()).encode())
    return digest.hexdigest()
