"""Versions with their lineage, rollback, and a history that keeps everything."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from seekray.errors import GateError, ModelNotFoundError, TrackingError
from seekray.settings import Settings
from seekray.tracking import client as mlflow_client
from seekray.tracking import registry
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


def test_lineage(three: Settings) -> None:
    found = registry.show("pets", three)
    assert [v["version"] for v in found["versions"]] == ["3", "2", "1"]
    first = found["versions"][-1]
    assert first["run_id"] == "20261124-000001-pets-0000"
    assert first["metrics"] == {"accuracy": 0.5, "log_loss": 0.7}
    assert first["git_commit"] == "abc"
    assert first["fingerprint"]["rows"] == 120
    assert len(first["bundle"]) == 64
    assert first["created_by"]
    assert registry.list_models(three) == [{"name": "pets", "latest": 3, "versions": 3, "aliases": {}}]


def test_the_history_says_why(three: Settings) -> None:
    kit.promote("2", three, gate={"metric": "accuracy", "candidate": 0.6, "champion": 0.5})
    kit.promote("1", three, action="force", reason="hotfix", held_by="2")
    found = registry.show("pets", three)
    first, last = found["history"]
    assert (first["action"], first["gate"]["champion"]) == ("promote", 0.5)
    assert (last["action"], last["reason"]) == ("force", "hotfix")
    assert last["by"]
    assert found["versions"][-1]["forced"] == "hotfix"
    assert found["versions"][-1]["aliases"] == ["champion"]


def test_a_verification_is_kept_and_stands_in_the_card(three: Settings) -> None:
    bundle = registry.version("pets", "1", three)["bundle"]
    for doors in (["python"], ["python", "rest"]):
        registry.set_version_tag("pets", "1", "verified", {"bundle": bundle, "passed": True, "doors": doors}, three)
    assert registry.version("pets", "1", three)["verified"]["doors"] == ["python", "rest"]
    described = mlflow_client.client(three).get_model_version("pets", "1").description
    assert described.count("## Verified") == 1
    assert "All doors answer alike: python, rest" in described


def test_rollback_goes_back_holder_by_holder(three: Settings) -> None:
    for number in ("1", "2", "3"):
        kit.promote(number, three)
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
    kit.promote("3", three)
    assert registry.rollback("pets", "champion", three)["version"] == "1"


def test_someone_who_moves_an_alias_elsewhere_is_seen(three: Settings) -> None:
    kit.promote("1", three)
    mlflow_client.client(three).set_registered_model_alias("pets", "champion", "2")
    found = registry.show("pets", three)
    assert (found["history"][-1]["version"], found["history"][-1]["action"]) == ("2", "outside")
    assert registry.rollback("pets", "champion", three)["version"] == "1"


def test_two_promotions_at_once_both_stay_in_the_history(three: Settings) -> None:
    kit.promote("3", three)
    refused = []

    def work(number: str) -> None:
        try:
            kit.promote(number, three, held_by="3")
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
    kit.promote("1", three)
    with pytest.raises(TrackingError, match="in the meantime"):
        registry.set_alias("pets", "champion", "3", "promote", None, three, held_by="2")


def test_names_that_are_not_there(three: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'pets'"):
        registry.show("pet", three)
    with pytest.raises(ModelNotFoundError, match="no version 9; there are: 3, 2, 1"):
        registry.version("pets", "9", three)
    with pytest.raises(ModelNotFoundError, match="no alias 'blue'"):
        registry.rollback("pets", "blue", three)
