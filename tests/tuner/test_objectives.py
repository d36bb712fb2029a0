"""Several metrics at once: the front, the rule for the best, and a search over them."""

from __future__ import annotations

import contextlib
import json
import types
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from training_kit import experiment, write_table

from seekray import tuner
from seekray.cli.training import _trials
from seekray.errors import SeekrayError
from seekray.search_space import Tune
from seekray.settings import settings
from seekray.tuner.journal import Entry
from seekray.tuner.objectives import best, front
from seekray.tuner.samplers import Optuna

SPACE = {"x": {"uniform": [0, 1]}}


def test_the_front_and_the_rule() -> None:
    pairs = [(0.90, -5.0), (0.89, -2.0), (0.89, -3.0), (0.5, -1.0), (0.895, -2.5), (0.90, -5.0), (0.4, -1.0)]
    scores = dict(enumerate(pairs))
    assert front(scores) == [0, 1, 3, 4, 5]
    assert best(scores, 0.0) == 0
    assert best(scores, 0.006) == 4
    assert best(scores, 0.02) == 1
    assert best(scores, 0.5) == 3
    assert best({n: (s[0],) for n, s in scores.items()}, 0.5) == 0, "of one metric nothing is given away"
    assert best({1: (-0.2, 1.0), 2: (-0.101, 3.0), 3: (-0.1, 2.0)}, 0.02) == 2
    assert best({}, 0.1) is None
    assert front({}) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metric": ["latency", "loss"]}, "a validation metric first"),
        ({"metric": ["loss", "loss"]}, "expected different ones"),
        ({"metric": ["loss", "latency"], "searcher": "cmaes"}, "cmaes is for one metric"),
    ],
)
def test_what_several_metrics_may_not_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Tune.model_validate({"space": SPACE} | given)


def test_tpe_learns_of_two_metrics() -> None:
    """The front of (x - 0.2)² and (x - 0.4)² lies between; elsewhere both are worse."""
    sampler = Optuna(Tune.model_validate({"space": {"x": {"uniform": [0, 3]}}, "metric": ["a", "b"]}), {})
    asked = []
    for number in range(50):
        asked.append(sampler.ask(number)["x"])
        scores = (-((asked[-1] - 0.2) ** 2), -((asked[-1] - 0.4) ** 2))
        sampler.tell(Entry(number, "r", {"x": asked[-1]}, "stopped" if number % 5 == 0 else "finished", scores[0]), scores)
    assert sum(0.1 < x < 0.5 for x in asked[-25:]) > 12  # 3 by chance
    assert len(sampler.study.best_trials) > 3


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "home")
def test_a_search_for_accuracy_speed_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = contextlib.nullcontext(types.SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr(tuner, "start_sender", lambda run, where: sender)
    tune = {
        "trials": 6, "metric": ["accuracy", "latency", "parameters", "loss"], "tolerance": 0.2, "grace": 2, "concurrency": 1,
        "searcher": "grid",
        "space": {"model.hidden_size": {"choice": [[4], [16], [64, 64]]}, "training.lr": {"choice": [1e-3, 1e-2]}},
    }  # fmt: skip
    parts = {"training": {"epochs": 5}, "resources": {"workers": 1}, "data": {"split": {"validation": 0.3}}}
    done = tuner.tune(experiment(write_table(tmp_path / "table.csv"), **parts, tune=tune), settings())
    told = json.loads(json.dumps(done.as_json()))
    assert [sorted(t["others"]) for t in told["trials"]] == [["latency", "loss", "parameters"]] * 6
    assert all(0 < t["others"]["latency"] < 100 for t in told["trials"])
    sizes = {str(t["values"]["model.hidden_size"]): t["others"]["parameters"] for t in told["trials"]}
    assert sizes["[64, 64]"] > sizes["[16]"] > sizes["[4]"]
    scores = {
        t["number"]: (t["value"], -t["others"]["latency"], -t["others"]["parameters"], -t["others"]["loss"])
        for t in told["trials"]
    }
    assert told["front"] == front(scores)
    assert told["best"]["number"] == best(scores, 0.2)
    assert told["run_id"] == told["best"]["run_id"]
    text = (Path(done.folder) / "best.yaml").read_text()
    assert f"latency {told['best']['others']['latency']:.6g}" in text
    assert "# the best in latency of those within 0.2 of the best accuracy" in text
    assert any(plot.endswith("front.png") for plot in done.plots)
    assert f"{told['front'][0]}*" in _trials(done)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "home")
def test_a_metric_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = contextlib.nullcontext(types.SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr(tuner, "start_sender", lambda run, where: sender)
    tune = {"trials": 1, "metric": ["accuracy", "speed"], "scheduler": "none", "space": {"training.lr": {"choice": [0.01]}}}
    parts = {"training": {"epochs": 1}, "resources": {"workers": 1}, "data": {"split": {"validation": 0.3}}}
    with pytest.raises(SeekrayError, match=r"'speed' given; there are .*loss.*, latency, parameters"):
        tuner.tune(experiment(write_table(tmp_path / "table.csv"), **parts, tune=tune), settings())
