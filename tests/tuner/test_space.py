"""The space of a search: what is refused before anything starts, what searchers make of it, and best.yaml's comments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from seekray.errors import ConfigError
from seekray.experiment_file import dump, load, value_of, with_values
from seekray.search_space import Parameter, Tune
from seekray.storage import Storage
from seekray.tuner.journal import Entry, Journal
from seekray.tuner.samplers import Optuna, sampler

FILE = """\
name: t
data: {source: t.csv, target: kind}
training: {optimizer: sgd}
tune:
  space:
    %s
"""


def refused(folder: Path, line: str) -> str:
    (folder / "t.yaml").write_text(FILE % line)
    with pytest.raises(ConfigError) as caught:
        load(folder / "t.yaml")
    return caught.value.message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("model.hiden_size: {choice: [[8]]}", ["t.yaml, line 6: model.hiden_size is not known", "mean model.hidden_size?"]),
        ("training.lr: {uniform: [0, 1]}", ["line 6: training.lr: 0.0 given, expected greater than 0"]),
        ("training.batch_size: {choice: [8, many]}", ["line 6: training.batch_size: 'many' given", "integer"]),
        ("training.epochs: {uniform: [1, 9.5]}", ["line 6: training.epochs: 9.5 given"]),
        ("training.lr: {loguniform: [1e-1, 1e-4]}", ["line 6", "low (0.1) is not below high (0.0001)"]),
        ("training.lr: {uniform: [0.1, 1], choice: [0.1]}", ["line 6", "choice and uniform given, expected exactly one"]),
        ("training.lr: {unifrom: [0.1, 1]}", ["line 6: tune.space.training.lr.unifrom is not known"]),
        ("training.lr: {uniform: [0.1, 1], when: {training.optimiser: sgd}}", ["line 6", "training.optimiser is not known"]),
        ("data.source.x: {choice: [1]}", ["line 6", "source has the value 't.csv', which has no keys"]),
    ],
)  # fmt: skip
def test_a_space_is_checked_before_anything_starts(tmp_path: Path, line: str, words: list[str]) -> None:
    message = refused(tmp_path, line)
    assert all(word in message for word in words), message


def test_numbers_as_yaml_writes_them_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(FILE % "training.lr: {loguniform: [1e-4, 1e-1]}")
    found = load(tmp_path / "t.yaml", ["tune.trials=3", "tune.space.model.dropout={choice: [1e-1, 0.2]}"]).tune
    assert found is not None
    assert found.trials == 3
    assert found.space["training.lr"].loguniform == (1e-4, 1e-1)
    assert found.space["model.dropout"].choice == (0.1, 0.2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"searcher": "grid", "space": {"training.lr": {"uniform": [0, 1]}}}, "can be counted"),
        ({"searcher": "cmaes", "space": {"training.lr": {"choice": [0, 1]}}}, "cmaes is for numbers"),
        ({"space": {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1]}}}, "has to stand before it"),
        ({"space": {}}, "at least 1"),
    ],
)
def test_rules_of_a_search(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Tune.model_validate(given)


CONDITIONAL = {
    "training.optimizer": {"choice": ["adamw", "sgd"]},
    "training.momentum": {"uniform": [0, 0.9], "step": 0.3, "when": {"training.optimizer": "sgd"}},
    "training.batch_size": {"int": [8, 32], "step": 8, "when": {"training.seed": [0, 1]}},
}


def test_a_grid_has_every_combination_once() -> None:
    grid = sampler(Tune.model_validate({"searcher": "grid", "space": CONDITIONAL}), {"training.seed": 1})
    found = []
    while (values := grid.ask(len(found))) is not None:
        found.append(values)
    assert len(found) == 4 + 4 * 4
    assert found[0] == {"training.optimizer": "adamw", "training.batch_size": 8}
    assert found[-1] == {"training.optimizer": "sgd", "training.momentum": pytest.approx(0.9), "training.batch_size": 32}


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_values_are_in_their_ranges_and_keep_their_conditions(searcher: str) -> None:
    space = CONDITIONAL | {"training.lr": {"loguniform": [1e-4, 1e-1]}, "model.width": {"logint": [2, 64]}}
    tune = Tune.model_validate({"searcher": searcher, "space": space, "seed": 3})
    one, other = sampler(tune, {"training.seed": 7}), sampler(tune, {"training.seed": 7})
    widths = set()
    for number in range(60):
        found, again = one.ask(number), other.ask(number)
        assert found == again
        assert found is not None
        assert ("training.momentum" in found) == (found["training.optimizer"] == "sgd")
        assert "training.batch_size" not in found
        assert found.get("training.momentum", 0.3) == pytest.approx(round(found.get("training.momentum", 0.3) / 0.3) * 0.3)
        assert 1e-4 <= found["training.lr"] <= 1e-1
        assert isinstance(found["model.width"], int)
        widths.add(found["model.width"])
        entry = Entry(number, "r", found, "finished", found["training.lr"])
        one.tell(entry, (-found["training.lr"],))
        other.tell(entry, (-found["training.lr"],))
    assert {2, 64} <= widths or len(widths) > 8


def test_tpe_learns_and_is_told_again_of_what_it_knew() -> None:
    tune = Tune.model_validate({"space": {"x": {"uniform": [-10, 10]}, "y": {"choice": ["bad", "good"]}}})
    first = Optuna(tune, {})
    entries = []
    for number in range(40):
        values = first.ask(number)
        score = -((values["x"] - 3) ** 2) - (10 if values["y"] == "bad" else 0)
        entries.append(Entry(number, "r", values, "stopped" if number % 7 == 6 else "finished", score, 3, rungs=[(3, score)]))
        first.tell(entries[-1], (score,))
    late = [e.values for e in entries[-15:]]
    assert sum(v["y"] == "good" for v in late) >= 12
    assert sum(abs(v["x"] - 3) for v in late) / 15 < 4  # 5.5 by chance
    entries.append(Entry(40, "r", {"x": 2.5, "y": "good"}))
    second = Optuna(tune, {})
    for entry in entries:
        second.again(entry, None if entry.value is None else (entry.value,))
    kept = second.study.get_trials()
    assert [t.state.name for t in kept[:40]] == [t.state.name for t in first.study.get_trials()]
    assert [t.params for t in kept[:40]] == [t.params for t in first.study.get_trials()]
    assert (kept[40].state.name, kept[40].params) == ("RUNNING", {"x": 2.5, "y": 1})
    assert Parameter(choice=("bad", "good")).samples == ["bad", "good"]


def test_a_journal_tells_what_it_was_told(tmp_path: Path) -> None:
    journal = Journal(Storage(str(tmp_path)))
    entry = Entry(2, "r-t002", {"a": [1]}, rungs=[(1, 0.5)])
    journal.note(entry)
    journal.save()
    entry.status, entry.value = "finished", 0.5
    journal.note(entry)
    journal.save()
    assert Journal(Storage(str(tmp_path))).trials == {2: entry}
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2


def test_an_experiment_with_values_and_its_file(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(FILE % "training.lr: {uniform: [0.1, 1]}")
    experiment = load(tmp_path / "t.yaml")
    values = {"model.hidden_size": [4, 4], "training.lr": 0.25}
    made = with_values(experiment, values)
    assert made.tune is None
    assert value_of(made, "model.hidden_size") == [4, 4]
    with pytest.raises(ConfigError, match=r"momentum is for sgd"):
        with_values(experiment, {"training.optimizer": "adam", "training.momentum": 0.5})
    given = yaml.safe_load(FILE % "a: 1")
    del given["tune"]
    text = dump(given, values, {"training.lr": "trial 3"}, "The best")
    assert text.startswith("# The best\n")
    assert "  lr: 0.25  # trial 3\n" in text
    (tmp_path / "best.yaml").write_text(text)
    assert load(tmp_path / "best.yaml") == made
