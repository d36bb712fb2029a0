"""No row in two parts, fractions kept, the same seed the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seekray.data.options import Split
from seekray.data.parse import Rejects
from seekray.data.split import TEST, TRAIN, VALIDATION, assign, split_keys, strata_of
from seekray.errors import DataError


def split(rows: int, **options: Any) -> np.ndarray[Any, Any]:
    by = options.pop("column", None)
    strata = options.pop("strata", None)
    if by is not None:
        options["by"] = "c"
    made = Split(**options)
    keys = None if by is None else split_keys(made, pa.array(by), Rejects())
    return assign(made, rows, keys=keys, strata=strata)


def sizes(parts: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    return int((parts == TRAIN).sum()), int((parts == VALIDATION).sum()), int((parts == TEST).sum())


class TestRandom:
    def test_fractions_and_seed(self) -> None:
        parts = split(1000, test=0.25, validation=0.15, seed=3)
        assert sizes(parts) == (600, 150, 250)
        np.testing.assert_array_equal(parts, split(1000, test=0.25, validation=0.15, seed=3))
        assert (parts != split(1000, test=0.25, validation=0.15, seed=4)).any()

    @pytest.mark.parametrize(
        ("rows", "want"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (7, 1, 2)), (15, (10, 2, 3))]
    )
    def test_tiny(self, rows: int, want: tuple[int, int, int]) -> None:
        assert sizes(split(rows)) == want

    def test_no_test_no_validation(self) -> None:
        assert sizes(split(10, test=0, validation=0)) == (10, 0, 0)
        assert sizes(split(10, test=0, validation=0.3)) == (7, 3, 0)


class TestStratified:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 5))
    def test_every_class_keeps_its_share_and_a_training_row(self, counts: list[int], seed: int) -> None:
        strata = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
        parts = split(len(strata), kind="stratified", test=0.2, validation=0.1, seed=seed, strata=strata)
        for number, count in enumerate(counts):
            mine = parts[strata == number]
            assert (mine == TRAIN).any()
            if count >= 10 and min(counts) >= 10:
                assert abs(int((mine == TEST).sum()) - 0.2 * count) <= 1
                assert abs(int((mine == VALIDATION).sum()) - 0.1 * count) <= 1
        if min(counts) >= 10:
            assert abs((parts == TEST).sum() - 0.2 * len(parts)) <= 1

    def test_strata(self) -> None:
        assert strata_of("classification", [pa.array(["b", "a", "b"])]).tolist() == [1, 0, 1]
        labels = strata_of("multilabel", [np.array([0.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])])
        assert labels[0] == labels[2]
        assert len(set(labels)) == 3
        tenths = strata_of("regression", [np.random.default_rng(0).normal(size=1000)])
        assert np.bincount(tenths).tolist() == pytest.approx([100] * 10, abs=1)


class TestGroup:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(1, 30), min_size=3, max_size=30), st.integers(0, 5))
    def test_no_group_straddles_and_no_part_is_empty(self, counts: list[int], seed: int) -> None:
        groups = np.random.default_rng(2).permutation(np.repeat(np.arange(len(counts)), counts))
        parts = split(len(groups), kind="group", column=[f"g{g}" for g in groups], seed=seed)
        for number in range(len(counts)):
            assert len(set(parts[groups == number])) == 1
        assert min(sizes(parts)) >= 1

    def test_fractions_where_groups_allow(self) -> None:
        parts = split(1000, kind="group", column=np.arange(1000) // 5, test=0.2, validation=0.1)
        assert sizes(parts) == (700, 100, 200)

    def test_too_few_groups(self) -> None:
        with pytest.raises(DataError, match="has 2 groups, expected at least 3"):
            split(10, kind="group", column=["a", "b"] * 5)


class TestTime:
    def test_the_last_rows_are_the_test_in_any_order(self) -> None:
        times = np.random.default_rng(0).permutation(100)
        parts = split(100, kind="time", column=times)
        assert sizes(parts) == (70, 10, 20)
        assert times[parts == TRAIN].max() < times[parts == VALIDATION].min()
        assert times[parts == VALIDATION].max() < times[parts == TEST].min()

    @settings(max_examples=80, deadline=None)
    @given(st.lists(st.integers(0, 12), min_size=3, max_size=60).filter(lambda v: len(set(v)) >= 3))
    def test_equal_times_stay_together(self, times: list[int]) -> None:
        parts = split(len(times), kind="time", column=times)
        for value in set(times):
            assert len({int(p) for p, t in zip(parts, times, strict=True) if t == value}) == 1
        order = [int(p) for _, p in sorted(zip(times, parts, strict=True), key=lambda pair: pair[0])]
        assert order == sorted(order, key=[TRAIN, VALIDATION, TEST].index)
        assert min(sizes(parts)) >= 1

    def test_three_distinct_times_always_split(self) -> None:
        for counts in ([1, 1, 98], [98, 1, 1], [1, 98, 1], [33, 33, 34]):
            assert min(sizes(split(100, kind="time", column=np.repeat([5, 6, 7], counts)))) >= 1

    def test_texts_and_dates(self) -> None:
        import datetime as dt

        days = [dt.date(2024, 1, 1) + dt.timedelta(days=i) for i in range(20)]
        want = split(20, kind="time", column=list(range(20)))
        np.testing.assert_array_equal(split(20, kind="time", column=days), want)
        np.testing.assert_array_equal(split(20, kind="time", column=[d.isoformat() for d in days]), want)

    def test_one_time_only(self) -> None:
        with pytest.raises(DataError, match="has 1 different times in 10 rows, expected at least 3"):
            split(10, kind="time", column=[1] * 10)


class TestColumn:
    def test_values(self) -> None:
        parts = split(7, kind="column", column=["train", "Training", "validation", "val", "test", " TEST ", "train"])
        assert parts.tolist() == [TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST, TRAIN]

    def test_other_values_and_missing_ones(self) -> None:
        with pytest.raises(DataError, match=r"row 1: expected train, validation .* got 'tset'"):
            split(2, kind="column", column=["train", "tset"])
        rejects = Rejects(strict=False)
        split_keys(Split(kind="column", by="c"), pa.array(["train", None, "x"]), rejects)
        assert [(r["row"], r["column"]) for r in rejects.found] == [(2, "c"), (1, "c")]

    def test_no_training_row(self) -> None:
        with pytest.raises(DataError, match="no training row"):
            split(2, kind="column", column=["test", "val"])
