"""The gate: verified, not worse on the same rows, forced only with a reason; rollback; history."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_kit import sent_from_here

from seekray.errors import GateError, UserError
from seekray.experiment_file import validate
from seekray.promotion import promote
from seekray.settings import settings
from seekray.tracking import registry
from seekray.trainer import train


def run(epochs: int, seed: int = 0) -> str:
    """Train on wine and return the version."""
    experiment = validate(
        {
            "name": "wine",
            "data": {"source": "sample:wine", "target": "label", "split": {"test": 0.3, "validation": 0, "seed": seed}},
            "model": {"hidden_size": [32]},
            "training": {"epochs": epochs, "lr": 0.003 if epochs > 1 else 1e-6, "batch_size": 16},
            "resources": {"workers": 0},
            "report": {"importances": False},
            "register": "wine",
        }
    )
    with sent_from_here():
        version = train(experiment, settings()).version
    assert version is not None
    return version


@pytest.mark.e2e
def test_promotion(home: Path) -> None:
    good, poor = run(30), run(1)
    where = settings()
    assert promote("wine", poor, "champion", where)["version"] == poor  # nobody holds it yet
    assert registry.version("wine", poor, where)["verified"]["passed"]
    moved = promote("wine", good, "champion", where)
    assert moved["comparison"]["candidate"] > moved["comparison"]["champion"]

    with pytest.raises(GateError) as refused:
        promote("wine", poor, "champion", where)
    for value in (moved["comparison"]["candidate"], moved["comparison"]["champion"]):
        assert f"{value:.6g}" in refused.value.message
    assert registry.show("wine", where)["aliases"]["champion"] == good
    promote("wine", poor, "champion", where, tolerance=1.0)  # as much worse as you like
    assert registry.rollback("wine", "champion", where)["version"] == good

    with pytest.raises(UserError, match="reason"):
        promote("wine", poor, "champion", where, force=" ")
    promote("wine", poor, "champion", where, force="the good one is broken")
    shown = registry.show("wine", where)
    assert shown["aliases"]["champion"] == poor
    held = [(h["version"], h["action"]) for h in shown["history"]]
    assert held == [(poor, "promote"), (good, "promote"), (poor, "promote"), (good, "rollback"), (poor, "force")]
    assert shown["history"][-1]["reason"] == "the good one is broken"
    assert all(h["to"] for h in shown["history"][:-1])
    assert shown["history"][-1]["to"] is None

    # Another split: other held-out rows, so both are measured again on the candidate's.
    other = run(1, seed=7)
    promote("wine", good, "champion", where)
    with pytest.raises(GateError, match="held-out rows of run"):
        promote("wine", other, "champion", where)


@pytest.mark.e2e
def test_a_version_that_answers_differently_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = run(2)
    from seekray import verify

    doors = verify.local_doors

    def crooked(bundle: Path) -> dict[str, object]:
        found = dict(doors(bundle))
        found["python"] = lambda rows: found["copy"](list(reversed(rows)))  # type: ignore[operator]
        return found

    monkeypatch.setattr(verify, "local_doors", crooked)
    with pytest.raises(GateError, match="answers differently"):
        promote("wine", version, "champion", settings())
    assert registry.show("wine", settings())["aliases"] == {}
