"""BOHB: told in one line where its packages do not work, and learning where they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_kit import experiment, write_table

from seekray import tuner
from seekray.errors import UserError
from seekray.search_space import Tune
from seekray.settings import settings
from seekray.tuner.bohb import Bohb, packages
from seekray.tuner.journal import Entry

SPACE: dict[str, Any] = {
    "training.optimizer": {"choice": ["adamw", "sgd"]},
    "training.lr": {"loguniform": [1e-4, 1e-1]},
    "training.momentum": {"uniform": [0, 0.9], "step": 0.3, "when": {"training.optimizer": "sgd"}},
    "training.batch_size": {"logint": [2, 64]},
    "model.dropout": {"uniform": [0, 0.5]},
}


def _works() -> bool:
    try:
        packages()
    except UserError:
        return False
    return True


@pytest.mark.skipif(_works(), reason="the packages work here")
def test_where_its_packages_are_missing_one_line_says_so_before_anything_starts(tmp_path: Path) -> None:
    given = experiment(write_table(tmp_path / "t.csv"), tune={"searcher": "bohb", "space": {"training.lr": {"choice": [1, 2]}}})
    with pytest.raises(UserError) as caught:
        tuner.tune(given, settings(), connect=lambda: pytest.fail("Ray is started"))
    assert "\n" not in caught.value.message
    assert "pip install 'hpbandster==0.7.4' 'ConfigSpace<1' 'numpy<2'" in caught.value.message


@pytest.mark.skipif(not _works(), reason="hpbandster and ConfigSpace<1, which want numpy<2, are not installed")
def test_it_learns_and_is_told_again_of_what_it_knew() -> None:
    tune = Tune.model_validate({"searcher": "bohb", "space": SPACE})
    first, again, entries = Bohb(tune, {}), Bohb(tune, {}), []
    for number in range(60):
        values = first.ask(number)
        assert values is not None
        assert ("training.momentum" in values) == (values["training.optimizer"] == "sgd")
        assert 2 <= values["training.batch_size"] <= 64
        loss = abs(values["model.dropout"] - 0.1) + (values["training.optimizer"] == "sgd")
        rungs = [(3, loss + 1)] + ([(9, loss)] if number % 3 == 0 else [])
        entries.append(Entry(number, "r", values, "stopped", rungs[-1][1], rungs[-1][0], rungs=rungs))
        first.tell(entries[-1], (-rungs[-1][1],))
        again.again(entries[-1], (-rungs[-1][1],))
    late = [e.values for e in entries[-20:]]
    assert sum(v["training.optimizer"] == "adamw" for v in late) > 12  # a third is drawn by chance
    assert sum(abs(v["model.dropout"] - 0.1) < 0.1 for v in late) > 10  # 8 by chance
    assert first._model.losses == again._model.losses
    assert first._model.largest_budget_with_model() == 9
    again.again(Entry(60, "r", entries[-1].values, "failed"), None)
