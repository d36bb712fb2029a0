"""`data.augment`: synthetic rows among the training rows, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_kit import experiment, prepare_for, run_here, write_table

from seekray import bundle as bundles
from seekray.augment import augmented
from seekray.config import Experiment
from seekray.errors import ConfigError, DataError
from seekray.settings import settings
from seekray.storage import Storage

FEATURES = ["a", "b", "c", "colour", "kind"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("augment") / "table.csv")


def generator(source: Path, features: list[str], seed: int = 0) -> str:
    """A bundle of a generator of these columns."""
    data = {"features": features, "split": {"seed": seed}}
    given = experiment(source, "rows", data=data, training={"epochs": 1}, model={"condition": features[-1]})
    prepared = prepare_for(given)
    folder = source.parent / f"{len(features)}-{seed}"
    last = run_here(given, prepared, folder)
    info = {"name": "rows", "family": "gen", "task": "rows", "model": given.as_json()["model"], "metrics": {}}
    bundles.write(
        Storage(str(folder)), "bundle", info | {"fingerprint": prepared.fingerprint}, prepared.schema, last.group("best"), {}
    )
    return str(folder / "bundle")


def net(source: Path, model: str, rows: int = 40) -> Experiment:
    return experiment(source, data={"augment": {"model": model, "rows": rows}})


def test_only_training_rows_are_more(source: Path) -> None:
    given = net(source, generator(source, FEATURES))
    plain = prepare_for(given)
    more = augmented(plain, given, settings())
    assert len(more.train) == len(plain.train) + 40
    for name, array in plain.train.inputs.items():  # type: ignore[attr-defined]
        assert np.array_equal(more.train.inputs[name][: len(plain.train)], array)  # type: ignore[attr-defined]
    made = more.train.targets[len(plain.train) :]  # type: ignore[attr-defined]
    assert set(made.tolist()) <= {0, 1, 2}
    assert len(set(more.train.rows.tolist())) == len(more.train)  # type: ignore[attr-defined]
    assert more.validation is plain.validation
    assert more.held_out.equals(plain.held_out)
    assert more.schema == plain.schema
    assert more.warnings == plain.warnings
    assert more.fingerprint != plain.fingerprint
    assert augmented(plain, given, settings()).fingerprint == more.fingerprint
    run_here(given, more, source.parent / "net")


def test_another_split_is_warned_of(source: Path) -> None:
    given = net(source, generator(source, FEATURES, seed=7))
    assert "held out here" in augmented(prepare_for(given), given, settings()).warnings[-1]


def test_what_does_not_fit_is_refused(source: Path) -> None:
    given = net(source, generator(source, FEATURES[1:]))
    with pytest.raises(DataError, match=r"data\.augment: column 'a'"):
        augmented(prepare_for(given), given, settings())
    given = experiment(source, "rows", data={"augment": {"model": "x", "rows": 3}})
    with pytest.raises(ConfigError, match="with a target"):
        augmented(prepare_for(given), given, settings())
