"""A version is a real MLflow pyfunc, without a pickle anywhere, and answers as the Predictor does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from seekray.predictor import Predictor
from seekray.settings import Settings
from seekray.tracking import registry
from seekray.tracking.carrier import send

from . import conftest as kit


@pytest.fixture
def registered(where: Settings, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """`pets` version 1, the champion; MLflow set as a user's environment would."""
    run = kit.make_run(where)
    run.write(bundle)
    send(run.storage, where)
    kit.promote("1", where)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    return where


def load(where: Settings) -> Any:
    import mlflow

    mlflow.set_tracking_uri(where.tracking_uri)
    mlflow.set_registry_uri(where.tracking_uri)
    return mlflow.pyfunc.load_model("models:/pets@champion")


def expected(bundle: Path, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    predictor = Predictor.load(bundle)
    return predictor.predict(predictor.schema.columns_from_rows(rows)).columns()


def same(answer: Any, wanted: dict[str, list[Any]]) -> None:
    assert list(answer.columns) == list(wanted)
    assert answer["prediction"].tolist() == wanted["prediction"]
    for name in list(wanted)[1:]:
        assert answer[name].tolist() == pytest.approx(wanted[name], abs=1e-6)


def sample(count: int = 60) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "label"} for row in kit.rows(count)]


def test_a_dataframe_of_every_form_gets_the_predictors_answers(registered: Settings, bundle: Path) -> None:
    import pandas as pd

    rows, model = sample(), load(registered)
    wanted = expected(bundle, rows)
    frame = pd.DataFrame(rows)
    same(model.predict(frame), wanted)
    same(model.predict(frame[list(reversed(frame.columns))].assign(extra=1)), wanted)
    nullable = frame.assign(
        age=frame["age"].astype("Int64"), chip=frame["chip"].astype("Int64"), tame=frame["tame"].astype("boolean")
    )
    same(model.predict(nullable), wanted)
    same(model.predict(frame.convert_dtypes()), wanted)
    same(model.predict(frame.assign(seen=pd.to_datetime(frame["seen"]))), wanted)
    same(model.predict(frame.assign(breed=frame["breed"].astype("category"))), wanted)
    same(model.predict(frame.astype(object)), wanted)


def test_whole_numbers_where_training_saw_missing_ones(registered: Settings, bundle: Path) -> None:
    """MLflow's `double` would refuse int64, and any typed column one of nothing but missing values."""
    import pandas as pd

    rows = [{**row, "age": 3, "weight": 4, "breed": None} for row in sample(20)]
    frame = pd.DataFrame(rows)
    assert str(frame["weight"].dtype) == "int64"
    same(load(registered).predict(frame), expected(bundle, rows))


def test_a_column_that_is_not_there_is_missing(registered: Settings, bundle: Path) -> None:
    import pandas as pd

    rows = [{k: v for k, v in row.items() if k not in ("breed", "age", "place")} for row in sample(20)]
    same(load(registered).predict(pd.DataFrame(rows)), expected(bundle, rows))


def test_signature_and_input_example(registered: Settings, bundle: Path) -> None:
    from mlflow.models import Model

    model = load(registered)
    schema = model.metadata.get_input_schema()
    assert schema.input_names() == [n for n in sample(1)[0] if n != "label"]
    assert not schema.required_input_names()
    assert model.metadata.get_output_schema().input_names() == ["prediction", "probability_no", "probability_yes"]
    source = registry.show("pets", registered)["versions"][0]["source"].removeprefix("file://")
    written = Model.load(source)
    example = written.load_input_example(source)
    assert len(example) == 3
    assert written.metadata["seekray"]["kinds"]["breed"] == "categorical"
    rows = json.loads((bundle / "sample.json").read_text())["rows"][:3]
    same(model.predict(example), expected(bundle, rows))


def test_no_pickle_in_any_file(registered: Settings) -> None:
    files = [p for p in registered.home.rglob("*") if p.is_file()]
    assert len(files) > 10
    for file in files:
        head = file.read_bytes()[:4]
        assert head[:1] != b"\x80", file  # pickle protocols 2 and up
        assert head[:2] != b"PK", file  # a zip, as torch.save writes
        assert file.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".joblib"), file


@pytest.mark.e2e
def test_mlflow_models_serve(registered: Settings, bundle: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/pets@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--host", "127.0.0.1"]
    environment = {
        **os.environ, "MLFLOW_TRACKING_URI": registered.tracking_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": os.pathsep.join(sys.path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    log = registered.home / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url + "/ping", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        rows = sample(12)
        wanted = expected(bundle, rows)
        columns = list(rows[0])
        bodies: list[dict[str, Any]] = [
            {"dataframe_records": rows},
            {"dataframe_split": {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}},
            {"inputs": {c: [row[c] for row in rows] for c in columns}},
            {"inputs": rows},
            {"instances": rows},
        ]
        for body in bodies:
            got = post(url, body)
            assert [p["prediction"] for p in got] == wanted["prediction"], list(body)
            assert [p["probability_yes"] for p in got] == pytest.approx(wanted["probability_yes"], abs=1e-6)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(url + "/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            predictions: list[dict[str, Any]] = json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{list(body)}: {error.read()[:600]!r}") from error
    return predictions
