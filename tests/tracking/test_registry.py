"""Versions with their lineage, the gate, rollback, and a history that keeps everything."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from seekray.errors import GateError, ModelNotFoundError, TrackingError, UserError
from seekray.settings import Settings
from seekray.tracking import client as mlflow_client
from seekray.tracking import gate, registry
from seekray.tracking.carrier import send

from . import conftest as kit


@pytest.fixture
def three(where: Settings, bundle: Path, tmp_path: Path) -> Settings:
    """`pets` in versions 1, 2 and 3 with accuracy 0.5, 0.6 and 0.55; 3 is of other data."""
    fingerprint = json.loads((bundle / "bundle.json").read_text())["fingerprint"]
    for number, accuracy in enumerate((0.5, 0.6, 0.55), 1):
        seen = fingerprint | ({"content": "other"} if number == 3 else {})
        made = kit.variant(bundle, tmp_path / f"v{number}", metrics={"accuracy": accuracy, "log_loss": 0.7}, fingerprint=seen)
        run = kit.make_run(where, f"20261124-00000{number}-pets-0000")
        run.write(made, steps=1)
        assert send(run.storage, where).version == str(number)
    return where


def higher(**more: Any) -> registry.Gate:
    return lambda a, b: gate.compare(a, b, "accuracy", higher_is_better=True, **more).as_json()


def test_lineage(three: Settings) -> None:
    found = registry.show("pets", three)
    assert [v["version"] for v in found["versions"]] == ["3", "2", "1"]
    first = found["versions"][-1]
    assert first["run_id"] == "20261124-000001-pets-0000"
    assert first["metrics"] == {"accuracy": 0.5, "log_loss": 0.7}
    assert first["git_commit"] == "abc"
    assert first["fingerprint"]["rows"] == 120
    assert first["held_out"] == "test"
    assert len(first["bundle"]) == 64
    assert first["created_by"]
    assert registry.list_models(three) == [{"name": "pets", "latest": 3, "versions": 3, "aliases": {}}]


def test_the_gate_refuses_with_both_numbers_and_records_what_it_saw(three: Settings) -> None:
    registry.promote("pets", "2", "champion", three, gate=higher())
    with pytest.raises(GateError, match=r"version 1 has accuracy 0\.5, version 2 has 0\.6 \(higher is better"):
        registry.promote("pets", "1", "champion", three, gate=higher())
    assert registry.show("pets", three)["aliases"] == {"champion": "2"}
    moved = registry.promote("pets", "1", "champion", three, gate=higher(tolerance=0.11))
    assert moved["from"] == "2"
    last = registry.show("pets", three)["history"][-1]
    assert (last["version"], last["action"], last["gate"]["champion"]) == ("1", "promote", 0.6)


def test_other_held_out_rows_are_measured_again_or_refused(three: Settings) -> None:
    registry.promote("pets", "1", "champion", three)
    with pytest.raises(GateError, match="not measured on the same rows"):
        registry.promote("pets", "3", "champion", three, gate=higher())
    asked: list[str] = []

    def evaluate(entry: Any) -> float:
        asked.append(entry["version"])
        return {"1": 0.7, "3": 0.65}[entry["version"]]

    with pytest.raises(GateError, match=r"0\.65.*0\.7"):
        registry.promote("pets", "3", "champion", three, gate=higher(evaluate=evaluate))
    assert asked == ["3", "1"]
    assert registry.promote("pets", "3", "champion", three, gate=higher(evaluate=evaluate, tolerance=0.06))["version"] == "3"


@pytest.mark.parametrize(
    ("candidate", "champion", "better", "tolerance", "passes"),
    [
        (0.9, 0.9, True, 0.0, True), (0.89, 0.9, True, 0.0, False), (0.89, 0.9, True, 0.02, True),
        (0.3, 0.2, False, 0.0, False), (0.2, 0.3, False, 0.0, True), (float("nan"), 0.1, True, 9.0, False),
    ],
)  # fmt: skip
def test_gate_arithmetic(candidate: float, champion: float, better: bool, tolerance: float, passes: bool) -> None:
    if passes:
        gate.check(candidate, champion, "m", higher_is_better=better, tolerance=tolerance)
    else:
        with pytest.raises(GateError):
            gate.check(candidate, champion, "m", higher_is_better=better, tolerance=tolerance)


def test_force_is_recorded_with_its_reason(three: Settings) -> None:
    registry.promote("pets", "2", "champion", three)
    with pytest.raises(UserError, match="reason"):
        registry.promote("pets", "1", "champion", three, gate=higher(), force=" ")
    registry.promote("pets", "1", "champion", three, gate=higher(), force="hotfix")
    found = registry.show("pets", three)
    assert (found["history"][-1]["action"], found["history"][-1]["reason"]) == ("force", "hotfix")
    assert found["versions"][-1]["forced"] == "hotfix"


def test_rollback_goes_back_holder_by_holder(three: Settings) -> None:
    for number in ("1", "2", "3"):
        registry.promote("pets", number, "champion", three)
    assert registry.rollback("pets", "champion", three)["version"] == "2"
    assert registry.rollback("pets", "champion", three)["version"] == "1"
    with pytest.raises(GateError, match="no other holder"):
        registry.rollback("pets", "champion", three)
    held = registry.show("pets", three)["history"]
    assert [(h["version"], h["action"]) for h in held] == [
        ("1", "promote"), ("2", "promote"), ("3", "promote"), ("2", "rollback"), ("1", "rollback"),
    ]  # fmt: skip
    assert [h["to"] for h in held[:-1]] == [h["from"] for h in held[1:]]  # append-only, without gaps
    assert held[-1]["to"] is None
    registry.promote("pets", "3", "champion", three)
    assert registry.rollback("pets", "champion", three)["version"] == "1"


def test_promoting_the_holder_changes_nothing(three: Settings) -> None:
    registry.promote("pets", "1", "champion", three)
    registry.promote("pets", "1", "champion", three)
    assert len(registry.show("pets", three)["history"]) == 1


def test_someone_who_moves_an_alias_elsewhere_is_seen(three: Settings) -> None:
    registry.promote("pets", "1", "champion", three)
    mlflow_client.client(three).set_registered_model_alias("pets", "champion", "2")
    found = registry.show("pets", three)
    assert (found["history"][-1]["version"], found["history"][-1]["action"]) == ("2", "outside")
    assert registry.rollback("pets", "champion", three)["version"] == "1"


def test_two_promotions_at_once_both_stay_in_the_history(three: Settings) -> None:
    registry.promote("pets", "3", "champion", three)
    refused = []

    def work(number: str) -> None:
        try:
            registry.promote("pets", number, "champion", three)
        except TrackingError:
            refused.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in ("1", "2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = registry.show("pets", three)
    moved = [h["version"] for h in found["history"] if h["action"] == "promote"]
    assert sorted(moved + refused) == ["1", "2", "3"]
    assert found["history"][-1]["version"] == found["aliases"]["champion"]


def test_a_decision_against_an_older_holder_is_refused(three: Settings) -> None:
    registry.promote("pets", "1", "champion", three)
    with pytest.raises(TrackingError, match="in the meantime"):
        registry.set_alias("pets", "champion", "3", "promote", None, three, held_by="2")


def test_names_that_are_not_there(three: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'pets'"):
        registry.show("pet", three)
    with pytest.raises(ModelNotFoundError, match="no version 9; there are: 3, 2, 1"):
        registry.promote("pets", "9", "champion", three)
    with pytest.raises(ModelNotFoundError, match="no alias 'blue'"):
        registry.rollback("pets", "blue", three)
