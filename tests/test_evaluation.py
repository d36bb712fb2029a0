"""Metrics against scikit-learn and torchmetrics, intervals against a plain bootstrap, and what is not defined."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn import metrics as sk

from seekray.checkpoint import named_tensors
from seekray.data.options import Data
from seekray.data.tables.fitting import fit
from seekray.errors import DataError
from seekray.evaluation import as_text, compare, evaluate
from seekray.importances import importances
from seekray.metrics import BINS, RowSums, calibration_bins, full_metrics, quick_metrics
from seekray.models.net import Net, NetConfig
from seekray.predictor import Predictor


def scores(rows: int, classes: int, seed: int = 0, skill: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 2
    targets = torch.randint(0, classes, (rows,), generator=generator)
    outputs[torch.arange(rows), targets] += skill
    return outputs, targets


def train(
    table: pa.Table, target: Any, task: str = "classification", steps: int = 150, seed: int = 0, **data: Any
) -> Predictor:
    """A small model that has learned something."""
    torch.manual_seed(seed)
    schema = fit(table, Data(source="x", target=target, **data), task)
    config = NetConfig(hidden_size=(32,))
    modules = Net().build(config, schema)
    inputs, targets = schema.transform(table), torch.from_numpy(schema.encode_targets(table))
    optimizer = torch.optim.Adam(modules["net"].parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        modules["net"].loss(modules["net"](inputs), targets).mean().backward()
        optimizer.step()
    assert named_tensors(modules)
    return Predictor(modules, schema, {"name": "m", "family": "net"}, {})


def people(rows: int = 600, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=rows), rng.normal(size=rows)
    city = rng.choice(["x", "y", "z"], rows)
    noise = rng.normal(size=rows) * np.where(city == "z", 3.0, 0.3)
    return pa.table(
        {"a": a, "b": b, "noise": rng.normal(size=rows), "city": city, "age": rng.integers(18, 90, rows),
         "kind": np.where(a + 0.5 * b + noise > 0, "yes", "no"), "price": 100 + 40 * a + 5 * noise,
         "p": (a > 0).astype(int), "q": (b > 0.5).astype(int)}
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are small: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FEATURES = {"a": {}, "b": {}, "noise": {}}


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_classification_agrees_with_scikit_learn_and_torchmetrics(classes: int) -> None:
    from torchmetrics.functional import classification as tm

    outputs, targets = scores(700, classes)
    outputs[:200] = outputs[:200].round()  # ties
    found = full_metrics(outputs, targets, "classification")
    p, y = outputs.softmax(1).numpy(), targets.numpy()
    picked = outputs.argmax(1).numpy()
    assert found.notes == {}
    assert found.values == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, picked),
            "balanced_accuracy": sk.balanced_accuracy_score(y, picked),
            "macro_f1": sk.f1_score(y, picked, average="macro"),
            "precision": sk.precision_score(y, picked, average="macro"),
            "recall": sk.recall_score(y, picked, average="macro"),
            "roc_auc": np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in range(classes)]),
            "log_loss": sk.log_loss(y, p),
            "calibration_error": float(tm.multiclass_calibration_error(outputs.softmax(1), targets, classes, n_bins=BINS)),
        },
        abs=1e-6,  # torchmetrics counts in float32
    )
    assert found.values["roc_auc"] == pytest.approx(float(tm.multiclass_auroc(outputs.softmax(1), targets, classes)), abs=1e-6)
    assert found.values["accuracy"] == quick_metrics(outputs, targets, "classification")["accuracy"]
    bins = calibration_bins(outputs, targets, "classification")
    error = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / 700
    assert error == pytest.approx(found.values["calibration_error"], abs=1e-12)


def test_multilabel_and_regression_agree_with_scikit_learn() -> None:
    from torchmetrics.functional import classification as tm

    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    targets = (outputs + torch.randn(500, 4, generator=generator, dtype=torch.float64) > 0.4).float()
    found = full_metrics(outputs, targets, "multilabel").values
    p, y = outputs.sigmoid().numpy(), targets.numpy().astype(int)
    picked = (p >= 0.5).astype(int)
    assert found == pytest.approx(
        {
            "accuracy": (picked == y).mean(),
            "exact_match": sk.accuracy_score(y, picked),
            "balanced_accuracy": np.mean([sk.balanced_accuracy_score(y[:, i], picked[:, i]) for i in range(4)]),
            "macro_f1": sk.f1_score(y, picked, average="macro"),
            "precision": sk.precision_score(y, picked, average="macro"),
            "recall": sk.recall_score(y, picked, average="macro"),
            "roc_auc": sk.roc_auc_score(y, p),
            "log_loss": np.mean([sk.log_loss(y[:, i], p[:, i]) for i in range(4)]),
            "calibration_error": float(
                tm.binary_calibration_error(outputs.sigmoid().flatten(), targets.flatten().int(), n_bins=BINS)
            ),
        },
        abs=1e-6,
    )
    values = torch.randn(500, 1, generator=generator, dtype=torch.float64) * 7 + 1e4
    guesses = values + torch.randn(500, 1, generator=generator, dtype=torch.float64)
    assert full_metrics(guesses, values, "regression").values == pytest.approx(
        {
            "r2": sk.r2_score(values, guesses),
            "mae": sk.mean_absolute_error(values, guesses),
            "rmse": sk.root_mean_squared_error(values, guesses),
        },
        rel=1e-9,
    )


def test_what_the_rows_do_not_define_is_absent_with_a_note_and_never_nan() -> None:
    outputs, targets = scores(100, 4)
    some = targets.clone()
    some[some == 3] = 0
    found = full_metrics(outputs, some, "classification", ["a", "b", "c", "d"])
    assert "d" in found.notes["roc_auc"]
    assert "3 of 4" in found.notes["roc_auc"]
    p = outputs.softmax(1).numpy()
    assert found.values["roc_auc"] == pytest.approx(np.mean([sk.roc_auc_score(some == c, p[:, c]) for c in range(3)]))
    assert found.values["macro_f1"] == pytest.approx(sk.f1_score(some, outputs.argmax(1), average="macro"))
    alone = full_metrics(outputs, torch.zeros(100, dtype=torch.long), "classification")
    assert "roc_auc" not in alone.values
    assert "one class" in alone.notes["roc_auc"]
    labels = torch.zeros(100, 4)
    labels[:50, 1] = 1
    multi = full_metrics(outputs, labels, "multilabel", ["a", "b", "c", "d"])
    assert "1 of 4" in multi.notes["roc_auc"]
    constant = full_metrics(outputs[:, :1], torch.full((100, 1), 3.3), "regression")
    assert set(constant.values) == {"mae", "rmse"}
    assert "same value" in constant.notes["r2"]
    broken = outputs.clone()
    broken[0, 0] = float("nan")
    assert "finite" in full_metrics(broken, targets, "classification").notes["log_loss"]
    for size in (0, 1):
        for task, t in (("classification", targets[:size]), ("regression", outputs[:size, :1]), ("multilabel", labels[:size])):
            o = outputs[:size, :1] if task == "regression" else outputs[:size]
            tiny = full_metrics(o, t, task)
            json.dumps(tiny.values, allow_nan=False)
            assert set(tiny.notes) >= {n for n in ("roc_auc", "r2") if n not in tiny.values and n in tiny.notes}


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    table = people(400)
    predictor = train(table, "kind", features=FEATURES)
    held_out = people(300, seed=1)
    found = evaluate(predictor, held_out, resamples=2000)
    outputs, targets = found.outputs, found.targets
    rng = np.random.default_rng(5)
    draws = []
    probability, y = outputs.softmax(1)[:, 1].numpy(), targets.numpy()
    right = (probability > 0.5) == y
    loss = -np.log(np.where(y == 1, probability, 1 - probability))
    for pick in rng.integers(0, 300, (500, 300)):
        draws.append((right[pick].mean(), sk.roc_auc_score(y[pick], probability[pick]), loss[pick].mean()))
    for name, values in zip(("accuracy", "roc_auc", "log_loss"), np.array(draws).T, strict=True):
        wanted = np.quantile(values, [0.025, 0.975])
        width = wanted[1] - wanted[0]
        assert np.abs(np.array(found.intervals[name]) - wanted).max() < 0.2 * width, name
        assert found.intervals[name][0] < found.metrics[name] < found.intervals[name][1]
    again = evaluate(predictor, held_out, resamples=2000)
    assert again.intervals == found.intervals  # a seed
    assert evaluate(predictor, held_out, resamples=0).intervals == {}


def test_many_rows_cost_no_more_and_have_the_right_spread() -> None:
    table = people(400)
    predictor = train(table, "price", "regression", features=FEATURES)
    big = people(40_000, seed=3)
    found = evaluate(predictor, big)
    error = (found.outputs - found.targets).abs().flatten()
    half = 1.96 * float(error.std()) / 40_000**0.5
    low, high = found.intervals["mae"]
    assert high - low == pytest.approx(2 * half, rel=0.15)


def test_ten_classes_of_two_thousand_rows_take_less_than_two_seconds() -> None:
    outputs, targets = scores(2000, 10)
    from seekray.evaluation.rows import _resampled

    began = time.monotonic()
    draws = _resampled([RowSums(outputs, targets, "classification")], 1000, 0)[0]
    assert time.monotonic() - began < 2
    assert all(len(v) == 1000 for v in draws.values())


def test_rows_that_cannot_be_used_are_counted_with_their_reason() -> None:
    table = people(300)
    predictor = train(table, "kind", features=FEATURES)
    kinds: list[Any] = table["kind"].to_pylist()
    kinds[5], kinds[9] = None, "maybe"
    a: list[Any] = [repr(v) for v in table["a"].to_pylist()]
    a[20] = "oops"
    spoiled = table.set_column(0, "a", pa.array(a)).set_column(5, "kind", pa.array(kinds))
    found = evaluate(predictor, spoiled, by=["city"])
    assert (found.rows, found.rejected) == (297, 3)
    assert [r["row"] for r in found.rejections] == [5, 9, 20]
    assert "missing" in found.rejections[0]["reason"]
    assert "maybe" in found.rejections[1]["reason"]
    assert "oops" in found.rejections[2]["reason"]
    keep = [i for i in range(300) if i not in (5, 9, 20)]
    clean = evaluate(predictor, table.take(keep), by=["city"])
    assert clean.metrics == pytest.approx(found.metrics)
    assert clean.confusion == found.confusion
    assert clean.groups == found.groups
    numbers = train(table, "price", "regression", features=FEATURES)
    prices: list[Any] = table["price"].to_pylist()
    prices[0], prices[1] = None, float("inf")
    assert evaluate(numbers, table.set_column(6, "price", pa.array(prices))).rejected == 2
    with pytest.raises(DataError, match=r"no row"):
        evaluate(predictor, table.set_column(5, "kind", pa.array(["never"] * 300)))
    with pytest.raises(DataError, match="did you mean 'city'"):
        evaluate(predictor, table, by=["citi"])
    with pytest.raises(DataError, match="kind"):
        evaluate(predictor, table.drop_columns(["kind"]))


def test_groups_confusion_and_residuals_are_of_the_rows() -> None:
    table = people(600)
    predictor = train(table, "kind", features=FEATURES)
    found = evaluate(predictor, table, by=["city", "age"])
    picked = np.array(predictor.predict(table).predictions)
    actual = np.array(table["kind"].to_pylist())
    assert found.confusion == sk.confusion_matrix(actual, picked, labels=predictor.schema.classes).tolist()
    assert [c["class"] for c in found.classes] == ["no", "yes"]
    for line in found.groups["city"]:
        member = np.array(table["city"].to_pylist()) == line["value"]
        assert line["rows"] == member.sum()
        assert line["metrics"]["accuracy"] == pytest.approx((picked == actual)[member].mean())
    assert {g["value"]: g for g in found.groups["city"]}["z"]["metrics"]["accuracy"] < found.metrics["accuracy"]
    assert len(found.groups["age"]) == 5  # many numbers: five ranges
    assert sum(g["rows"] for g in found.groups["age"]) == 600
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert document["metrics"] == found.metrics
    assert "accuracy" in as_text(document)
    numbers = evaluate(train(table, "price", "regression", features=FEATURES), table)
    assert numbers.residuals is not None
    assert numbers.residuals["target"] == table["price"].to_pylist()
    assert numbers.metrics["r2"] == pytest.approx(sk.r2_score(table["price"], numbers.residuals["prediction"]), rel=1e-6)


def test_a_multilabel_model_is_evaluated() -> None:
    table = people(300)
    predictor = train(table, ("p", "q"), "multilabel", features=FEATURES)
    found = evaluate(predictor, table)
    assert found.metrics["accuracy"] > 0.9
    assert [c["label"] for c in found.classes] == ["p", "q"]
    assert found.confusion is None
    json.dumps(found.as_json(), allow_nan=False)


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    table, held_out = people(500), people(500, seed=2)
    good = evaluate(train(table, "kind", features=FEATURES), held_out)
    twin = evaluate(train(table, "kind", features=FEATURES, seed=1), held_out)
    blind = evaluate(train(table, "kind", features={"noise": {}}), held_out)
    between = compare(good, twin)
    low, high = between["accuracy"]["interval"]
    assert low <= 0 <= high
    assert between["accuracy"]["better"] is None
    assert high - low < 0.7 * (good.intervals["accuracy"][1] - good.intervals["accuracy"][0])
    against = compare(blind, good)
    assert against["accuracy"]["difference"] == pytest.approx(blind.metrics["accuracy"] - good.metrics["accuracy"])
    assert against["accuracy"]["better"] == "b"
    assert against["log_loss"]["better"] == "b"  # lower is better there
    shown = good.as_json() | {"comparison": {"a": "m1", "b": "m2", "metrics": against}}
    assert "m2 is better" in as_text(shown)
    with pytest.raises(DataError, match="regression"):
        compare(good, evaluate(train(table, "price", "regression", features=FEATURES), held_out))


def test_importances_find_what_the_model_uses_and_keep_their_time() -> None:
    table = people(600)
    predictor = train(table, "price", "regression", features={**FEATURES, "city": {}})
    found = importances(predictor, people(3000, seed=4))
    assert found[0]["feature"] == "a"
    assert found[0]["mean"] > 0.5
    assert found[0]["rows"] == 2000
    rest = {f["feature"]: f["mean"] for f in found[1:]}
    assert abs(rest["noise"]) < 0.05
    assert all(f["std"] < 0.1 and f["metric"] == "r2" and f["repeats"] == 5 for f in found)
    assert found == importances(predictor, people(3000, seed=4))
    rng = np.random.default_rng(0)
    wide = pa.table({f"p{i}": rng.normal(size=2000) for i in range(64)}).append_column(
        "y", pa.array(rng.choice(["a", "b"], 2000))
    )
    began = time.monotonic()
    pixels = importances(train(wide, "y", steps=3), wide, seconds=2)
    assert time.monotonic() - began < 6
    assert len(pixels) == 64
    assert importances(predictor, people(1)) == []


def test_evaluate_job_writes_plots_and_a_document(tmp_path: Path, home: Path) -> None:
    import pyarrow.parquet as pq

    from seekray import bundle
    from seekray.storage import Storage
    from seekray_jobs import evaluate as job

    table = people(200)
    predictor = train(table, "kind", features=FEATURES)
    tensors = named_tensors(predictor.modules)
    config = NetConfig(hidden_size=(32,)).model_dump(mode="json")
    info = {"name": "people", "family": "net", "task": "classification", "model": config}
    bundle.write(Storage(str(tmp_path)), "bundle", info, predictor.schema, tensors, {"rows": [], "answers": {}})
    pq.write_table(table, tmp_path / "t.parquet")
    model = str(tmp_path / "bundle")
    found = job.run(model, str(tmp_path / "t.parquet"), by=["city"], compare=model, out=tmp_path / "out")
    assert found["metrics"] == evaluate(predictor, table).metrics
    assert found["comparison"]["metrics"]["accuracy"]["difference"] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "calibration.png",
        "confusion_matrix.png",
        "evaluation.json",
    ]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    assert "by city" in as_text(found)
