"""One code for all doors; what each kind does with missing, unseen, infinite and odd values."""

from __future__ import annotations

import datetime as dt
import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import KINDS, data, json_rows, same, schema_of

from seekray.data.tables.features import Feature, FeatureSchema
from seekray.data.tables.fitting import fit
from seekray.errors import DataError


@pytest.fixture(scope="module")
def mixed_schema(mixed: pa.Table) -> FeatureSchema:
    return fit(mixed.slice(0, 70), data(target="label", features=KINDS, key="id"), "classification")


class TestParity:
    def test_table_batches_rows_and_json_give_equal_tensors(self, mixed: pa.Table, mixed_schema: FeatureSchema) -> None:
        whole = mixed_schema.transform(mixed)
        assert whole["dense"].dtype == torch.float32
        assert whole["categorical"].dtype == torch.int64
        assert whole["dense"].shape == (90, mixed_schema.dense_size)
        assert whole["categorical"].shape == (90, 2)
        rows = json_rows(mixed, list(KINDS))
        assert same(mixed_schema.transform(mixed_schema.columns_from_rows(rows)), whole)
        chunked = pa.concat_tables([mixed.slice(0, 13), mixed.slice(13, 30), mixed.slice(43)])
        assert same(mixed_schema.transform(chunked), whole)
        for start, stop in ((0, 1), (40, 41), (17, 64)):
            part = {k: v[start:stop] for k, v in whole.items()}
            (batch,) = mixed.slice(start, stop - start).combine_chunks().to_batches()
            assert same(mixed_schema.transform(batch), part)
            assert same(mixed_schema.transform(mixed_schema.columns_from_rows(rows[start:stop])), part)

    def test_after_json_the_schema_is_the_same_object(self, mixed: pa.Table, mixed_schema: FeatureSchema) -> None:
        back = FeatureSchema.from_json(json.loads(json.dumps(mixed_schema.to_json(), allow_nan=False)))
        assert back == mixed_schema
        assert same(back.transform(mixed), mixed_schema.transform(mixed))

    def test_another_process_hashes_text_alike(self, mixed_schema: FeatureSchema) -> None:
        text = "The quick brown fox"
        columns = "{f.name: [f.example] for f in s.features} | {'note': [sys.argv[2]]}"
        code = (
            "import sys, json; from seekray.data.tables.features import FeatureSchema; "
            f"s = FeatureSchema.from_json(json.loads(sys.argv[1])); c = {columns}; "
            "print(s.transform(c)['dense'].double().numpy().tobytes().hex())"
        )
        document = json.dumps(mixed_schema.to_json())
        out = subprocess.run([sys.executable, "-c", code, document, text], capture_output=True, text=True, check=True)
        here = {f.name: [f.example] for f in mixed_schema.features} | {"note": [text]}
        assert out.stdout.strip() == mixed_schema.transform(here)["dense"].double().numpy().tobytes().hex()

    def test_columns_come_in_any_order_and_with_others(self, mixed: pa.Table, mixed_schema: FeatureSchema) -> None:
        turned = mixed.select(mixed.column_names[::-1])
        assert same(mixed_schema.transform(turned), mixed_schema.transform(mixed.select(list(KINDS))))

    def test_examples_can_be_sent(self, mixed_schema: FeatureSchema) -> None:
        row = json.loads(json.dumps({f.name: f.example for f in mixed_schema.features}))
        assert torch.isfinite(mixed_schema.transform(mixed_schema.columns_from_rows([row]))["dense"]).all()
        assert row["rooms"] == 0
        assert isinstance(row["code"], int)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.one_of(st.none(), st.floats(), st.integers(-(2**70), 2**70)),
                st.one_of(st.none(), st.sampled_from(["a", "b", "", "z", "é"])),
                st.one_of(st.none(), st.booleans()),
            ),
            min_size=1,
            max_size=9,
        )
    )
    def test_any_rows_alone_or_together(self, rows: list[tuple[Any, Any, Any]]) -> None:
        schema = schema_of(
            {"x": [1.0, 2.0, None, 7.5], "c": ["a", "b", None, "a"], "b": [True, False, None, True]},
            {"x": "numeric", "c": "categorical", "b": "boolean"},
        )
        lists = {name: [row[i] for row in rows] for i, name in enumerate("xcb")}
        table = pa.table(
            {
                "x": pa.array([None if v is None else float(v) for v in lists["x"]], pa.float64()),
                "c": pa.array(lists["c"], pa.string()),
                "b": pa.array(lists["b"], pa.bool_()),
            }
        )
        whole = schema.transform(lists)
        assert torch.isfinite(whole["dense"]).all()
        assert same(schema.transform(table), whole)
        for i in range(len(rows)):
            assert same(schema.transform({k: [v[i]] for k, v in lists.items()}), {k: v[i : i + 1] for k, v in whole.items()})

    def test_numpy_columns(self, mixed: pa.Table, mixed_schema: FeatureSchema) -> None:
        columns: dict[str, Any] = {n: mixed.column(n) for n in KINDS}
        columns["size"] = mixed["size"].to_numpy()
        columns["rooms"] = mixed["rooms"].to_numpy()
        columns["code"] = mixed["code"].to_numpy()
        columns["seen"] = mixed["seen"].to_numpy()
        columns["colour"] = np.array(mixed["colour"].to_pylist(), dtype=object)
        columns["spot"] = np.stack([[np.nan] * 3 if v is None else v for v in mixed["spot"].to_pylist()])
        assert np.isnan(columns["code"]).any()
        assert same(mixed_schema.transform(columns), mixed_schema.transform(mixed))

    def test_a_row_of_64_numbers_is_fast(self) -> None:
        names = [f"x{i}" for i in range(64)]
        schema = schema_of({n: np.arange(10.0) + i for i, n in enumerate(names)})
        columns = {n: [1.5] for n in names}
        best = math.inf
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(50):
                schema.transform(columns)
            best = min(best, (time.perf_counter() - start) / 50)
        assert best < 60e-6, f"{best * 1e6:.0f} µs"


class TestNumeric:
    def test_scaled_by_mean_and_deviation_in_float64(self) -> None:
        x = np.array([1e9 + 1, 1e9 + 2, 1e9 + 6])
        dense = schema_of({"x": x}).transform({"x": x})["dense"][:, 0].numpy()
        np.testing.assert_allclose(dense, (x - x.mean()) / x.std(), rtol=1e-6)

    def test_missing_and_infinite_take_the_median_and_an_indicator(self) -> None:
        schema = schema_of({"x": [1.0, 2.0, 10.0, None, math.inf, -math.inf, math.nan], "y": [1.0] * 6 + [2.0]})
        state = schema.features[0].state
        assert state["median"] == 2.0
        assert state["mean"] == pytest.approx(13 / 3)
        got = schema.transform({"x": [None, math.nan, math.inf, -math.inf, 1e200, 2.0], "y": [1.0] * 6})["dense"]
        assert got.shape == (6, 3)
        assert torch.equal(got[:5, 0], got[5, 0].expand(5))
        assert got[:, 2].tolist() == [1, 1, 1, 1, 1, 0]

    def test_no_indicator_where_training_had_none(self) -> None:
        schema = schema_of({"x": [1.0, 2.0, 4.0]})
        assert schema.dense_size == 1
        assert torch.equal(schema.transform({"x": [None]})["dense"], schema.transform({"x": [2.0]})["dense"])

    @pytest.mark.parametrize("values", [[3.0] * 5, [0.1] * 7, [None] * 5, [0.1, None, 0.1]])
    def test_constant_contributes_zeros(self, values: list[Any]) -> None:
        schema = schema_of({"x": pa.array(values, pa.float64()), "y": range(len(values))}, {"x": "numeric", "y": "numeric"})
        got = schema.transform({"x": [3.0, 99.0, None, 1e300], "y": [0, 1, 2, 3]})["dense"]
        assert (got[:, 0] == 0).all()

    def test_any_input_stays_finite(self) -> None:
        schema = schema_of({"x": [1e-200, 2e-200, 3e-200], "y": [1e149, -1e149, 0.0]})
        got = schema.transform({"x": [1e149, -1e308, 10**400], "y": [1e-300, 1e308, -(10**400)]})["dense"]
        assert torch.isfinite(got).all()

    def test_a_text_is_never_parsed_in_a_list(self) -> None:
        schema = schema_of({"x": [1.0, 2.0], "y": [1.0, 3.0]})
        with pytest.raises(DataError, match=r"'y', row 1: expected a number, got '3'") as error:
            schema.transform({"x": [1, 2], "y": [1, "3"]})
        assert error.value.field == "y"
        for value in ([1], {}, "", b"1", dt.date(2024, 1, 1)):
            with pytest.raises(DataError, match="row 0"):
                schema.transform({"x": [value], "y": [1.0]})

    def test_bool_and_large_int(self) -> None:
        schema = schema_of({"x": [0.0, 1.0], "y": [0.0, 1.0]})
        flags = pa.array([True, False]), pa.array([1, 0])
        assert torch.equal(*(schema.transform({"x": f, "y": f})["dense"] for f in flags))
        a = schema.transform({"x": [1.0, 0, 2**60 + 1], "y": [1, 0, 2.0**60]})["dense"]
        assert torch.equal(a[:, 0], a[:, 1])

    def test_text_column_of_a_file_is_parsed(self) -> None:
        schema = schema_of({"x": [0.0, 1.0]})
        got = schema.transform(pa.table({"x": [" 0.5", "+1", "1e-1", "", None, "nan", "-.5"]}))["dense"]
        want = schema.transform({"x": [0.5, 1, 0.1, None, None, None, -0.5]})["dense"]
        assert torch.equal(got, want)
        with pytest.raises(DataError, match="'x', row 2: expected a number, got 'abc'"):
            schema.transform(pa.table({"x": ["1", "2", "abc"]}))

    def test_wrong_types_are_an_error_and_no_traceback(self) -> None:
        schema = schema_of({"x": [0.0, 1.0]})
        for column in (pa.array([[1.0]]), pa.array([dt.datetime(2024, 1, 1)]), pa.array([{"a": 1}]), np.array(["1"])):
            with pytest.raises(DataError):
                schema.transform({"x": column})


class TestCategorical:
    def test_index_0_is_missing_1_is_other_then_by_frequency_and_value(self) -> None:
        schema = schema_of({"c": ["b", "a", "c", "c", None, "d", "d"]}, {"c": {"kind": "categorical", "max_categories": 3}})
        assert schema.features[0].state["categories"] == ["c", "d", "a"]
        assert schema.cardinalities == (5,)
        got = schema.transform({"c": [None, "", "new", "b", "c", "d", "a", math.nan]})["categorical"][:, 0]
        assert got.tolist() == [0, 0, 1, 1, 2, 3, 4, 0]

    def test_ints_read_as_floats_because_of_nulls_are_the_same_categories(self) -> None:
        schema = schema_of({"c": pa.array([3, 3, 3, 12, 12, 7], pa.int64())}, {"c": "categorical"})
        want = [2, 3, 4, 0]
        assert schema.features[0].example == 3
        for column in (
            [3, 12, 7, None],
            [3.0, 12.0, 7.0, math.nan],
            ["3", "12", "7", None],
            np.array([3.0, 12.0, 7.0, np.nan]),
            np.array([3, 12, 7, None], dtype=object),
            pa.array([3, 12, 7, None]),
            pa.array([3.0, 12.0, 7.0, math.nan]),
            pa.array([3, 12, 7, None], pa.uint8()).dictionary_encode(),
            pa.chunked_array([["3"], ["12", "7", None]]),
        ):
            assert schema.transform({"c": column})["categorical"][:, 0].tolist() == want, column
        assert schema.transform({"c": np.tile([3.0, np.nan], 50)})["categorical"][:2, 0].tolist() == [2, 0]

    def test_fitted_on_floats_served_with_ints(self) -> None:
        schema = schema_of({"c": [1.0, None, 1.0, 2.0, 2.5]}, {"c": "categorical"})
        assert schema.transform({"c": [1, 2, 2.5]})["categorical"][:, 0].tolist() == [2, 3, 4]

    def test_true_is_not_1(self) -> None:
        ints = schema_of({"c": [1, 1, 0]}, {"c": "categorical"})
        assert ints.transform({"c": [True, 1]})["categorical"][:, 0].tolist() == [1, 2]
        flags = schema_of({"c": [True, True, False]}, {"c": "categorical"})
        assert flags.transform({"c": [True, False, 1]})["categorical"][:, 0].tolist() == [2, 3, 1]

    def test_true_in_a_list_is_a_number_where_training_saw_true_and_false(self) -> None:
        learned = schema_of({"n": [True, False, True], "m": [1.0, 2.0, 3.0]}, {"n": "numeric", "m": "numeric"})
        given = {"n": [True, None, 0], "m": [1, 2, 3]}
        assert learned.transform(given)["dense"][0, 0] == learned.transform(given | {"n": [1, None, 0]})["dense"][0, 0]
        assert FeatureSchema.from_json(learned.to_json()) == learned
        with pytest.raises(DataError, match="'m', row 1: expected a number, got True"):
            learned.transform(given | {"m": [1, True, 3]})
        # A column of one type is no slip of the hand.
        assert learned.transform(given | {"m": pa.array([True, False, True])})["dense"].shape == (3, learned.dense_size)

    def test_a_list_is_no_category(self) -> None:
        schema = schema_of({"c": ["a", "b"]})
        with pytest.raises(DataError, match="'c', row 1"):
            schema.transform({"c": ["a", ["b"]]})

    def test_a_hundred_thousand(self) -> None:
        values = [f"user-{i}" for i in range(100_000)]
        start = time.perf_counter()
        schema = schema_of({"c": values + values[:10]}, {"c": {"kind": "categorical", "max_categories": 100_000}})
        assert schema.cardinalities == (100_002,)
        column = pa.array(values * 5)
        got = schema.transform({"c": column})["categorical"]
        assert time.perf_counter() - start < 8
        assert got[:100_000].unique().numel() == 100_000
        assert torch.equal(got[:1000], schema.transform({"c": values[:1000]})["categorical"])


class TestColumns:
    def test_a_missing_column_names_the_nearest(self) -> None:
        schema = schema_of({"height": [1.0, 2.0], "c": ["a", "b"]})
        for columns in ({"heigth": [1.0], "c": ["a"]}, pa.table({"heigth": [1.0], "c": ["a"]})):
            with pytest.raises(DataError, match=r"'height' is not in the data.*did you mean 'heigth'"):
                schema.transform(columns)

    def test_lengths_must_agree(self) -> None:
        schema = schema_of({"x": [1.0, 2.0], "y": [1.0, 2.0], "c": ["a", "b"]})
        with pytest.raises(DataError, match="'x' has 2 values, column 'y' has 1"):
            schema.transform({"x": [1.0, 2.0], "y": [1.0], "c": ["a", "b"]})

    def test_rows(self) -> None:
        schema = schema_of({"x": [1.0, 2.0], "c": ["a", "b"], "k": [1, 2]}, key="k")
        assert schema.columns_from_rows([{"c": "a"}, {"x": 1, "k": 5}]) == {"x": [None, 1], "c": ["a", None]}
        with pytest.raises(DataError, match="row 1 has 'xx', which the model does not know; did you mean 'x'") as error:
            schema.columns_from_rows([{"x": 1}, {"xx": 1}])
        assert error.value.field == "xx"
        with pytest.raises(DataError, match="row 0 is list"):
            schema.columns_from_rows([[1]])  # type: ignore[list-item]

    def test_no_rows(self) -> None:
        schema = schema_of({"x": [1.0, 2.0], "c": ["a", "b"]})
        assert schema.transform(pa.table({"x": pa.array([], pa.float64()), "c": pa.array([], pa.string())}))["dense"].shape == (
            0,
            1,
        )

    def test_schemas_can_be_made_by_hand(self) -> None:
        state = {"mean": 1.0, "std": 2.0, "median": 1.0, "missing": False}
        schema = FeatureSchema(features=(Feature(name="x", kind="numeric", state=state),), task="regression")
        assert schema.transform({"x": [5]})["dense"].tolist() == [[2.0]]
        with pytest.raises(DataError, match="format"):
            FeatureSchema.from_json({"features": []})
