"""Targets, and what kind a column is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from tests.data.conftest import KINDS, data

from seekray.data.kinds import infer_kinds
from seekray.data.tables.fitting import fit
from seekray.errors import DataError


class TestTargets:
    def test_classes_are_sorted_json_values(self) -> None:
        for values, classes in (
            ([10, 9, 10, None], [9, 10]),
            ([True, False], [False, True]),
            (["b", "B", "a"], ["B", "a", "b"]),
        ):
            table = pa.table({"x": np.arange(len(values)), "y": values}).filter(pa.compute.is_valid(pa.array(values)))
            schema = fit(table, data(target="y"), "classification")
            assert schema.classes == classes
            assert [type(c) for c in schema.classes] == [type(c) for c in classes]
        floats = fit(pa.table({"x": [1, 2, 3], "y": [2.0, 1.0, 2.0]}), data(target="y"), "classification")
        assert (floats.classes, floats.class_counts, floats.num_outputs) == ([1, 2], [1, 2], 2)
        assert isinstance(floats.classes[0], int)
        assert floats.encode_targets({"y": [1, 2.0, "2", None, 7]}).tolist() == [0, 1, 1, -1, -1]

    def test_regression_is_standardised(self) -> None:
        schema = fit(pa.table({"x": [1, 2], "y": [10, 30]}), data(target="y"), "regression")
        assert (schema.target_mean, schema.target_std, schema.num_outputs) == (20, 10, 1)
        got = schema.encode_targets(pa.table({"y": [10, 40, None]}))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, [[-1], [2], [np.nan]])
        with pytest.raises(DataError, match="'y', row 0"):
            schema.encode_targets({"y": ["x"]})

    def test_multilabel(self) -> None:
        table = pa.table({"x": [1, 2, 3], "a": [1, 0, 1], "b": [True, False, False]})
        schema = fit(table, data(target=["a", "b"]), "multilabel")
        assert (schema.classes, schema.class_counts, schema.num_outputs, schema.rows) == (["a", "b"], [2, 1], 2, 3)
        assert schema.encode_targets(table).tolist() == [[1, 1], [0, 0], [1, 0]]
        with pytest.raises(DataError, match="'a', row 0"):
            schema.encode_targets({"a": [2], "b": [1]})


class TestKinds:
    def test_by_type_and_values(self, mixed: pa.Table) -> None:
        found = {k.name: k for k in infer_kinds(mixed, data(target="label", key="id"))}
        want = {name: kind if isinstance(kind, str) else kind["kind"] for name, kind in KINDS.items()}
        assert {n: k.kind for n, k in found.items()} == want | {"code": "numeric"}
        assert found["code"].unsure
        assert "4 different" in found["code"].reason
        assert not found["size"].unsure

    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            ([str(i) for i in range(99)] + ["abc"], "numeric"),
            ([str(i) for i in range(90)] + ["abc"] * 10, "categorical"),
            (["02", "03"] * 50, "categorical"),
            (["2024-01-01", "2024-01-02T10:00:00Z"] * 10, "timestamp"),
            (["10:30", "11:45:10"] * 10, "timestamp"),
            ([f"a long remark about thing number {i}" for i in range(50)], "text"),
            (["yes", "no"] * 10, "categorical"),
            ([None] * 5, "numeric"),
        ],
    )
    def test_of_text(self, values: list[Any], kind: str) -> None:
        (found,) = infer_kinds(pa.table({"x": pa.array(values, pa.string())}), data())
        assert found.kind == kind
        assert found.reason

    def test_ids(self) -> None:
        table = pa.table({"user_id": np.arange(50), "uuid": [f"u{i}" for i in range(50)], "idea": np.arange(50)})
        assert [(k.looks_like_key, k.unsure) for k in infer_kinds(table, data())] == [
            (True, True),
            (True, True),
            (False, False),
        ]

    def test_given_kinds_win_and_only_features_are_there(self) -> None:
        table = pa.table({"a": [1, 2], "b": ["x", "y"], "y": [0, 1]})
        found = infer_kinds(table, data(target="y", features={"a": "categorical"}))
        assert [(k.name, k.kind) for k in found] == [("a", "categorical")]

    def test_a_type_that_no_kind_reads(self) -> None:
        with pytest.raises(DataError, match=r"'a' holds struct.*data\.exclude"):
            infer_kinds(pa.table({"a": [{"b": 1}]}), data())
