"""What every family promises, over the registration itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_kit import Listen, experiment, run_here, same, same_history, write_table

from seekray.checkpoint import load_named, named_tensors
from seekray.config import Experiment
from seekray.data.prepare import Prepared, prepare
from seekray.models import FAMILIES, get_family
from seekray.session import Session
from seekray.storage import Storage
from seekray.train_state import TrainState

CASES = [(name, task) for name in FAMILIES for task in get_family(name).tasks]
Make = Callable[..., tuple[Experiment, Prepared]]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    family, task = request.param
    source = write_table(tmp_path / "table.csv")

    def of(**training: Any) -> tuple[Experiment, Prepared]:
        model = {"dropout": 0.2, "norm": "batch"} if family == "net" else {}
        given = experiment(source, task, family=family, training=training, model=model)
        return given, prepare(given.data, given.task)

    return of


def _state(given: Experiment, prepared: Prepared, folder: Path) -> tuple[TrainState, Session]:
    session = Session(given.training, Storage(str(folder)), listener=Listen())
    return TrainState(given, session, prepared.schema, prepared.train, prepared.validation), session


def test_shapes(make: Make, tmp_path: Path) -> None:
    given, prepared = make()
    state, session = _state(given, prepared, tmp_path)
    batch = next(iter(state.batches))
    session.begin(batch)
    state.set_training(True)
    shares = state.family.train_step(state.modules, state.optimizers, batch, session)
    assert all(share.ndim == 0 for share in shares.values())
    assert "loss" in shares
    state.set_training(False)
    with torch.no_grad():
        rows = state.family.eval_step(state.modules, batch)
        outputs = state.family.predict(state.modules, batch.inputs)
    assert all(len(figure) == 16 for figure in rows.values())
    assert outputs.shape == (16, prepared.schema.num_outputs)
    assert state.family.objective(given.task)[0] in state.family.metrics(rows, given.task)


def test_loss_falls_on_one_batch(make: Make, tmp_path: Path) -> None:
    given, prepared = make(lr=0.02)
    state, session = _state(given, prepared, tmp_path)
    batch = next(iter(state.batches))
    state.set_training(True)
    losses = []
    for _ in range(150):
        session.begin(batch)
        shares = state.family.train_step(state.modules, state.optimizers, batch, session)
        # a generator has no loss that falls; its discriminator has
        losses.append(float(shares.get("discriminator_loss", shares["loss"])))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_saved_and_loaded_give_equal_outputs(make: Make, tmp_path: Path) -> None:
    given, prepared = make()
    last = run_here(given, prepared, tmp_path / "run")
    batch = next(iter(_state(given, prepared, tmp_path)[0].batches))
    outputs = []
    for _ in range(2):
        torch.manual_seed(len(outputs) + 5)
        modules = get_family(given.family).build(given.model, prepared.schema)
        load_named(modules, last.group("weights"))
        for module in modules.values():
            module.eval()
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(get_family(given.family).predict(modules, batch.inputs))
        assert all(torch.equal(v, last.group("weights")[k]) for k, v in named_tensors(modules).items())
    assert torch.equal(*outputs)


@pytest.mark.parametrize("stop_after", [1, 4, 9])  # of 5 steps an epoch: in the first, before the end of it, in the second
def test_resume_equals_no_interruption(make: Make, tmp_path: Path, stop_after: int) -> None:
    given, prepared = make(checkpoints={"every_steps": 1}, schedule={"kind": "cosine", "warmup": 2}, ema=0.9)
    undisturbed = run_here(given, prepared, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_here(given, prepared, tmp_path / "cut", Listen(stop_after))
    resumed = run_here(given, prepared, tmp_path / "cut")
    same(undisturbed, resumed)
    same_history(undisturbed, resumed)
    for key in ("step", "best_step", "best_value", "rate", "batches"):
        assert undisturbed.state[key] == resumed.state[key]
