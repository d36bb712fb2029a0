"""From a source to arrays: read, judge, split, fit on the training rows, transform all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data import split as splits
from seekray.data.columns import as_columns, check_columns
from seekray.data.fingerprint import array_hash, content_hash, schema_hash
from seekray.data.kinds import Inferred, infer_kinds
from seekray.data.media import texts
from seekray.data.options import Data, FeatureOptions
from seekray.data.parse import Array, Rejects, as_array, booleans, category, is_arrow, is_text, numbers, shown
from seekray.data.prepared import Arrays, Prepared
from seekray.data.sequences.framing import Frame, Framed, frame_of, frame_table, framed_data, straddling
from seekray.data.sequences.ragged import Ragged, check_even, ends
from seekray.data.sources import open_source
from seekray.data.sources.source import Source
from seekray.data.sources.written import looks_like_comma_number
from seekray.data.tables.features import FeatureSchema
from seekray.data.tables.fitting import fit_columns, nothing_to_learn_from, typed
from seekray.data.tables.targets import encode_targets, fit_targets, label_lists, read_targets
from seekray.errors import DataError

# Rows transformed at a time: the float64 in between stays small.
CHUNK = 32_768
NEITHER = -1  # the part of a window that straddles a split


def used_columns(data: Data, names: list[str]) -> list[str]:
    """The columns that an experiment reads, in the source's order. Raises DataError for one that is not there."""
    asked = {
        "data.target": data.targets,
        "data.features": tuple(data.features or ()),
        "data.key": data.key,
        "data.exclude": data.exclude,
        "data.split.by": (data.split.by,) if data.split.by else (),
    }
    for option, wanted in asked.items():
        check_columns(wanted, names, field=option)
    if data.features is None:
        return [name for name in names if name not in data.exclude or name == data.split.by]
    used = {*data.features, *data.targets, *data.key, data.split.by}
    return [name for name in names if name in used]


def prepare(
    data: Data, task: str, prefer: Mapping[str, str] | None = None, *, fit: Any = fit_columns, keep: bool = False
) -> Prepared:
    """Read, check, split, fit and transform.

    prefer: kind that would be inferred -> kind that the family reads such columns as. fit: makes the schema of the
    training rows, as `fit_columns` does. keep: the training rows stay as they were read, and `fit` sees all of them
    so, not the first thousand.
    Raises DataError for data that cannot be used; rows that cannot be are an error too, or with
    `data.on_bad_row: skip` left out and listed.
    """
    source = open_source(data)
    frame = frame_of(data, task, _names(source)) if data.sequence else None
    table = source.table(_long_columns(data, frame) if frame else used_columns(data, _names(source)))
    if not table.num_rows:
        raise DataError(f"{data.source} has columns but no rows", field="data.source")
    # Hashing lets go of the interpreter: it takes the other core while the columns are read.
    with ThreadPoolExecutor(1) as pool:
        content = pool.submit(content_hash, table)
        if frame is None:
            return _prepared(data, task, source, table, content, prefer or {}, fit, keep)
        framed = frame_table(table, frame, skip=data.on_bad_row == "skip")
        if not framed.table.num_rows:
            raise DataError(
                f"no run of steps without a gap or a missing {frame.target!r} is {frame.history + frame.horizon} long; "
                "lower data.sequence.history, or raise data.sequence.gap",
                field="data.sequence",
            )
        prepared = _prepared(framed_data(data, frame), task, source, framed.table, content, prefer or {}, fit, keep, framed)
        assert isinstance(prepared.schema, FeatureSchema)
        warnings = prepared.warnings
        if framed.repeated:
            warnings = [f"{framed.repeated} rows repeat a {frame.time!r} of their series; the last of them counts", *warnings]
        _, rejected = _number(table.num_rows, source.malformed, framed.rejected)
        schema = replace(prepared.schema, frame=frame.to_json())
        return replace(
            prepared, schema=schema, warnings=[*_counted(rejected), *warnings], rejected=[*rejected, *prepared.rejected]
        )


def _long_columns(data: Data, frame: Frame) -> list[str]:
    return list(dict.fromkeys(n for n in (*frame.wanted, frame.target, *data.key, data.split.by) if n))


def _prepared(
    data: Data,
    task: str,
    source: Source,
    table: pa.Table,
    content: Future[str],
    prefer: Mapping[str, str],
    fit: Any,
    keep: bool,
    framed: Framed | None = None,
) -> Prepared:
    guesses = infer_kinds(table, data)
    if not guesses:
        raise nothing_to_learn_from()
    given = {name for name, options in (data.features or {}).items() if options.kind}
    kinds = {g.name: g.kind if g.name in given else prefer.get(g.kind, g.kind) for g in guesses}
    rejects = Rejects(strict=False)
    columns = _read(table, kinds, data, rejects)
    read_targets(task, data.targets, as_columns(table), rejects)
    _check_steps(task, table, columns, kinds, data, rejects)
    keys = None
    if data.split.by:
        keys = splits.split_keys(data.split, table.column(data.split.by), rejects)
    # A framed row is no row of the source.
    row_numbers, rejected = _number(table.num_rows, [] if framed else source.malformed, rejects.found)
    good = _good(table.num_rows, rejects, rejected, data)
    fingerprint: dict[str, Any] = {"schema": schema_hash(table.schema), "rows": table.num_rows}
    if len(good) < table.num_rows:
        table = table.take(good)
        columns = _take(columns, good)
        keys = None if keys is None else keys[good]
        row_numbers = row_numbers[good]
    table = _as_typed(table, columns, kinds)
    strata = _strata(task, data, table) if data.split.kind == "stratified" else None
    parts = splits.assign(data.split, len(good), keys=keys, strata=strata)
    if framed is not None and data.split.kind == "time":
        parts = np.where(straddling(framed.take(good), parts), NEITHER, parts)
    fingerprint |= {"split": array_hash(np.stack([row_numbers, parts.astype(np.int64)]))}
    everything = columns | {name: table.column(name) for name in data.targets}
    _check_classes(task, data, everything, parts)
    index = [np.flatnonzero(parts == part) for part in (splits.TRAIN, splits.VALIDATION, splits.TEST)]
    if not len(index[0]):
        raise DataError("no window lies within the training part; lower data.sequence.history", field="data.sequence")
    raw = table.take(index[0] if keep else index[0][:1000])
    schema, warnings = fit(_take(everything, index[0]), kinds, data, task, as_columns(raw))
    held_out_name, held = next(
        (name, rows) for name, rows in zip(("test", "validation", "train"), reversed(index), strict=True) if len(rows)
    )
    return Prepared(
        schema=schema,
        train=_arrays(schema, everything, index[0], row_numbers),
        validation=_arrays(schema, everything, index[1], row_numbers),
        held_out=table.take(held),
        held_out_rows=row_numbers[held],
        held_out_name=held_out_name,
        fingerprint=fingerprint | {"content": content.result()},
        rejected=rejected,
        warnings=[*source.warnings, *_notes(guesses), *_no_test(held_out_name), *warnings, *_counted(rejected)],
        rows=len(good),
        reading=source.reading,
        training_rows=raw if keep else None,
    )


def _names(source: Source) -> list[str]:
    return list(source.schema.names)


def _read(table: pa.Table, kinds: Mapping[str, str], data: Data, rejects: Rejects) -> dict[str, Any]:
    out = {}
    for name, kind in kinds.items():
        options = (data.features or {}).get(name) or FeatureOptions()
        out[name] = typed(table.column(name), name, kind, options, rejects)
    return out


def _check_steps(
    task: str, table: pa.Table, columns: Mapping[str, Any], kinds: Mapping[str, str], data: Data, rejects: Rejects
) -> None:
    """Rows whose lists, texts as characters and labels of steps are not of one length go to `rejects`."""
    lengths = {name: columns[name].lengths for name, kind in kinds.items() if kind in ("sequence", "audio_frames")}
    labels = data.targets[0] if task == "labelling" else None
    spelt = [name for name, kind in kinds.items() if kind == "characters"]
    if len(lengths) + len(spelt) + (labels is not None) < 2 or not (lengths or spelt):
        return
    told = Rejects(strict=False)  # by those who read the columns
    lengths |= {name: np.array([len(t or "") for t in texts(columns[name], name, told)], dtype=np.int64) for name in spelt}
    if labels is not None:
        lengths[labels] = label_lists(as_columns(table)[labels], labels, told).lengths
    known = {r["row"] for r in rejects.found}
    check_even(lengths, told := Rejects(strict=False), labels=labels)
    rejects.found += [r for r in told.found if r["row"] not in known]


def _number(rows: int, malformed: list[dict[str, Any]], found: Sequence[dict[str, Any]]) -> tuple[Array, list[dict[str, Any]]]:
    """Row numbers in the source, where malformed records count too, and all rejections with them."""
    numbering = np.arange(rows + len(malformed))
    if malformed:
        numbering = np.delete(numbering, [m["row"] for m in malformed])
    numbered = [r | {"row": int(numbering[r["row"]])} for r in found]
    return numbering, sorted([*malformed, *numbered], key=lambda r: (r["row"], str(r["column"])))


def _good(rows: int, rejects: Rejects, rejected: list[dict[str, Any]], data: Data) -> Array:
    bad = {r["row"] for r in rejects.found}
    if rejected and data.on_bad_row == "error":
        first = rejected[0]
        more = f", and {len(rejected) - 1} more" if len(rejected) > 1 else ""
        comma = "set data.decimal: ',' if that is a decimal comma, or " if looks_like_comma_number(first["value"]) else ""
        raise DataError(
            f"column {first['column']!r}, row {first['row']}: {first['reason']}, got {shown(first['value'])}{more} "
            f"(rows count from 0); {comma}correct it, or set data.on_bad_row: skip, or the column's kind in data.features",
            field=first["column"],
        )
    if len(bad) == rows:
        first = rejected[0]
        raise DataError(
            f"all {rows} rows are rejected; the first: column {first['column']!r}, {first['reason']}, "
            f"got {shown(first['value'])}",
            field=first["column"],
        )
    keep = np.ones(rows, dtype=bool)
    keep[list(bad)] = False
    return np.flatnonzero(keep)


def _take(columns: Mapping[str, Any], index: Array) -> dict[str, Any]:
    return {n: c.take(pa.array(index)) if is_arrow(c) else c[index] for n, c in columns.items()}


def _as_typed(table: pa.Table, columns: Mapping[str, Any], kinds: Mapping[str, str]) -> pa.Table:
    """Numbers that came as text become numbers: a text would be refused as a JSON value of that feature."""
    for name, kind in kinds.items():
        if kind == "numeric" and is_text(table.schema.field(name).type):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(columns[name], from_pandas=True))
    return table


def _strata(task: str, data: Data, table: pa.Table) -> Array:
    if not data.targets:
        raise DataError("data.split.kind: stratified needs a target", field="data.split")
    found = [table.column(name) for name in data.targets]
    if task != "classification":
        read = numbers if task == "regression" else booleans
        found = [read(c, n, Rejects()) for c, n in zip(found, data.targets, strict=True)]
    return splits.strata_of(task, found)


def _check_classes(task: str, data: Data, columns: Mapping[str, Any], parts: Array) -> None:
    if task != "classification":
        return
    column = columns[data.targets[0]]
    fit_targets(task, data.targets, columns)
    codes = splits.codes(column)
    counts = np.bincount(codes, minlength=int(codes.max()) + 1)
    trained = np.bincount(codes[parts == splits.TRAIN], minlength=len(counts))
    if len(counts) > 1 and (absent := np.flatnonzero(trained == 0)).size:
        row = int(np.flatnonzero(codes == absent[0])[0])
        value = category(as_array(column)[row].as_py())
        raise DataError(
            f"class {value!r} of {data.targets[0]!r} has no training row ({int(counts[absent[0]])} in all); "
            "use data.split.kind: stratified, another seed, or leave the class out",
            field=data.targets[0],
        )


def _arrays(schema: Any, columns: Mapping[str, Any], index: Array, row_numbers: Array) -> Arrays:
    """Transform chunk by chunk, so that only the result is there as a whole."""
    inputs: dict[str, Array] = {}
    ragged: dict[str, list[Array]] = {}
    for start in range(0, max(1, len(index)), CHUNK):
        part = schema.arrays(_take({f.name: columns[f.name] for f in schema.features}, index[start : start + CHUNK]))
        for name, array in part.items():
            if "offsets" in part and name not in ("dense", "categorical"):
                ragged.setdefault(name, []).append(np.diff(array) if name == "offsets" else array)
                continue
            if name not in inputs:
                inputs[name] = np.empty((len(index), *array.shape[1:]), array.dtype)
            inputs[name][start : start + CHUNK] = array
    offsets = ends(np.concatenate(ragged.pop("offsets"))) if ragged else None
    inputs |= {name: np.concatenate(parts) for name, parts in ragged.items()}
    targets = None
    if schema.targets:
        targets = encode_targets(schema, _take({t: columns[t] for t in schema.targets}, index), Rejects())
    if isinstance(targets, Ragged):
        targets = targets.values
    return Arrays(inputs, targets, row_numbers[index], offsets, schema.task == "labelling")


def _no_test(held_out_name: str) -> list[str]:
    if held_out_name == "test":
        return []
    return [f"there are no test rows; the metrics are those of the {held_out_name} rows"]


def _notes(guesses: list[Inferred]) -> list[str]:
    return [
        f"feature {g.name!r} is {g.reason}; put it into data.key or data.exclude unless it means something"
        for g in guesses
        if g.looks_like_key
    ]


def _counted(rejected: list[dict[str, Any]]) -> list[str]:
    if not rejected:
        return []
    first = rejected[0]
    rows = len({r["row"] for r in rejected})
    left = "1 row is" if rows == 1 else f"{rows} rows are"
    return [f"{left} left out; the first: row {first['row']}, {first['column'] or 'all'}: {first['reason']}"]
