"""The experiment file: mistakes are named with their place, overrides are typed, the JSON Schema agrees with the models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from seekray.config import Experiment
from seekray.errors import ConfigError
from seekray.experiment_file import json_schema, load, parse_override, validate, with_overrides

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))
BASE = """\
name: flowers
task: classification
data:
  source: flowers.csv
  target: kind
  features:
    length: {kind: numeric}
training:
  lr: 0.01
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def save(text: str) -> Path:
        file = tmp_path / "e.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return save


def refused(file: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    return caught.value


# ---- keys and values


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "nearest"),
    [
        ("lr:", "learning_rat:", 9, "training.learning_rat", None),
        ("lr:", "epoch:", 9, "training.epoch", "training.epochs"),
        ("{kind: numeric}", "{knd: numeric}", 7, "data.features.length.knd", "data.features.length.kind"),
        ("  lr: 0.01", "  schedule: {warmpu: 3}", 9, "training.schedule.warmpu", "training.schedule.warmup"),
        (
            "  lr: 0.01",
            "  early_stopping: {patence: 3}",
            9,
            "training.early_stopping.patence",
            "training.early_stopping.patience",
        ),
        ("training:\n  lr: 0.01", "model: {hiden_size: 3}", 8, "model.hiden_size", "model.hidden_size"),
        ("training:\n  lr: 0.01", "serve:\n  autoscaling:\n    mx: 3", 10, "serve.autoscaling.mx", "serve.autoscaling.max"),
        ("training:\n  lr: 0.01", "trainin: {}", 8, "trainin", "training"),
        ("training:\n  lr: 0.01", "registr: x", 8, "registr", "register"),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest(
    write: Write, old: str, new: str, line: int, key: str, nearest: str | None
) -> None:
    file = write(BASE.replace(old, new))
    error = refused(file)
    hint = f"did you mean {nearest}?" if nearest else "known: epochs, max_steps, "
    assert f"{file}, line {line}: {key} is not known; {hint}" in error.message
    assert error.field == key


@pytest.mark.parametrize(
    ("value", "key", "given", "allowed"),
    [
        ("training: {epochs: many}", "training.epochs", "'many'", "expected a valid integer"),
        ("training: {epochs: 0}", "training.epochs", "0", "greater than or equal to 1"),
        ("training: {batch_size: true}", "training.batch_size", "true", "not a number"),
        ("training: {lr: .inf}", "training.lr", "inf", "finite number"),
        ("training: {lr: -1}", "training.lr", "-1", "greater than 0"),
        ("training: {optimizer: adamx}", "training.optimizer", "'adamx'", "'adam', 'adamw' or 'sgd'"),
        ("training: {schedule: cosine}", "training.schedule", "'cosine'", "a mapping"),
        ("training: {schedule: {kind: cosin}}", "training.schedule.kind", "'cosin'", "'constant', 'cosine', 'one-cycle' or"),
        ("resources: {workers: two}", "resources.workers", "'two'", "integer"),
        ("resources: {wait: soon}", "resources.wait", "'soon'", "number"),
        ("model: {activation: reluu}", "model.activation", "'reluu'", "'relu', 'gelu'"),
        ("model: 3", "model", "3", "a mapping"),
        ("family: nett", "family", "'nett'", "net, rec, gen, lm or package.module:MyFamily"),
        ("family: no.such:Family", "family", "'no.such:Family'", "cannot import"),
        ("storage: 3", "storage", "3", "valid string"),
    ],
)
def test_a_wrong_value_says_file_line_key_given_and_allowed(
    write: Write, value: str, key: str, given: str, allowed: str
) -> None:
    file = write(BASE.replace("training:\n  lr: 0.01", value))
    error = refused(file)
    assert error.message.startswith(f"{file}, line 8: ")
    assert key in error.message
    assert given in error.message
    assert allowed in error.message
    assert error.message.count("\n") == 0, "one mistake is one line"
    assert error.field == key


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    file = write(BASE.replace("lr: 0.01", "lr: fast\n  epochs: 0\n  optimiser: sgd").replace("flowers\n", "my flowers\n"))
    lines = refused(file).message.splitlines()
    assert sorted(int(line.removeprefix(f"{file}, line ").split(":")[0]) for line in lines) == [1, 9, 10, 11]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found nothing"),
        ("- a\n", "found list"),
        ("a: [1\n", "line 2: not valid YAML"),
        ("a: b: c\n", "line 1: not valid YAML"),
        ("a: &a [*a]\n", "contains itself"),
        ("x: !!python/object:os.system {}\n", "not valid YAML"),
        (BASE + "name: again\n", "line 10: name is given twice"),
        (BASE + "  lr: 0.1\n", "line 10: training.lr is given twice"),
        (BASE + "duplicate: 3\n", "line 10: duplicate is not known"),
        (BASE.replace("name: flowers\n", ""), "name is missing"),
        (BASE.replace("flowers\n", "my flowers\n", 1), "line 1: name: 'my flowers' given, expected to match"),
    ],
)
def test_files_that_are_no_experiment(write: Write, text: str, message: str) -> None:
    file = write(text)
    error = refused(file)
    assert message in error.message
    assert str(file) in error.message


def test_no_such_file_points_to_init(tmp_path: Path) -> None:
    assert "seekray init" in refused(tmp_path / "none.yaml").message
    assert "cannot be read" in refused(tmp_path).message


def test_values_may_come_in_their_short_forms(write: Write) -> None:
    text = BASE.replace("length: {kind: numeric}", "length: numeric\n    colour:\n    'größe': {kind: text, buckets: 64}")
    experiment = load(write(text + "resources: {workers: [1, 2], wait: 30m}\nmodel:\n"))
    features = experiment.data.features
    assert features is not None
    assert [(n, f.kind) for n, f in features.items()] == [("length", "numeric"), ("colour", None), ("größe", "text")]
    assert experiment.resources.wait == 1800
    assert experiment.resources.span == (1, 2)
    assert type(experiment.model).__name__ == "NetConfig"
    listed = load(write(BASE.replace("features:\n    length: {kind: numeric}", "features: [a, b]\n  key: id")))
    assert list(listed.data.features or ()) == ["a", "b"]
    assert listed.data.key == ("id",)


# ---- contradictions


NO_VALIDATION = {"split": {"validation": 0}}
CONTRADICTIONS = [
    ("training", {"training": {"epochs": 3, "max_steps": 4}}, "epochs and training.max_steps"),
    ("training.accumulate", {"training": {"accumulate": 65}}, "is over training.batch_size (64)"),
    ("training.momentum", {"training": {"momentum": 0.9}}, "is for sgd, not for adamw"),
    ("training.schedule.warmup", {"training": {"max_steps": 5, "schedule": {"warmup": 10}}}, "below training.max_steps (5)"),
    ("training.early_stopping", {"training": {"early_stopping": {}}, "data": NO_VALIDATION}, "needs validation rows"),
    ("training.schedule.kind", {"training": {"schedule": {"kind": "plateau"}}, "data": NO_VALIDATION}, "plateau"),
    ("training.metric", {"training": {"metric": "accuracy"}, "data": NO_VALIDATION}, "data.split.validation is 0"),
    ("training.batch_size", {"training": {"batch_size": 2}, "resources": {"workers": 3}}, "below resources.workers (3)"),
    ("resources.workers", {"resources": {"workers": [3, 2]}}, "[min, max]"),
    ("resources.workers", {"resources": {"workers": [0, 2]}}, "[min, max]"),
    ("resources.workers", {"resources": {"workers": -1}}, "0 or more"),
    ("serve.autoscaling", {"serve": {"autoscaling": {"min": 3, "max": 2}}}, "max (2) is below min (3)"),
    ("task", {"task": "rows"}, "family net has classification, regression, multilabel"),
    ("data.target", {"data": {"target": None}}, "data.target is missing"),
    ("data.target", {"data": {"target": ["a", "b"]}}, "only multilabel has more than one"),
    ("data.features", {"data": {"features": ["kind"]}}, "has the target 'kind'"),
    ("data.key", {"data": {"key": ["kind"]}}, "has the target 'kind'"),
    ("data.key", {"data": {"exclude": ["kind"]}}, "has the target 'kind'"),
    ("data.features", {"data": {"features": ["a"], "exclude": ["a"]}}, "both have a"),
    ("data.split", {"data": {"split": {"test": 0.6, "validation": 0.5}}}, "leave no training rows"),
    ("data.split.kind", {"data": {"split": {"kind": "group"}}}, "group needs data.split.by"),
    ("data.split.kind", {"data": {"split": {"by": "day"}}}, "random does not take data.split.by"),
    ("model.loss", {"model": {"loss": "mse"}}, "classification has cross_entropy"),
    ("model.loss", {"task": "regression", "model": {"loss": "bce"}}, "regression has mse, huber, mae"),
    ("model.class_weights", {"task": "regression", "model": {"class_weights": "balanced"}}, "not for regression"),
    ("model.hidden_size", {"model": {"hidden_size": [8, 0]}}, "sizes of 1 or more"),
    ("model.num_layers", {"model": {"hidden_size": [8], "num_layers": 2}}, "single model.hidden_size"),
]  # fmt: skip


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(out.get(key) or {}, value) if isinstance(value, dict) else value
    return out


@pytest.mark.parametrize(("key", "change", "words"), CONTRADICTIONS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CONTRADICTIONS)])
def test_contradictions_are_found_at_construction_and_named(write: Write, key: str, change: dict[str, Any], words: str) -> None:
    start = {"name": "flowers", "data": {"source": "flowers.csv", "target": "kind"}}
    file = write(yaml.safe_dump(merged(start, change), sort_keys=False))
    error = refused(file)
    assert words in error.message
    assert key.split(".")[0] in str(error.field)
    assert f"{file}, line " in error.message or key == "data.target", error.message


# ---- --set


def test_set_overrides_any_value_with_its_type(write: Write) -> None:
    file = write(BASE)
    changed = load(
        file,
        [
            "model.hidden_size=128", "model.dropout=.5", "training.lr=1e-3", "training.schedule.kind=one-cycle",
            "data.features.length.kind=text", "resources.workers=[1, 2]", "register=blume", "data.split={test: 0.3}",
            "training.early_stopping={patience: 2}", "serve.autoscaling.max=3",
        ],
    )  # fmt: skip
    assert changed.model.model_dump()["hidden_size"] == 128
    assert changed.training.lr == 1e-3
    assert changed.training.schedule.kind == "one-cycle"
    assert (changed.data.features or {})["length"].kind == "text"
    assert changed.resources.workers == (1, 2)
    assert changed.register_as == "blume"
    assert changed.data.split.test == 0.3
    assert changed.training.early_stopping is not None
    assert changed.serve.autoscaling.max == 3
    assert load(file, ["data.features=null"]).data.features is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs=x", "training.epochs: 'x' given, expected a valid integer"),
        ("training.epoch=5", "did you mean training.epochs?"),
        ("training=null", "training: None given, expected a mapping"),
        ("training.lr.x=3", "lr has the value 0.01, which has no keys"),
        ("resources.workers.0=3", "resources.workers: {'0': 3} given"),
        ("epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("training..lr=3", "is not a key"),
        ("training.lr=: [", "is not a YAML value"),
        ("data.split.validation=0", "training.early_stopping"),
    ],
)
def test_a_wrong_override_is_named_as_given(write: Write, override: str, words: str) -> None:
    text = BASE + ("  early_stopping: {patience: 3}\n" if "validation" in override else "")
    error = refused(write(text), override)
    assert words in error.message
    assert f"--set {override}" in error.message or "validation" in override


def test_set_into_a_list_of_features_says_what_to_do(write: Write) -> None:
    file = write(BASE.replace("features:\n    length: {kind: numeric}", "features: [a, b]"))
    assert "set it whole" in refused(file, "data.features.a.kind=text").message


def test_overrides_of_a_resolved_experiment() -> None:
    experiment = validate({"name": "a", "data": {"source": "x.csv", "target": "y"}})
    assert with_overrides(experiment, ["training.lr=0.5"]).training.lr == 0.5
    assert with_overrides(experiment, []) == experiment
    with pytest.raises(ConfigError, match=r"--set training\.lr=no: training\.lr: 'no' given|--set training\.lr=no"):
        with_overrides(experiment, ["training.lr=no"])
    assert parse_override("a.b=c: 1") == (("a", "b"), {"c": 1})


# ---- examples and schema


def test_there_are_examples() -> None:
    assert {"digits"} <= {e.stem for e in EXAMPLES}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_every_example_loads_and_resolves_to_itself(file: Path) -> None:
    experiment = load(file)
    again = Experiment.model_validate(json.loads(json.dumps(experiment.as_json())))
    assert again == experiment
    first = file.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema="), "editors need the schema's line"
    assert (file.parent / first.partition("$schema=")[2]).exists()


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


@pytest.fixture(scope="module")
def accepts(schema: dict[str, Any]) -> Callable[[Any], bool]:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_the_schema_accepts_every_example(accepts: Callable[[Any], bool], file: Path) -> None:
    assert accepts(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"register": "x"}, True),
        ({"data": {"features": {"a": "numeric", "b": None, "c": {"kind": "text"}}}}, True),
        ({"data": {"features": ["a", "b"]}}, True),
        ({"data": {"key": "id"}}, True),
        ({"resources": {"wait": "30m"}}, True),
        ({"model": {"hidden_size": 8, "activation": "silu"}}, True),
        ({"trainin": {}}, False),
        ({"training": {"epoch": 3}}, False),
        ({"training": {"lr": "fast"}}, False),
        ({"training": {"optimizer": "adamx"}}, False),
        ({"data": {"features": {"a": "number"}}}, False),
        ({"data": {"features": {"a": {"knd": "text"}}}}, False),
        ({"data": {"split": {"kind": "rnd"}}}, False),
        ({"resources": {"wait": "soon"}}, False),
        ({"model": {"hiden_size": 8}}, False),
        ({"family": "gen", "task": "rows", "model": {"activation": "relu6"}}, False),
        ({"name": "my flowers"}, False),
    ],
)
def test_the_schema_agrees_with_the_models(accepts: Callable[[Any], bool], change: dict[str, Any], valid: bool) -> None:
    raw = merged({"name": "flowers", "data": {"source": "flowers.csv", "target": "kind"}}, change)
    assert accepts(raw) is valid
    if valid:
        validate(raw)
    else:
        with pytest.raises(ConfigError):
            validate(raw)


def test_the_schema_describes_every_key(schema: dict[str, Any]) -> None:
    for part in ("Training", "Resources", "NetConfig", "Data", "Split"):
        known = schema["$defs"][part]["properties"]
        named = [k for k, v in known.items() if "description" in v or "enum" in v or "$ref" in v or "default" in v]
        assert set(known) == set(named) | (set(known) & {"source", "norm", "loss"})
