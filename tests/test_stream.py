"""A recurrent model from a long table to its bundle: backtest, batch prediction, and steps that come one by one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load
from training_kit import run_here

from seekray.batch.predict import predict
from seekray.config import Experiment
from seekray.data.options import Data
from seekray.data.prepared import Prepared
from seekray.data.sequences.framing import framed_source
from seekray.data.sources import open_source
from seekray.data.tables.fitting import fit
from seekray.errors import DataError, UserError
from seekray.evaluation import as_text, evaluate
from seekray.importances import importances
from seekray.models.rec import Rec
from seekray.predictor import Predictor
from seekray.report import conclude
from seekray.storage import Storage
from seekray.stream import Stream, predict_file
from seekray.tracking.spool import Tracker
from seekray.verify import local_doors, rows_with_trouble, verify


def _long(path: Path, steps: int = 160) -> pa.Table:
    """Two series of a wave with noise, a step a minute, and a label that says whether it rose."""
    rng = np.random.default_rng(0)
    rows = []
    for who in ("a", "b"):
        y = np.sin(np.arange(steps) / 4 + (who == "b")) + 0.1 * rng.normal(size=steps)
        when = np.datetime64("2026-01-01T00:00:00") + np.arange(steps) * np.timedelta64(60, "s")
        rose = np.diff(y, prepend=0) > 0
        rows.append(pa.table({"who": [who] * steps, "when": when, "y": y, "rose": np.where(rose, "up", "down")}))
    table = pa.concat_tables(rows)
    pq.write_table(table, path)
    return table


def _trained(folder: Path, task: str, **model: Any) -> tuple[Experiment, Prepared, Path]:
    """A model of the long table."""
    folder.mkdir()
    _long(folder / "long.parquet")
    sequence: dict[str, Any] = {"time": "when", "id": "who", "columns": ["y"]}
    split: dict[str, Any] = {"kind": "random", "test": 0.5, "validation": 0}
    if task == "forecast":
        sequence |= {"history": 16, "horizon": 4, "season": 12}
        split = {"kind": "time", "by": "when", "test": 0.3, "validation": 0.2}
    data = {"source": str(folder / "long.parquet"), "sequence": sequence, "split": split}
    return _run(folder, task, data | {"target": "y" if task == "forecast" else "rose"}, **model)


def _run(folder: Path, task: str, data: dict[str, Any], **model: Any) -> tuple[Experiment, Prepared, Path]:
    given = {
        "name": "t", "family": "rec", "task": task, "resources": {"workers": 0}, "report": {"importances": False},
        "data": data, "model": {"hidden_size": 16} | model, "training": {"epochs": 4, "batch_size": 16, "lr": 0.01},
    }  # fmt: skip
    experiment = Experiment.model_validate(given)
    prepared = experiment.prepare()
    last, run = run_here(experiment, prepared, folder / "run"), Storage(str(folder / "run"))
    return experiment, prepared, folder / "run" / conclude(experiment, "0" * 12, run, prepared, last, Tracker(run, "t")).bundle


@pytest.fixture(scope="module")
def forecast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared, Path]:
    return _trained(tmp_path_factory.mktemp("forecast") / "x", "forecast")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared, Path]:
    return _trained(tmp_path_factory.mktemp("labels") / "x", "labelling", cell="lstm", num_layers=2)


def test_the_backtest_is_the_same_by_hand_and_stands_beside_baselines(forecast: Any) -> None:
    _, prepared, bundle = forecast
    predictor = Predictor.load(bundle)
    held = prepared.held_out
    found = evaluate(predictor, held, by=["who"])
    truth, past = np.array(held["y_next"].to_pylist()), np.array(held["y"].to_pylist())
    answers = np.array(predictor.predict(held).predictions)
    assert found.metrics["mae"] == pytest.approx(np.abs(answers - truth).mean())
    assert found.metrics["mae_persistence"] == pytest.approx(np.abs(past[:, -1:] - truth).mean())
    assert found.metrics["mae_seasonal"] == pytest.approx(np.abs(past[:, 4:8] - truth).mean())
    level = past[:, 0]
    for t in range(1, past.shape[1]):
        level = prepared.schema.ewma * level + (1 - prepared.schema.ewma) * past[:, t]
    assert found.metrics["mae_ewma"] == pytest.approx(np.abs(level[:, None] - truth).mean())
    assert 0 < found.metrics["mae_ridge"] < found.metrics["mae_persistence"]
    assert found.metrics["relative_mae"] == pytest.approx(found.metrics["mae"] / found.metrics["mae_persistence"])
    assert {g["value"] for g in found.groups["who"]} == {"a", "b"}
    assert len(found.details["by_step"]["ridge"]) == 4
    assert sum(span["windows"] for span in found.details["spans"]) == len(held)
    assert found.details["verdict"][0] in as_text(found.as_json())
    json.dumps(found.as_json())
    assert (bundle.parent / "plots" / "forecast.png").exists()


def test_a_baseline_that_wins_is_named(forecast: Any) -> None:
    _, prepared, bundle = forecast
    held = prepared.held_out
    flat = held.set_column(held.column_names.index("y"), "y", pa.array([[0.3] * 16] * len(held)))
    flat = flat.set_column(flat.column_names.index("y_next"), "y_next", pa.array([[0.3] * 4] * len(held)))
    (sentence,) = evaluate(Predictor.load(bundle), flat).details["verdict"]
    assert sentence.startswith("repeating the last value has a mean absolute error of 0 ")
    assert "the baseline wins" in sentence


def test_raw_files_are_framed_as_in_training(forecast: Any, tmp_path: Path) -> None:
    experiment, _, bundle = forecast
    predictor = Predictor.load(bundle)
    table = pq.read_table(experiment.data.source)
    whole = evaluate(predictor, table)
    assert whole.rows == 2 * (160 - 16 - 4 + 1)
    done = predict(bundle, Data(source=experiment.data.source), str(tmp_path / "out.parquet"), workers=0)
    assert done["rows"] == 2  # a forecast a series, from its end
    out = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert out["who"] == ["a", "b"]
    last = {w: [v for v, o in zip(table["y"].to_pylist(), table["who"].to_pylist(), strict=True) if o == w][-16:] for w in "ab"}
    expected = predictor.predict({"y": [last["a"], last["b"]]})
    assert np.allclose(out["prediction"], expected.predictions, atol=1e-9)
    assert np.allclose(out["quantile_0.9"], (expected.quantiles or {})["0.9"], atol=1e-9)


def test_a_series_too_short_for_a_forecast_is_put_aside_with_its_reason(forecast: Any, tmp_path: Path) -> None:
    experiment, _, bundle = forecast
    table = pq.read_table(experiment.data.source)
    rows = table.select(["who", "when", "y"]).to_pylist()
    text = [{**row, "y": str(row["y"])} for row in rows if row["who"] == "a"]
    text += [{**row, "who": "new", "y": "1.5"} for row in rows[:5]] + [{**row, "who": "odd", "y": ""} for row in rows[:20]]
    text[3]["y"] = "much"
    lines = ["who,when,y", *(f"{r['who']},{r['when'].isoformat()},{r['y']}" for r in text), "no,row,at,all"]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    done = predict(bundle, Data(source=str(tmp_path / "new.csv")), str(tmp_path / "out.parquet"), workers=0)
    assert (done["rows"], done["rejected"]) == (1, 4)
    rejected = [json.loads(line) for line in (tmp_path / "out.parquet.rejected.jsonl").read_text().splitlines()]
    found = {str(r["values"]): r["reason"] for r in rejected}
    when = rows[4]["when"].isoformat()
    assert found[str({"who": "new", "when": when})] == "5 steps up to the last 'y', the model looks back on 16"
    assert found[str({"who": "odd", "when": rows[19]["when"].isoformat()})].startswith("0 steps up to the last 'y'")
    assert found["much"] == "expected a number"
    assert any("no,row" in value for value in found)
    only = predict(bundle, Data(source=str(tmp_path / "new.csv")), str(tmp_path / "out.jsonl"), workers=0, part_rows=1)
    assert (only["rows"], only["rejected"]) == (1, 4)
    with pytest.raises(DataError, match="column 'y', row 1: fewer steps than the 16 that the forecast looks back on"):
        Predictor.load(bundle).predict({"y": [[1.0] * 16, [1.0] * 15]})


def test_rows_whose_lists_differ_in_length_are_put_aside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"a": rng.normal(size=n).tolist(), "b": [1.0] * n, "say": "x" * n, "y": ["u", "d"] * n} for n in [3, 4] * 20]
    rows = [row | {"y": row["y"][: len(row["a"])]} for row in rows]
    rows[2]["b"] = [1.0] * 5
    rows[5]["y"] = ["u"]
    rows[7]["say"] = ""  # missing goes with any
    rows[9] |= {"b": [0.0], "say": "ab"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists.parquet")
    data: dict[str, Any] = {"source": str(tmp_path / "lists.parquet"), "target": "y"}
    data |= {"features": {"a": "sequence", "b": "sequence", "say": "characters"}, "split": {"kind": "random", "validation": 0}}
    with pytest.raises(DataError, match="'a', row 2: expected 5 values, as many as another list of the row has, got 3"):
        _run(tmp_path / "x", "labelling", data)
    _, prepared, bundle = _run(tmp_path / "x", "labelling", data | {"on_bad_row": "skip"})
    assert [(r["row"], r["column"], r["value"]) for r in prepared.rejected] == [
        (2, "a", 3), (2, "say", 3), (2, "y", 3), (5, "y", 1), (9, "b", 1), (9, "say", 2)
    ]  # fmt: skip
    assert prepared.rejected[3]["reason"] == "expected 4 values, one for each step"
    done = predict(bundle, Data(source=data["source"]), str(tmp_path / "out.jsonl"), workers=0)
    assert (done["rows"], done["rejected"]) == (38, 2)
    rejected = [json.loads(line) for line in (tmp_path / "out.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [(r["row"], r["reason"].split(",")[0]) for r in rejected] == [
        (2, "column 'a': expected 5 values"), (9, "column 'b': expected 4 values")
    ]  # fmt: skip
    few = [{**row, "which": "uv"[i % 2]} for i, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(few), tmp_path / "lists.parquet")
    _, prepared, whole = _run(tmp_path / "y", "classification", data | {"on_bad_row": "skip", "target": "which"})
    found = importances(Predictor.load(whole), prepared.held_out)  # a list of another row has another length
    assert {f["feature"] for f in found} == {"a", "b", "say"}
    pq.write_table(pa.Table.from_pylist(rows[2:3]), tmp_path / "bad.parquet")
    done = predict(bundle, Data(source=str(tmp_path / "bad.parquet")), str(tmp_path / "none.jsonl"), workers=0)
    assert (done["rows"], done["rejected"]) == (0, 1)


@pytest.mark.parametrize("kind", ["forecast", "labels"])
def test_all_local_doors_agree(kind: str, request: pytest.FixtureRequest) -> None:
    experiment, _, bundle = request.getfixturevalue(kind)
    predictor = Predictor.load(bundle)
    long = framed_source(open_source(Data(source=experiment.data.source)), predictor.schema.frame, only_last=False)
    rows = [{"y": y} for y in long.table(["y"])["y"].to_pylist()[:20]]
    found = verify(local_doors(bundle, one_by_one=True), [*rows, *rows_with_trouble(predictor.schema, rows)])
    assert found["passed"], [d for d in found["doors"] if not d["passed"]]


def test_an_evaluation_puts_aside_what_is_no_step(labels: Any) -> None:
    experiment, _, bundle = labels
    predictor, good = Predictor.load(bundle), pq.read_table(experiment.data.source)
    texts = good.set_column(good.schema.get_field_index("y"), "y", good["y"].cast(pa.string()))
    soup = texts.to_pylist()
    soup[7]["y"] = "soup"
    without = pa.Table.from_pylist([row for i, row in enumerate(soup) if i != 7])
    found, clean = evaluate(predictor, pa.Table.from_pylist(soup)), evaluate(predictor, without)
    assert found.metrics == clean.metrics
    assert found.rejected == clean.rejected + 1
    assert found.rejections[0]["row"] == 7
    assert "'soup'" in found.rejections[0]["reason"]


@pytest.mark.parametrize("kind", ["forecast", "labels"])
def test_step_by_step_is_the_whole(kind: str, request: pytest.FixtureRequest) -> None:
    _, _, bundle = request.getfixturevalue(kind)
    predictor = Predictor.load(bundle)
    values = np.random.default_rng(1).normal(size=(2, 17)).tolist()
    whole = predictor.predict({"y": values}).columns()
    stream = Stream(predictor)
    steps = [stream.predict({"y": [[v[0]], [v[1]]]}, ["p", "q"]).columns() for v in zip(*values, strict=True)]
    for name, column in whole.items():
        for row in range(2):
            if kind == "forecast":
                assert np.allclose(steps[-1][name][row], column[row], atol=1e-6)
            elif name == "prediction":
                assert [s[name][row][0] for s in steps] == column[row]
            else:
                assert np.allclose([s[name][row][0] for s in steps], column[row], atol=1e-6)


def test_states_go_from_call_to_call_through_a_file(labels: Any, tmp_path: Path) -> None:
    experiment, _, bundle = labels
    table = pq.read_table(experiment.data.source).sort_by("when")
    parts = [table.slice(0, 101), table.slice(101)]
    out: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        pq.write_table(part, tmp_path / f"{i}.parquet")
        data = Data(source=str(tmp_path / f"{i}.parquet"))
        done = predict_file(bundle, data, str(tmp_path / f"out{i}.parquet"), tmp_path / "states")
        assert done["rows"] == len(part)
        out += pq.read_table(tmp_path / f"out{i}.parquet").to_pylist()
    predictor = Predictor.load(bundle)
    for who in "ab":
        own = table.filter(pc.equal(table["who"], who))
        whole = predictor.predict({"y": [own["y"].to_pylist()]})
        found = [row for row in out if row["who"] == who]
        assert [row["prediction"] for row in found] == whole.predictions[0]
        assert np.allclose([row["probability_up"] for row in found], (whole.probabilities or {})["up"][0], atol=1e-6)


def test_steps_that_cannot_be_read_are_put_aside_and_touch_no_state(labels: Any, tmp_path: Path) -> None:
    experiment, _, bundle = labels
    good = pq.read_table(experiment.data.source).sort_by("when").select(["who", "when", "y"])
    clean, dirty = tmp_path / "clean.csv", tmp_path / "dirty.csv"
    pacsv.write_csv(good, clean)
    lines = clean.read_text().splitlines()
    who, when, y = lines[5].split(",")
    lines[4:4] = [f"{who},{when},soup", f'{who},"",{y}', f"{who},{when}"]  # no number, no time, a line too short
    dirty.write_text("\n".join(lines) + "\n")
    for file in (clean, dirty):
        done = predict_file(
            bundle, Data(source=str(file)), str(tmp_path / f"{file.stem}.jsonl"), tmp_path / f"{file.stem}.state"
        )
        assert (done["rows"], done["rejected"]) == (len(good), 3 if file is dirty else 0)
    clean_state, dirty_state = (load((tmp_path / f"{name}.state").read_bytes()) for name in ("clean", "dirty"))
    assert {k: t.tolist() for k, t in clean_state.items()} == {k: t.tolist() for k, t in dirty_state.items()}
    assert (tmp_path / "clean.jsonl").read_text() == (tmp_path / "dirty.jsonl").read_text()
    rejected = [json.loads(line) for line in (tmp_path / "dirty.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rejected] == [3, 4, 5]
    assert "soup" in rejected[0]["reason"]
    assert "has no time" in rejected[1]["reason"]


def test_a_state_of_another_model_and_a_model_without_states_are_refused(labels: Any, forecast: Any, tmp_path: Path) -> None:
    stream = Stream(Predictor.load(labels[2]))
    stream.predict({"y": [[1.0]]}, ["p"])
    with pytest.raises(UserError, match="of another model"):
        Stream(Predictor.load(forecast[2])).loads(stream.dumps())
    with pytest.raises(UserError, match="not one that a stream wrote"):
        stream.loads(b"nonsense")
    both_ways = _trained(tmp_path / "x", "labelling", bidirectional=True)[2]
    with pytest.raises(UserError, match="cannot be fed step by step: it also reads from the end"):
        Stream(Predictor.load(both_ways))


def test_characters_that_are_read_with_those_before_them_make_no_stream() -> None:
    features = {"word": {"kind": "characters", "ngrams": [1, 2]}}
    data = Data.model_validate({"source": "-", "target": "y", "features": features})
    schema = fit(pa.table({"word": ["ab", "ba"], "y": [0, 1]}), data, "classification")
    assert "word.ngrams" in str(Rec().not_streamable({"bidirectional": False, "pooling": "last"}, schema))


def test_an_endpoint_hands_the_state_to_the_caller(labels: Any) -> None:
    from seekray_serve.prediction import PredictionApp

    predictor = Predictor.load(labels[2])
    app = PredictionApp(predictor)

    async def ask(path: str, body: Any = None) -> Any:
        sent: list[Any] = []
        scope = {
            "type": "http", "method": "POST" if body else "GET", "path": path, "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        assert sent[0]["status"] == 200, sent
        return json.loads(b"".join(m.get("body", b"") for m in sent[1:]))

    async def talk() -> None:
        values = [0.1, -0.4, 0.7]
        whole = (await ask("/v1/predict", {"rows": [{"y": values}]}))["predictions"][0]
        state, found = None, []
        for value in values:
            answer = await ask("/v1/stream", {"rows": [{"y": [value]}], "keys": ["p"], "state": state})
            state = answer["state"]
            found += answer["predictions"][0]
        assert found == whole
        assert "/v1/stream" in (await ask("/openapi.json"))["paths"]

    asyncio.run(talk())
