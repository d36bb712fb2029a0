"""The models file: what it may say, what is said of a mistake, and what would change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from seekray.errors import ConfigError
from seekray.settings import read_settings
from seekray_serve.lifecycle import configuration, declared, models_file
from seekray_serve.lifecycle.ready import ModelToServe

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "serve" / "models.yaml"


def test_the_example_is_right_for_us_and_for_editors() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    given = models_file.load(EXAMPLE)
    assert list(given.models) == ["digits", "wine", "digits-next"]
    assert (given.models["digits"].replicas, given.models["wine"].model) == (2, "wine/1")
    schema = json.loads((ROOT / "docs" / "models.schema.json").read_text())
    assert schema == models_file.json_schema()
    jsonschema.validate(yaml.safe_load(EXAMPLE.read_text()), schema)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {digits: {replica: 2}}", r"line 1: models\.digits\.replica is not known"),
        (
            "models:\n  digits: {max_queued: 2}",
            r"line 2: .*max_queued is not known; did you mean models\.digits\.max_queued_requests\?",
        ),
        ("models: {digits: {autoscaling: {mx: 2}}}", r"autoscaling\.mx is not known"),
        ("model: {digits: x}", r"model is not known; did you mean models\?"),
        ("models: {digits: {replicas: 2, autoscaling: {max: 3}}}", "exclude each other"),
        ("models: {digits: {replicas: zero}}", r"models\.digits\.replicas: 'zero' given"),
        ("models: {a/b: digits}", "a/b"),
        ("models: {digits: 3}", "expected a mapping"),
        ("port: 8000", "models is missing"),
        ("models: {digits: x}\nmodels: {wine: y}", "line 2: models is given twice"),
        ("- digits", "expected a mapping such as `models: {digits: digits@champion}`"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        models_file.load(file)
    assert str(file) in error.value.message


def test_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        models_file.load(tmp_path / "models.yaml")


def test_options_of_the_file_go_before_those_of_the_bundle(bundles: dict[str, Path], tmp_path: Path) -> None:
    where = read_settings({"SEEKRAY_HOME": str(tmp_path)})
    file = tmp_path / "models.yaml"
    file.write_text(
        f"models:\n  a: {{model: {bundles['digits1']}, replicas: 2, max_rows: 7}}\n"
        f"  b: {{model: {bundles['digits1']}, autoscaling: {{max: 3}}}}\n  c: {bundles['wine']}\n  d: {{model: nobody}}\n"
    )
    found = models_file.find(models_file.load(file), where)
    a, b, c = found.models
    assert (a.name, a.serve_options["num_replicas"], a.serve_options["max_rows"]) == ("a", 2, 7)
    assert "autoscaling" not in a.serve_options
    assert (b.serve_options["autoscaling"]["max"], b.serve_options["autoscaling"]["min"]) == (3, 1)
    assert c.serve_options == json.loads((bundles["wine"] / "bundle.json").read_text())["serve"]
    assert found.missing.keys() == {"d"}
    assert "no registered model 'nobody'" in found.missing["d"]
    assert all(configuration.application(model) for model in found.models)


def test_what_would_change_is_said_by_option() -> None:
    one = ModelToServe("a", "1", "/bundles/1", {"max_rows": 5})
    other = dataclasses.replace(one, version="2", bundle_path="/bundles/2", serve_options={"max_rows": 6, "num_replicas": 2})
    before = {"a": configuration.application(one), "b": configuration.application(dataclasses.replace(one, name="b"))}
    after = {"a": configuration.application(other), "c": configuration.application(dataclasses.replace(one, name="c"))}
    assert declared.changes(before, after) == {
        "added": ["c"],
        "changed": {"a": {"max_rows": [5, 6], "num_replicas": [None, 2], "version": ["1", "2"]}},
        "removed": ["b"],
    }
    assert declared.changes(before, before) == {"added": [], "changed": {}, "removed": []}
