"""Which rows are for training, validation and test."""

from __future__ import annotations

from typing import Any

import numpy as np

from seekray.data.blocks import count_categories, encode
from seekray.data.options import Split
from seekray.data.parse import Array, Column, Rejects, as_array, as_list, category, is_arrow, is_number, numbers
from seekray.data.times import times
from seekray.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = {"train": TRAIN, "training": TRAIN, "validation": VALIDATION, "val": VALIDATION, "valid": VALIDATION}
NAMES |= {"dev": VALIDATION, "test": TEST, "testing": TEST, "holdout": TEST}


def codes(column: Column) -> Array:
    """int64 (B,): equal values have equal numbers, in the order of their text; -1 is missing."""
    names = sorted({category(v) or "" for v, _ in count_categories(column)})
    lookup: dict[str | None, int] = {None: -1} | {name: i for i, name in enumerate(names)}
    return encode(column, "split", lookup, -1, Rejects(strict=False))


def split_keys(split: Split, column: Column, rejects: Rejects) -> Array:
    """What a split needs of its column, (B,): group numbers, sortable times, or part numbers.

    Values that cannot be used go to `rejects`.
    """
    name = split.by or ""
    if split.kind == "time":
        keys = _sortable(column, name, rejects)
        missing = np.isnat(keys) if keys.dtype.kind == "M" else np.isnan(keys)
        reason = "the time to split by is missing"
    elif split.kind == "column":
        values = [category(v) for v in as_list(column)]
        keys = np.array([-1 if v is None else NAMES.get(v.strip().lower(), -2) for v in values], dtype=np.int64)
        for row in np.flatnonzero(keys == -2):
            rejects.add(name, int(row), values[row], "expected train, validation (val) or test")
        missing, reason = keys == -1, "the part to split by is missing"
    else:
        keys = codes(column)
        missing, reason = keys == -1, "the group to split by is missing"
    known = {r["row"] for r in rejects.found if r["column"] == name}
    for row in np.flatnonzero(missing):
        if row not in known:
            rejects.add(name, int(row), None, reason)
    return keys


def _sortable(column: Column, name: str, rejects: Rejects) -> Array:
    if is_arrow(column) and is_number(as_array(column).type):
        return numbers(column, name, rejects)
    return times(column, name, rejects)


def assign(split: Split, rows: int, *, keys: Array | None = None, strata: Array | None = None) -> Array:
    """int8 (rows,) of 0 train, 1 validation, 2 test.

    keys: of `split_keys`, for group, time and column. strata: int64 (rows,), for stratified. The same
    arguments give the same answer; each row is in one part. Raises DataError where no training row is left.
    """
    if split.kind == "column":
        assert keys is not None
        out = keys.astype(np.int8)
    elif split.kind == "group":
        assert keys is not None
        out = _by_group(split, keys)
    elif split.kind == "time":
        assert keys is not None
        out = _by_time(split, keys)
    else:
        if split.kind == "random" or strata is None:
            strata = np.zeros(rows, dtype=np.int64)
        out = _by_strata(split, strata, guard=split.kind == "stratified")
    if split.fold is not None:
        out = _folded(split, out, keys if split.kind == "group" else strata)
    if not (out == TRAIN).any():
        raise DataError(f"data.split leaves no training row of {rows}", field="data.split")
    return out


def sizes(split: Split, rows: int) -> tuple[int, int]:
    """Rows of test and validation: the fractions rounded, at least one each where there are enough rows."""
    test = max(round(rows * split.test), 1) if split.test else 0
    validation = max(round(rows * split.validation), 1) if split.validation else 0
    test = min(test, max(rows - 1, 0))
    return test, min(validation, max(rows - test - 1, 0))


def _share(counts: Array, total: int, most: Array) -> Array:
    """`total` shared out in proportion to `counts` by largest remainder, at most `most` each."""
    exact = counts * (total / max(1, counts.sum()))
    out: Array = np.minimum(np.floor(exact).astype(np.int64), most)
    order = np.argsort(-(exact - out), kind="stable")
    while (left := total - int(out.sum())) > 0:
        able = order[(most - out)[order] > 0][:left]
        if not len(able):
            break
        out[able] += 1
    return out


def _by_strata(split: Split, strata: Array, *, guard: bool) -> Array:
    """Each stratum gives its share to each part; with `guard`, it keeps one row for training."""
    rng = np.random.default_rng(split.seed)
    rows = len(strata)
    order = rng.permutation(rows)
    order = order[np.argsort(strata[order], kind="stable")]
    _, stratum, counts = np.unique(strata, return_inverse=True, return_counts=True)
    test, validation = sizes(split, rows)
    spare = np.maximum(counts - 1, 0) if guard else counts
    tests = _share(counts, test, spare)
    validations = _share(counts, validation, spare - tests)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    which = stratum[order]
    place = np.arange(rows) - starts[which]
    out = np.empty(rows, dtype=np.int8)
    out[order] = np.where(place < tests[which], TEST, np.where(place < (tests + validations)[which], VALIDATION, TRAIN))
    return out


def _folded(split: Split, out: Array, labels: Array | None) -> Array:
    """The rows outside the test in k parts of about one size, one of which is validation; groups stay whole."""
    assert labels is not None
    assert split.fold is not None
    which, k = split.fold
    rng = np.random.default_rng([split.seed, 1])
    rest = rng.permutation(np.flatnonzero(out != TEST))
    if split.kind == "group":
        unique, index, counts = np.unique(labels[rest], return_inverse=True, return_counts=True)
        if len(unique) < k:
            raise DataError(f"data.split.fold: {len(unique)} groups outside the test are no {k} parts", field="data.split.fold")
        sizes_, fold_of = np.zeros(k, dtype=np.int64), np.zeros(len(unique), dtype=np.int64)
        for group in np.argsort(-counts, kind="stable"):
            fold_of[group] = int(np.argmin(sizes_))
            sizes_[fold_of[group]] += counts[group]
        folds = fold_of[index]
    else:
        rest = rest[np.argsort(labels[rest], kind="stable")]
        folds = np.arange(len(rest)) % k
    out = out.copy()
    out[rest] = np.where(folds == which, VALIDATION, TRAIN)
    return out


def _by_group(split: Split, groups: Array) -> Array:
    """Whole groups in random order, each to the part that it brings nearer to its size."""
    unique, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    wanted = [(part, size) for part, size in zip((TEST, VALIDATION), sizes(split, len(groups)), strict=True) if size]
    if len(unique) <= len(wanted):
        raise DataError(
            f"data.split.by: {split.by} has {len(unique)} groups, expected at least {len(wanted) + 1}, "
            "one for each part; set data.split.test or validation to 0, or split by another column",
            field="data.split",
        )
    part_of = np.zeros(len(unique), dtype=np.int8)
    left = list(np.random.default_rng(split.seed).permutation(len(unique)))
    for number, (part, size) in enumerate(wanted):
        taken = 0
        # The parts after this one, training included, need a group each.
        reserve = len(wanted) - number
        for group in list(left):
            if len(left) <= reserve:
                break
            if abs(taken + counts[group] - size) < abs(taken - size):
                part_of[group] = part
                taken += int(counts[group])
                left.remove(group)
        if not taken:
            group = min(left, key=lambda g: counts[g])
            part_of[group] = part
            left.remove(group)
    return part_of[index]


def _by_time(split: Split, keys: Array) -> Array:
    """The last rows are the test, those before them validation; equal times stay together."""
    unique, counts = np.unique(keys, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)])  # where each time begins among the sorted rows, and the end
    test, validation = sizes(split, len(keys))
    parts = 1 + bool(test) + bool(validation)
    if len(unique) < parts:
        raise DataError(
            f"data.split.by: {split.by} has {len(unique)} different times in {len(keys)} rows, expected at least {parts}, "
            "one for each part; set data.split.test or validation to 0, or split by another column",
            field="data.split",
        )
    out = np.full(len(keys), TRAIN, dtype=np.int8)
    end = len(unique)
    for part, size, earlier in ((TEST, test, 1 + bool(validation)), (VALIDATION, validation, 1)):
        if size:
            # The place where a time begins that is nearest to the fraction, and leaves a time for each earlier part.
            first = earlier + int(np.argmin(np.abs(starts[earlier:end] - (starts[end] - size))))
            out[(keys >= unique[first]) & (out == TRAIN)] = part
            end = first
    return out


def describe(parts: Array) -> dict[str, int]:
    """Rows of each part."""
    return {name: int((parts == part).sum()) for name, part in (("train", 0), ("validation", 1), ("test", 2))}


def strata_of(task: str, targets: list[Any]) -> Array:
    """int64 (B,) strata: the class, the combination of labels, or the tenth of a regression's range."""
    if task == "classification":
        return codes(targets[0])
    if task == "multilabel":
        flags = np.stack([np.asarray(t, dtype=np.int64) for t in targets], axis=1)
        return np.asarray(np.unique(flags, axis=0, return_inverse=True)[1]).reshape(-1)
    values = np.asarray(targets[0], dtype=np.float64)
    edges = np.quantile(values, np.linspace(0, 1, 11)[1:-1])
    return np.searchsorted(edges, values)
