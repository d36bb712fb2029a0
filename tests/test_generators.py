"""A generator goes where a predictor goes: verified, promoted, behind MLflow; refused where it cannot go."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from training_kit import sent_from_here

from seekray import trainer
from seekray.batch.predict import predict
from seekray.cli.doors import verify_all
from seekray.cli.serve import curl, models_to_serve
from seekray.cli.training import next_step
from seekray.data.options import Data
from seekray.errors import UserError
from seekray.experiment_file import load
from seekray.promotion import promote, verify_once
from seekray.settings import read_settings
from seekray.settings import settings as here
from seekray.tracking import registry
from seekray.tracking.pyfunc import _load_pyfunc
from seekray.verify import generator_doors, verify
from seekray_serve.generation import load as load_app
from seekray_serve.lifecycle.deploy import build
from seekray_serve.options import Limits

TEXT = "the quick brown fox jumps over the lazy dog. " * 200


@pytest.fixture(scope="module", params=["gen", "lm"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A registered generator in a home of its own."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(TEXT)
    given: dict[str, Any] = {
        "gen": {"task": "rows", "data": {"source": "sample:wine"}},
        "lm": {
            "task": "pretrain",
            "data": {"source": str(home / "text.txt"), "text": {"tokenizer": "byte"}, "split": {"kind": "last"}},
            "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "context_length": 16},
        },
    }[request.param]
    common = {"name": "made", "family": request.param, "register": "made", "resources": {"workers": 0}}
    (home / "e.yaml").write_text(yaml.safe_dump(common | {"training": {"epochs": 1}} | given))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # mlflow.set_tracking_uri leaves it behind
        patch.setenv("SEEKRAY_HOME", str(home / ".seekray"))
        patch.chdir(home)
        here.cache_clear()
        where = read_settings({"SEEKRAY_HOME": str(home / ".seekray")})
        with sent_from_here():
            result = trainer.train(load(home / "e.yaml"), where)
        yield where, result
        here.cache_clear()


def test_it_is_verified_and_promoted(trained: Any) -> None:
    where, result = trained
    assert {"rows": "made/1 --rows", "texts": "made/1 --prompt"}[result.makes] in next_step(result)
    assert promote("made", "1", "champion", where)["version"] == "1"
    kept = registry.version("made", "1", where)["verified"]
    assert kept["passed"]
    assert "pyfunc" in kept["doors"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.e2e
def test_verify_asks_the_endpoint_too(trained: Any) -> None:
    where, result = trained
    found = verify_all("made/1", None)
    assert found["passed"], found
    own = {"rows": ["rest", "arrow"], "texts": ["completions", "streamed completions"]}[result.makes]
    assert [door["door"] for door in found["doors"]] == ["python", "pyfunc", "copy", "kept", "fresh download", *own]
    assert registry.version("made", "1", where)["verified"]["doors"][-2:] == own


def test_other_answers_than_those_of_the_bundle_are_found(trained: Any, tmp_path: Path) -> None:
    _, result = trained
    folder = Path(shutil.copytree(result.bundle, tmp_path / "bundle"))
    sample = json.loads((folder / "sample.json").read_text())
    assert verify(generator_doors(folder), sample["requests"])["passed"]
    column = next(iter(sample["answers"][0][0]))
    sample["answers"][0][0][column] = "something else"
    (folder / "sample.json").write_text(json.dumps(sample))
    manifest = json.loads((folder / "manifest.json").read_text())
    from seekray.manifest import sha256

    manifest["files"]["sample.json"] = sha256((folder / "sample.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = verify(generator_doors(folder), sample["requests"])
    assert [d["door"] for d in found["doors"] if not d["passed"]] == ["kept"]


def test_mlflow_asks_it_row_by_row(trained: Any) -> None:
    import mlflow

    where, result = trained
    mlflow.set_tracking_uri(where.tracking_uri)
    mlflow.set_registry_uri(where.tracking_uri)
    requests = pd.DataFrame(json.loads((Path(result.bundle) / "sample.json").read_text())["requests"])
    straight = _load_pyfunc(result.bundle).predict(requests)
    assert len(straight)
    assert mlflow.pyfunc.load_model("models:/made/1").predict(requests).equals(straight)


def test_it_is_served_by_its_own_application_with_a_line_that_asks_it(trained: Any, tmp_path: Path) -> None:
    [model] = models_to_serve(["made/1"])
    application = build([model], tmp_path / "serve.yaml")["applications"][1]
    assert application["import_path"] == "seekray_serve.generation:build"
    app = load_app(application["args"]["bundle"], Limits(), name="made", version="1")
    path, body = model.example()
    line = shlex.split(curl("http://127.0.0.1:8000", model))
    assert line[2] == f"http://127.0.0.1:8000/made/{path}"
    assert json.loads(line[-1]) == body
    assert f"/{path}" == app.endpoint
    assert app.example == body


def test_where_it_cannot_go_it_says_what_to_do(trained: Any, tmp_path: Path) -> None:
    _, result = trained
    with pytest.raises(UserError, match="seekray generate"):
        predict(result.bundle, Data(source="sample:wine"), str(tmp_path / "out.csv"))


def test_a_version_that_failed_is_not_taken_as_verified(trained: Any) -> None:
    where, _ = trained
    entry = registry.version("made", "1", where)
    registry.set_version_tag("made", "1", "verified", {"bundle": entry["bundle"], "passed": False, "doors": []}, where)
    verify_once("made", registry.version("made", "1", where), where)
    assert registry.version("made", "1", where)["verified"]["passed"]
