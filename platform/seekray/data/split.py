"""Which rows train, validate and test. No row is in two splits; the same seed gives the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data import columns as cols
from seekray.data.options import Split
from seekray.errors import DataError

Rows = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Splits:
    """Sorted row positions of each split."""

    train: Rows
    validation: Rows
    test: Rows


def split(table: pa.Table, options: Split, labels: Rows | None = None) -> Splits:
    """Split a table. labels: (N,) classes, for stratified splits. Raises DataError."""
    rows = table.num_rows
    if options.kind == "column":
        parts = _by_column(table, options)
    elif options.kind == "time":
        parts = _by_time(table, options)
    elif options.kind == "group":
        parts = _by_group(table, options)
    else:
        if options.kind == "stratified" and labels is None:
            raise DataError("data.split.kind: stratified needs classes; use random for numbers", field="data.split.kind")
        strata = labels if options.kind == "stratified" and labels is not None else np.zeros(rows, dtype=np.int64)
        parts = _by_strata(strata, options)
    splits = Splits(*(np.sort(p).astype(np.int64) for p in parts))
    if not len(splits.train):
        raise DataError(f"the split leaves no training rows of {rows}; give fewer to test and validation", field="data.split")
    return splits


def _counts(rows: int, options: Split) -> tuple[int, int]:
    """Rows of validation and test; at least one where a fraction is asked for and there are three."""
    counts = [max(1, round(rows * f)) if f and rows >= 3 else 0 for f in (options.validation, options.test)]
    return counts[0], counts[1]


def _by_strata(strata: Rows, options: Split) -> tuple[Rows, Rows, Rows]:
    generator = np.random.default_rng(options.seed)
    order = generator.permutation(len(strata))
    if strata.any():  # deal the classes out evenly: any window then holds each in its share
        _, inverse = np.unique(strata[order], return_inverse=True)
        ranks = np.empty(len(order))
        for value in range(inverse.max() + 1):
            members = np.flatnonzero(inverse == value)
            ranks[members] = (np.arange(len(members)) + generator.random()) / len(members)
        order = order[np.argsort(ranks, kind="stable")]
        return _deal(order, strata, options)
    validation, test = _counts(len(order), options)
    return order[validation + test :], order[:validation], order[validation : validation + test]


def _deal(order: Rows, strata: Rows, options: Split) -> tuple[Rows, Rows, Rows]:
    """From each class its share, by largest remainders so that the totals are right; one of each stays in training."""
    validation, test = _counts(len(order), options)
    taken: list[Rows] = []
    left = order
    for wanted in (validation, test):
        classes, counts = np.unique(strata[left], return_counts=True)
        exact = counts * wanted / max(1, len(left))
        share = np.minimum(np.floor(exact).astype(int), counts - 1)
        for i in np.argsort(share - exact, kind="stable"):
            if share.sum() < wanted and share[i] < counts[i] - 1:
                share[i] += 1
        chosen = np.concatenate([left[strata[left] == c][:n] for c, n in zip(classes, share, strict=True)])
        taken.append(chosen)
        left = left[~np.isin(left, chosen)]
    return left, taken[0], taken[1]


def _by_group(table: pa.Table, options: Split) -> tuple[Rows, Rows, Rows]:
    groups = _codes(table, options)
    generator = np.random.default_rng(options.seed)
    order = generator.permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    ends = np.cumsum(sizes)
    validation, test = _counts(len(groups), options)
    # A group belongs to the part in which its middle row falls.
    middle = ends - sizes / 2
    part = np.where(middle < validation, 1, np.where(middle < validation + test, 2, 0))
    if options.test and not (part == 2).any():
        part[np.argmax(part == 0)] = 2
    of_group = np.empty(len(order), dtype=int)
    of_group[order] = part
    of_row = of_group[groups]
    return np.flatnonzero(of_row == 0), np.flatnonzero(of_row == 1), np.flatnonzero(of_row == 2)


def _by_time(table: pa.Table, options: Split) -> tuple[Rows, Rows, Rows]:
    """Train, then validation, then test; rows of the same time stay together, in the later part."""
    assert options.by is not None
    values = cols.column(table, options.by)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        moments: Rows = np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
        absent = np.isnan(moments)
    else:
        stamps = cols.times(values, options.by)
        absent, moments = np.isnat(stamps), stamps.astype(np.int64).astype(np.float64)
    if absent.any():
        raise DataError(f"data.split.by: {int(absent.sum())} rows have no {options.by!r}, first row {int(np.argmax(absent))}")
    validation, test = _counts(len(moments), options)
    ordered = np.sort(moments)
    start_test = ordered[len(ordered) - test] if test else np.inf
    before = ordered[ordered < start_test]
    start_validation = before[max(0, len(before) - validation)] if validation and len(before) else start_test
    return (
        np.flatnonzero(moments < start_validation),
        np.flatnonzero((moments >= start_validation) & (moments < start_test)),
        np.flatnonzero(moments >= start_test),
    )


def _by_column(table: pa.Table, options: Split) -> tuple[Rows, Rows, Rows]:
    assert options.by is not None
    index = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "test": 2}
    values = cols.column(table, options.by)
    found = cols.lookup(values, index, -1, -1)
    if (found < 0).any():
        row = int(np.argmax(found < 0))
        raise cols.wrong(options.by, row, values[row].as_py(), "train, validation or test")
    return np.flatnonzero(found == 0), np.flatnonzero(found == 1), np.flatnonzero(found == 2)


def _codes(table: pa.Table, options: Split) -> Rows:
    assert options.by is not None
    values = cols.column(table, options.by)
    keys = {cols.key_of(v) for v in values.unique().to_pylist()}
    index = {key: i for i, key in enumerate(sorted(k for k in keys if k is not None))}
    found = cols.lookup(values, index, len(index), len(index))
    return np.unique(found, return_inverse=True)[1]
