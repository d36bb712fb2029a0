"""Verification: real doors agree on troublesome rows, and a door that differs in any way is named."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from seekray import bundle as bundles
from seekray.checkpoint import named_tensors
from seekray.data.options import Data
from seekray.data.schema import Prediction
from seekray.data.tables.fitting import fit
from seekray.data.values import json_value
from seekray.models.net import Net, NetConfig
from seekray.predictor import Predictor
from seekray.storage import Storage
from seekray.verify import local_doors, rows_with_trouble, verify

ROWS = 300


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    hours = rng.integers(0, 9999, ROWS).tolist()
    return pa.table(
        {
            "size": rng.normal(size=ROWS),
            "count": pa.array([None if i % 7 == 0 else int(v) for i, v in enumerate(rng.integers(0, 99, ROWS))]),
            "colour": rng.choice(["red", "green, dark", 'so called "blue"', "naïve 文"], ROWS),
            "code": rng.integers(1, 6, ROWS),
            "flag": pa.array([None if i % 5 == 0 else bool(i % 2) for i in range(ROWS)]),
            "when": pa.array([dt.datetime(2024, 1, 1) + dt.timedelta(hours=h) for h in hours]),
            "text": [f"word{i % 13} and more {i % 7}" for i in range(ROWS)],
            "kind": rng.choice(["no", "yes", "perhaps"], ROWS),
            "price": rng.normal(size=ROWS) * 30 + 150,
            "p": rng.integers(0, 2, ROWS),
            "q": rng.integers(0, 2, ROWS),
        }
    )


FEATURES: dict[str, Any] = {
    "size": {}, "count": {}, "colour": {}, "code": "categorical", "flag": {}, "when": {},
    "text": {"kind": "text", "buckets": 32},
}  # fmt: skip
TARGETS: dict[str, Any] = {"classification": "kind", "regression": "price", "multilabel": ("p", "q")}


def make_bundle(folder: Path, task: str) -> Path:
    torch.manual_seed(0)
    schema = fit(table(), Data(source="x", target=TARGETS[task], features=FEATURES), task)
    config = NetConfig(hidden_size=(64, 64))
    modules = Net().build(config, schema)
    info = {"name": "m", "family": "net", "task": task, "model": config.model_dump(mode="json")}
    sample: dict[str, Any] = {"rows": [], "answers": {}}
    bundles.write(Storage(str(folder)), task, info, schema, named_tensors(modules), sample)
    return folder / task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def rows() -> list[dict[str, Any]]:
    return [{k: json_value(v) for k, v in row.items() if k in FEATURES} for row in table().slice(0, 40).to_pylist()]


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_all_local_doors_agree_on_plain_and_troublesome_rows(folder: Path, task: str) -> None:
    bundle = make_bundle(folder, task)
    given = rows()
    given += rows_with_trouble(Predictor.load(bundle).schema, given[:10])
    found = verify(local_doors(bundle, one_by_one=True), given)
    names = [d["door"] for d in found["doors"]]
    assert names == ["python", "batch parquet", "batch csv", "pyfunc", "copy", "one by one"]
    assert found["passed"], [d for d in found["doors"] if not d["passed"]]
    assert all(d["rows"] == len(given) for d in found["doors"])
    json.dumps(found, allow_nan=False)


def test_trouble_is_in_the_rows(folder: Path) -> None:
    schema = Predictor.load(make_bundle(folder, "classification")).schema
    made = rows_with_trouble(schema, rows()[:5])
    for feature in schema.features:
        assert any(row.get(feature.name, "") is None for row in made), feature.name
    assert any(all(v is None for v in row.values()) for row in made)
    assert any(row.get("colour") == "never seen before" for row in made)
    assert any(feature.name not in row for row in made for feature in schema.features)
    assert any(list(row) != list(made[0]) and set(row) == set(made[0]) for row in made)
    assert {type(row.get("size")) for row in made} >= {int, float, type(None)}
    assert rows_with_trouble(schema, [])  # without a sample, the schema's own examples


def changed(change: Callable[[Prediction], Prediction], bundle: Path) -> dict[str, Any]:
    doors = {"python": local_doors(bundle)["python"]}
    doors["other"] = lambda given: change(doors["python"](given))
    found = verify(doors, rows())
    assert found["doors"][0]["passed"]
    assert found["passed"] == found["doors"][1]["passed"]
    return dict(found["doors"][1])


def test_a_door_that_differs_is_named_with_row_and_column(folder: Path) -> None:
    bundle = make_bundle(folder, "classification")

    def with_number(difference: float) -> Callable[[Prediction], Prediction]:
        def change(answer: Prediction) -> Prediction:
            assert answer.probabilities is not None
            column = list(answer.probabilities["yes"])
            column[3] += difference
            return Prediction(answer.predictions, answer.probabilities | {"yes": column})

        return change

    near = changed(with_number(5e-7), bundle)
    assert near["passed"]
    assert near["largest_difference"] == pytest.approx(5e-7, rel=1e-3)
    far = changed(with_number(2e-6), bundle)
    assert not far["passed"]
    assert "row 3, column 'probability_yes'" in far["mismatch"]
    assert not changed(with_number(float("nan")), bundle)["passed"]
    wrong_class = changed(lambda a: Prediction([*a.predictions[:7], "else", *a.predictions[8:]], a.probabilities), bundle)
    assert "row 7, column 'prediction': 'else'" in wrong_class["mismatch"]
    short = changed(lambda a: Prediction(a.predictions[:-1], a.probabilities), bundle)
    assert "39 rows, expected 40" in short["mismatch"]
    assert "columns" in changed(lambda a: Prediction(a.predictions, None), bundle)["mismatch"]
    swapped = changed(lambda a: Prediction(a.predictions, dict(reversed((a.probabilities or {}).items()))), bundle)
    assert not swapped["passed"]


def test_a_class_of_another_type_is_another_class(folder: Path) -> None:
    doors = {
        "python": lambda given: Prediction([1] * len(given), {"1": [1.0] * len(given)}),
        "text": lambda given: Prediction(["1"] * len(given), {"1": [1.0] * len(given)}),
        "number": lambda given: Prediction([np.int64(1)] * len(given), {"1": [1.0] * len(given)}),
    }
    found = {d["door"]: d["passed"] for d in verify(doors, [{}, {}])["doors"]}
    assert found == {"python": True, "text": False, "number": True}


def test_large_numbers_are_compared_by_their_size_and_a_broken_door_does_not_stop_the_others(folder: Path) -> None:
    def broken(given: list[dict[str, Any]]) -> Prediction:
        raise ConnectionError("no answer\nfrom the server")

    doors = {
        "python": lambda given: Prediction([250.0] * len(given), None),
        "broken": broken,
        "near": lambda given: Prediction([250.0001] * len(given), None),
        "far": lambda given: Prediction([250.001] * len(given), None),
    }
    found = verify(doors, [{}])
    assert [d["passed"] for d in found["doors"]] == [True, False, True, False]
    assert found["doors"][1]["mismatch"] == "ConnectionError: no answer"
    assert not found["passed"]


def test_lists_are_compared_value_by_value() -> None:
    """Forecasts and labels of steps: every number within the tolerance, every label the same; the first other one is said."""
    steps, labels = [[0.5, 1.5], [2.5, 3.5]], [["up", "down"], ["up", "up"]]

    def other(numbers: Any, names: Any = labels) -> dict[str, Any]:
        doors = {
            "python": lambda given: Prediction(labels, {"up": steps}),
            "other": lambda given: Prediction(names, {"up": numbers}),
        }
        return dict(verify(doors, [{}, {}])["doors"][1])

    near = other([np.array([0.5, 1.5 + 1e-6]), [2.5, 3.5]])
    assert near["passed"]
    assert near["largest_difference"] == pytest.approx(1e-6 / 1.5, rel=1e-3)
    assert other([[0.5, 1.5], [2.5, 3.6]])["mismatch"] == "row 1, column 'probability_up'[1]: 3.6, expected 3.5"
    assert other([[0.5, 1.5], [2.5]])["mismatch"] == "row 1, column 'probability_up': 1 values, expected 2"
    assert other([[0.5, None], [2.5, 3.5]])["mismatch"] == "row 0, column 'probability_up'[1]: None, expected 1.5"
    wrong = other(steps, [["up", "down"], ["up", "down"]])
    assert wrong["mismatch"] == "row 1, column 'prediction'[1]: 'down', expected 'up'"
    json.dumps(wrong, allow_nan=False)
