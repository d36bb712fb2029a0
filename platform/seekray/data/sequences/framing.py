"""From a long table, a row a step, to a table of sequences: one row an id, or one row a window of a series.

The same code frames training data and what `predict` and `evaluate` are given; the `Frame` is kept in the schema.
A window lies within one series, holds no gap, and has no missing target value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data.columns import check_columns
from seekray.data.options import Data, FeatureOptions
from seekray.data.parse import Array, Rejects, as_array, is_number, numbers
from seekray.data.sequences.ragged import ends
from seekray.data.sources.source import Source, TableSource
from seekray.data.split import codes
from seekray.data.times import seconds, times
from seekray.data.values import json_value
from seekray.errors import DataError

NEXT = "_next"


@dataclass(frozen=True)
class Frame:
    """How rows become sequences; see `SequenceOptions`. columns: resolved; horizon 0: no windows."""

    task: str
    time: str
    target: str
    id: str | None
    columns: tuple[str, ...]
    static: tuple[str, ...]
    future: tuple[str, ...]
    gap: float | None
    history: int
    horizon: int
    stride: int
    season: int | None
    calendar: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Frame:
        """The frame of `to_json`."""
        lists = {name: tuple(value[name]) for name in ("columns", "static", "future")}
        return cls(**{**value, **lists})

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns of the long table, the target apart."""
        ids = (self.id,) if self.id else ()
        return tuple(dict.fromkeys((self.time, *ids, *self.columns, *self.static, *self.future)))

    @property
    def answer(self) -> str:
        """The target's name in the framed table: of a forecast, the values to come."""
        return self.target + NEXT if self.horizon else self.target


@dataclass(frozen=True)
class Framed:
    """table: a row a sequence. starts, origins, stops: seconds of the first step, the last seen, and the last of the target.

    repeated: rows left out because a later one has the same time in the same series. rejected: {row, column, value,
    reason} of rows that cannot be read. short: the same of series whose end gives no window, with their number as row.
    """

    table: pa.Table
    starts: Array
    origins: Array
    stops: Array
    repeated: int = 0
    rejected: tuple[dict[str, Any], ...] = ()
    short: tuple[dict[str, Any], ...] = ()

    def take(self, rows: Array) -> Framed:
        """These rows."""
        return Framed(self.table, self.starts[rows], self.origins[rows], self.stops[rows])


def frame_of(data: Data, task: str, names: Sequence[str]) -> Frame:
    """The frame of an experiment's data. Raises DataError."""
    options = data.sequence
    assert options is not None
    (target,) = data.targets
    wanted = (options.time, options.id, *options.static, *options.future, *(options.columns or ()), target)
    check_columns(filter(None, wanted), list(names), field="data.sequence")
    taken = {options.time, options.id, *options.static, *data.key, *data.exclude, data.split.by}
    if options.columns is not None:
        columns = options.columns
    else:
        columns = tuple(n for n in names if n not in taken and (n != target or task == "forecast"))
    if task == "forecast" and target not in columns:
        columns = (target, *columns)
    return Frame(
        task=task,
        time=options.time,
        target=target,
        id=options.id,
        columns=tuple(dict.fromkeys((*columns, *options.future))),
        static=options.static,
        future=options.future,
        gap=options.gap,
        history=options.history or 0,
        horizon=options.horizon or 0,
        stride=options.stride,
        season=options.season,
        calendar=options.calendar,
    )


def framed_data(data: Data, frame: Frame) -> Data:
    """The experiment's data as it is once framed: an ordinary table with lists."""
    given = data.features or {}
    # A single text column of a step has no meaning yet: numbers only.
    features = {name: FeatureOptions(kind="sequence") for name in frame.columns}
    features |= {name + NEXT: FeatureOptions(kind="vector") for name in frame.future}
    features |= {name: given.get(name, FeatureOptions()) for name in frame.static}
    if frame.calendar:
        features[frame.time] = FeatureOptions(kind="timestamp", trend=False)
    key = tuple(n for n in (frame.id, frame.time) if n)  # carried through, learned from or not
    by = frame.time if data.split.kind == "time" else data.split.by
    split = data.split.model_copy(update={"by": by})
    changes = {"target": frame.answer, "features": features, "key": key, "split": split, "sequence": None, "exclude": ()}
    return data.model_copy(update=changes)


def frame_table(table: pa.Table, frame: Frame, *, targets: bool = True, only_last: bool = False, skip: bool = False) -> Framed:
    """Sequences of a long table; of rows with the same time in one series the last counts.

    targets: the target is there and goes along. only_last: of each series, the window that ends with its last known
    value. skip: rows that cannot be read are left out, as if they were not there; else they raise DataError.
    """
    check_columns((*frame.wanted, *((frame.target,) if targets or frame.horizon else ())), table.column_names)
    rejects = Rejects(strict=not skip)
    when = _seconds(table.column(frame.time), frame.time, rejects)
    names = dict.fromkeys((*frame.columns, *((frame.target,) if frame.horizon else ())))
    values = {name: numbers(table.column(name), name, rejects) for name in names}
    series = _in_order(codes(table.column(frame.id))) if frame.id else np.zeros(len(table), dtype=np.int64)
    order = np.lexsort((when, series))
    order = order[~np.isin(order, [r["row"] for r in rejects.found])]
    again = np.append((series[order][1:] == series[order][:-1]) & (np.diff(when[order]) == 0), False)[: len(order)]
    order = order[~again]
    table, when, series = table.take(pa.array(order)), when[order], series[order]
    values = {name: column[order] for name, column in values.items()}
    cut = series[1:] != series[:-1]
    if frame.gap is not None:
        cut = cut | (np.diff(when) > frame.gap)
    firsts = np.concatenate([[0], np.flatnonzero(cut) + 1]).astype(np.int64) if len(table) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(firsts, len(table)))
    if only_last and len(firsts):  # what comes after the last gap
        last = np.append(series[firsts][1:] != series[firsts][:-1], True)
        firsts, sizes = firsts[last], sizes[last]
    if frame.horizon:
        found = _windows(table, values, when, frame, firsts, sizes, targets, only_last)
    else:
        found = _whole(table, values, when, frame, firsts, sizes, targets)
    return replace(found, repeated=int(again.sum()), rejected=tuple(rejects.found))


def _in_order(found: Array) -> Array:
    """Group numbers in the order in which the groups first occur."""
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    order: Array = np.argsort(np.argsort(first))[inverse]
    return order


def _seconds(column: Any, name: str, rejects: Rejects) -> Array:
    """float64 (N,) seconds, or the numbers themselves; a missing time is rejected."""
    numeric = is_number(as_array(column).type)
    found = numbers(column, name, rejects) if numeric else seconds(times(column, name, rejects))
    told = {r["row"] for r in rejects.found}
    for row in np.flatnonzero(~np.isfinite(found)).tolist():
        if row not in told:
            rejects.add(name, row, None, "the time is missing")
    return found


def _lists(values: Array, starts: Array, length: int) -> pa.Array:
    """Lists of `length` values from `starts` on."""
    flat = values[(starts[:, None] + np.arange(length)).ravel()]
    offsets = pa.array(np.arange(len(starts) + 1, dtype=np.int32) * length)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, from_pandas=True))


def _windows(
    table: pa.Table,
    values: Mapping[str, Array],
    when: Array,
    frame: Frame,
    firsts: Array,
    sizes: Array,
    targets: bool,
    only_last: bool,
) -> Framed:
    """One row a window: lists of `history` steps, and of the `horizon` after them."""
    history, horizon = frame.history, frame.horizon
    known = np.isfinite(values[frame.target])
    after = horizon if targets or frame.future else 0
    short: list[dict[str, Any]] = []
    if only_last:
        begin, short = _ends(table, known, frame, firsts, sizes)
    else:
        spans = zip(firsts.tolist(), sizes.tolist(), strict=True)
        begins = [np.arange(first, first + size - history - after + 1, frame.stride) for first, size in spans]
        begin = np.concatenate(begins) if begins else np.zeros(0, np.int64)
    missing = np.concatenate([[0], np.cumsum(~known)])
    span = history + (horizon if targets else 0)
    begin = begin[missing[begin + span] == missing[begin]]
    origin = begin + history - 1
    columns: dict[str, Any] = {frame.time: table.column(frame.time).take(pa.array(origin))}
    for name in (*((frame.id,) if frame.id else ()), *frame.static):
        columns[name] = table.column(name).take(pa.array(origin))
    columns |= {name: _lists(values[name], begin, history) for name in frame.columns}
    columns |= {name + NEXT: _lists(values[name], begin + history, horizon) for name in frame.future}
    if targets:
        columns[frame.answer] = _lists(values[frame.target], begin + history, horizon)
    return Framed(pa.table(columns), when[begin], when[origin], when[begin + span - 1], short=tuple(short))


def _ends(table: pa.Table, known: Array, frame: Frame, firsts: Array, sizes: Array) -> tuple[Array, list[dict[str, Any]]]:
    """Where the window begins that ends with each series' last known value; and the series that have none, see `Framed`."""
    begin, short = [], []
    for number, (first, size) in enumerate(zip(firsts.tolist(), sizes.tolist(), strict=True)):
        own = known[first : first + size]
        steps = int(np.flatnonzero(own)[-1]) + 1 if own.any() else 0
        start = first + steps - frame.history
        reason = None
        if steps < frame.history:
            since = "" if frame.gap is None else " after its last gap"
            reason = f"{steps} steps up to the last {frame.target!r}{since}, the model looks back on {frame.history}"
        elif not known[start : start + frame.history].all():
            reason = f"a value of {frame.target!r} is missing among the last {frame.history} steps"
        elif frame.future and steps + frame.horizon > size:
            reason = (
                f"the next {frame.horizon} values of {', '.join(frame.future)} are missing, which are known in advance: "
                f"give rows for them, without {frame.target!r}"
            )
        if reason is None:
            begin.append(start)
            continue
        names = [n for n in (frame.id, frame.time) if n]
        last = {n: json_value(table.column(n)[first + size - 1].as_py()) for n in names}
        short.append({"row": number, "column": frame.target, "value": last, "reason": reason})
    return np.array(begin, dtype=np.int64), short


def _whole(
    table: pa.Table, values: Mapping[str, Array], when: Array, frame: Frame, firsts: Array, sizes: Array, targets: bool
) -> Framed:
    """One row a series: lists of all its steps."""
    offsets = pa.array(ends(sizes).astype(np.int32))
    columns: dict[str, Any] = {frame.time: table.column(frame.time).take(pa.array(firsts))}
    once = [*((frame.id,) if frame.id else ()), *frame.static]
    if targets and frame.task != "labelling":
        once.append(frame.target)
    for name in once:
        column = table.column(name)
        columns[name] = column.take(pa.array(firsts))
        if name != frame.id and len(table):
            own = codes(column)
            if (odd := np.flatnonzero(own != np.repeat(own[firsts], sizes))).size:
                raise DataError(f"column {name!r} is not the same in all steps of a sequence (row {int(odd[0])})", field=name)
    for name in frame.columns:
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(values[name], from_pandas=True))
    if targets and frame.task == "labelling":
        columns[frame.target] = pa.ListArray.from_arrays(offsets, as_array(table.column(frame.target)))
    ends_at = when[firsts + sizes - 1] if len(firsts) else when[:0]
    return Framed(pa.table(columns), when[firsts], ends_at, ends_at)


def framed_rows(table: pa.Table, frame: Mapping[str, Any] | None) -> tuple[pa.Table, tuple[dict[str, Any], ...]]:
    """A long table with its targets as rows, and its steps that cannot be read.

    A table of rows, and any where there is no frame, stays as it is.
    """
    if frame is None or frame["columns"][0] not in table.column_names:
        return table, ()
    if pa.types.is_nested(table.schema.field(frame["columns"][0]).type):
        return table, ()
    found = frame_table(table, Frame.from_json(frame), skip=True)
    return found.table, found.rejected


class FramedSource(TableSource):
    """A long table's source as one of sequences: of a forecast the windows at the end, or all."""

    def __init__(self, source: Source, frame: Frame, only_last: bool) -> None:
        super().__init__(source.description, source.paths)
        self._source, self._frame, self._only_last = source, frame, only_last and bool(frame.horizon)

    def _read(self) -> pa.Table:
        frame = self._frame
        names = list(dict.fromkeys([*frame.wanted, *((frame.target,) if frame.horizon else ())]))
        found = frame_table(self._source.table(names), frame, targets=False, only_last=self._only_last, skip=True)
        # Lines that are no rows, steps that cannot be read, and series without a window: none goes unsaid.
        self.malformed = [*self._source.malformed, *found.rejected, *found.short]
        return found.table

    @property
    def bytes(self) -> int | None:
        return self._source.bytes


def framed_source(source: Source, frame: Mapping[str, Any] | None, *, only_last: bool = True) -> Source:
    """`source` itself, or, where it is a long table, framed; see `FramedSource`."""
    if frame is None or frame["columns"][0] not in source.schema.names:
        return source
    long = not pa.types.is_nested(source.schema.field(frame["columns"][0]).type)
    return FramedSource(source, Frame.from_json(frame), only_last) if long else source


def straddling(framed: Framed, parts: Array) -> Array:
    """Rows whose steps lie on both sides of the place where a later part begins; they belong to neither."""
    out = np.zeros(len(parts), dtype=bool)
    for part in np.unique(parts[parts > 0]):
        cut = framed.origins[parts == part].min()
        out |= (framed.starts < cut) & (framed.stops >= cut)
    return out
