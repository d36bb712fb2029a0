"""The loop: what its settings do, and that N ranks compute what one does."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import forked
from training_kit import Listen, experiment, run_here, same, same_history, write_table

from seekray import loop
from seekray.checkpoint import Checkpoints, load_named, named_tensors
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.data.tables.prepare import prepare
from seekray.errors import ConfigError, DivergedError
from seekray.models import get_family
from seekray.session import Session
from seekray.storage import Storage
from seekray.train_state import TrainState


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("loop") / "table.csv")


@pytest.fixture(scope="module")
def prepared(source: Path) -> Prepared:
    """70 training rows: with batches of 23, the last has one row, so that ranks are left without."""
    return prepare(experiment(source).data, "classification")


# ---- ranks

CASES: dict[str, dict[str, Any]] = {
    "plain": {"training": {"precision": "fp64", "batch_size": 23}},
    "parts": {
        "training": {
            "precision": "fp64", "batch_size": 23, "accumulate": 3, "clip_norm": 0.05, "optimizer": "sgd", "momentum": 0.9,
            "lr": 0.1, "ema": 0.9, "schedule": {"kind": "cosine", "warmup": 0.2}, "weight_decay": 0.1,
        },
        "model": {"class_weights": "balanced", "label_smoothing": 0.1},
    },
    "norm": {
        "training": {"precision": "fp64", "batch_size": 23, "optimizer": "adam", "early_stopping": {"patience": 2}},
        "model": {"norm": "batch", "residual": True, "hidden_size": [8, 8]},
    },
    "multilabel": {"task": "multilabel", "training": {"precision": "fp64", "batch_size": 23}},
    "regression": {"task": "regression", "training": {"precision": "fp64", "batch_size": 23, "schedule": {"kind": "plateau"}}},
    "gen": {"task": "rows", "family": "gen", "training": {"precision": "fp64", "batch_size": 23}},
}  # fmt: skip


def test_ranks_compute_what_one_process_does(source: Path, tmp_path: Path) -> None:
    """Weights, averages, optimizer state and every figure of 2 and 3 ranks against one, after some 12 steps."""
    cases = {name: experiment(source, **parts) for name, parts in CASES.items()}
    forked(
        [
            {"kind": "run", "experiment": given.as_json(), "folder": str(tmp_path / f"{name}-{world}"), "world": world}
            for name, given in cases.items()
            for world in (2, 3)
        ]
    )
    for name, given in cases.items():
        alone = run_here(given, None, tmp_path / name)
        assert alone.state["step"] == 12 or name == "norm"
        for world in (2, 3):
            ranks = Checkpoints(Storage(str(tmp_path / f"{name}-{world}"))).latest()
            assert ranks is not None
            assert ranks.state["world_size"] == world
            for group in ("weights/", "optimizer/", "best/"):
                same(alone, ranks, group, tolerance=1e-6)
            same_history(alone, ranks, tolerance=1e-6)


def test_metrics_count_each_row_once(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    """Against a direct computation, with weights that do not move; the ranks' equal these (see above)."""
    given = experiment(source, training={"lr": 1e-30, "precision": "fp64", "batch_size": 23, "epochs": 1})
    last = run_here(given, prepared, tmp_path)
    modules = get_family("net").build(given.model, prepared.schema)
    modules["net"].double()
    load_named(modules, last.group("weights"))
    for part, arrays in (("train", prepared.train), ("validation", prepared.validation)):
        inputs = {k: torch.from_numpy(v) for k, v in arrays.inputs.items()}
        inputs["dense"] = inputs["dense"].double()
        targets = torch.from_numpy(arrays.targets)
        with torch.no_grad():
            outputs = modules["net"](inputs)
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        assert last.state["history"][0][f"{part}_loss"] == pytest.approx(float(loss), abs=1e-12)
        if part == "validation":
            accuracy = float((outputs.argmax(1) == targets).double().mean())
            assert last.state["history"][0]["validation_accuracy"] == accuracy


# ---- seeds and settings


def test_the_same_seed_is_the_same_run(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    runs = []
    for seed in (0, 0, 1):
        given = experiment(source, training={"seed": seed}, model={"dropout": 0.3})
        runs.append(run_here(given, prepared, tmp_path / str(len(runs))))
    same(runs[0], runs[1])
    same_history(runs[0], runs[1])
    assert not torch.equal(runs[0].tensors["weights/net/head.weight"], runs[2].tensors["weights/net/head.weight"])


def _rates(source: Path, prepared: Prepared, folder: Path, **training: Any) -> list[float]:
    listen = Listen()
    run_here(experiment(source, training={"lr": 0.1, **training}), prepared, folder, listen)
    return [value for _, value in sorted(listen.series("lr").items())]


@pytest.mark.parametrize("kind", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("warmup", [0, 3, 0.2])
def test_the_rate_of_each_step_is_the_formulas(
    source: Path, prepared: Prepared, tmp_path: Path, kind: str, warmup: float
) -> None:
    """15 steps; the rate that a step used is told with the step it completed."""
    schedule = {"kind": kind, "warmup": warmup} | ({"final": 0.1} if kind == "cosine" else {})
    rates = _rates(source, prepared, tmp_path, schedule=schedule)
    total, ramp = 15, 3 if warmup else 0
    assert len(rates) == total
    for step, rate in enumerate(rates):
        done = max(0, step - ramp) / (total - ramp)
        if kind == "constant":
            factor = 1.0
        elif kind == "cosine":
            factor = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        elif done < 0.3:
            factor = 0.04 + 0.96 * (1 - math.cos(math.pi * done / 0.3)) / 2
        else:
            factor = 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
        assert rate == pytest.approx(0.1 * factor * (min(1, (step + 1) / ramp) if ramp else 1), rel=1e-9)


def test_plateau_halves_the_rate(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    """With no progress to be made, after `patience` + 1 stale epochs."""
    schedule = {"kind": "plateau", "patience": 1, "factor": 0.5}
    given = experiment(source, training={"lr": 1e-30, "epochs": 6, "schedule": schedule})
    listen = Listen()
    run_here(given, prepared, tmp_path, listen)
    rates = [value / 1e-30 for _, value in sorted(listen.series("lr").items())]
    assert rates == pytest.approx([1.0] * 15 + [0.5] * 10 + [0.25] * 5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizers_take_the_step_of_their_formula(source: Path, prepared: Prepared, tmp_path: Path, optimizer: str) -> None:
    """The first step from zero state: sign-like for Adam's, the gradient itself for SGD; decay as each defines it."""
    training = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.5, "max_steps": 1, "epochs": None, "precision": "fp64"}
    given = experiment(source, training=training)
    session = Session(given.training, Storage(str(tmp_path)), listener=Listen())
    state = TrainState(given, session, prepared.schema, prepared.train, prepared.validation)
    net = state.modules["net"]
    old = {k: p.detach().clone() for k, p in net.named_parameters()}
    batch = next(iter(state.batches))
    loss = net.loss(net(batch.inputs), batch.targets).mean()  # type: ignore[operator]
    gradients = dict(zip(old, torch.autograd.grad(loss, list(net.parameters())), strict=True))
    session.begin(batch)
    state.family.train_step(state.modules, state.optimizers, batch, session)
    for key, parameter in net.named_parameters():
        w, g = old[key], gradients[key]
        decay = 0.5 if w.ndim > 1 else 0.0
        if optimizer == "sgd":
            expected = w - 0.01 * (g + decay * w)
        elif optimizer == "adam":
            g = g + decay * w
            expected = w - 0.01 * g / (g.abs() + 1e-8)
        else:
            expected = w * (1 - 0.01 * decay) - 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-9)


def test_early_stopping_keeps_the_best_weights(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    training = {"lr": 0.2, "epochs": 60, "early_stopping": {"patience": 3}}
    last = run_here(experiment(source, training=training, model={"hidden_size": [64]}), prepared, tmp_path)
    losses = [entry["validation_loss"] for entry in last.state["history"]]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 60
    assert last.state["best_step"] == last.state["history"][best]["step"]
    assert last.state["finished"]
    same_keys = last.group("best").keys()
    assert same_keys == last.group("weights").keys()
    assert any(not torch.equal(v, last.group("weights")[k]) for k, v in last.group("best").items())


def test_the_metric_that_picks_the_best_can_be_chosen(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    training = {"lr": 0.05, "epochs": 12, "metric": "accuracy"}
    last = run_here(experiment(source, training=training), prepared, tmp_path / "a")
    accuracies = [entry["validation_accuracy"] for entry in last.state["history"]]
    assert last.state["best_step"] == last.state["history"][int(np.argmax(accuracies))]["step"]
    with pytest.raises(ConfigError, match="'lightness' given, validation has loss, accuracy"):
        run_here(experiment(source, training={"metric": "lightness"}), prepared, tmp_path / "b")


def test_the_average_is_that_of_the_weights(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    """Followed by hand from the checkpoint of every step; the validation is the average's."""
    folder, training = tmp_path / "run", {"ema": 0.5, "checkpoints": {"every_steps": 1, "keep": 100}, "epochs": 2}
    last = run_here(experiment(source, training=training), prepared, folder)
    checkpoints = Checkpoints(Storage(str(folder)))
    mean = checkpoints.load(0).group("weights")
    for step in range(10):
        decay = min(0.5, (1 + step) / (10 + step))
        after = checkpoints.load(step + 1)
        mean = {k: decay * v + (1 - decay) * after.group("weights")[k] for k, v in mean.items()}
        for key, value in after.group("average").items():
            torch.testing.assert_close(value, mean[key])
    modules = get_family("net").build(experiment(source).model, prepared.schema)
    load_named(modules, last.group("average"))
    inputs = {k: torch.from_numpy(v) for k, v in prepared.validation.inputs.items()}
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(modules["net"](inputs), torch.from_numpy(prepared.validation.targets))
    assert last.state["history"][-1]["validation_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_bf16_trains_fp32_weights(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    runs = {p: run_here(experiment(source, training={"precision": p}), prepared, tmp_path / p) for p in ("fp32", "bf16")}
    head = {p: run.tensors["weights/net/head.weight"] for p, run in runs.items()}
    assert head["bf16"].dtype == torch.float32
    assert not torch.equal(head["bf16"], head["fp32"])
    torch.testing.assert_close(head["bf16"], head["fp32"], rtol=0, atol=0.02)


@pytest.mark.slow
def test_compiled_is_equal(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    runs = [
        run_here(experiment(source, training={"compile": on, "precision": "fp64"}), prepared, tmp_path / str(on))
        for on in (False, True)
    ]
    same(*runs, "weights/", tolerance=1e-9)


def test_no_validation_rows(source: Path, tmp_path: Path) -> None:
    given = experiment(source, data={"split": {"validation": 0}})
    last = run_here(given, None, tmp_path)
    assert last.group("best").keys() == last.group("weights").keys()
    same_best = last.group("best")
    assert all(torch.equal(v, same_best[k]) for k, v in last.group("weights").items())


def test_points_are_told_at_the_pace_that_was_asked(source: Path, prepared: Prepared, tmp_path: Path) -> None:
    listen = Listen()
    run_here(experiment(source, training={"log_every": 2, "clip_norm": 1.0}), prepared, tmp_path, listen)
    assert sorted(listen.series("loss")) == [2, 4, 5, 6, 8, 10, 12, 14, 15]  # and at the end of each epoch of 5 steps
    assert {"lr", "rows_per_second", "grad_norm", "validation_loss", "train_loss"} <= {p.key for p in listen.heard}
    assert listen.states[-1]["finished"]


@pytest.mark.parametrize(("every", "times"), [(1e9, 1), (0, 9)])
def test_speed_and_system_are_told_at_a_pace_of_their_own(
    source: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, times: int
) -> None:
    monkeypatch.setattr(loop, "MEASURED_EVERY_S", every)
    listen = Listen()
    run_here(experiment(source, training={"log_every": 2}), prepared, tmp_path, listen)
    told = [len(listen.series(key)) for key in ("rows_per_second", "system/process_memory_mib")]
    assert (told, len(listen.series("loss"))) == ([times, times], 9)
    assert "rows_per_second" in listen.states[-1]


# ---- a loss that is not finite


def _poisoned(source: Path) -> tuple[Experiment, Prepared, int]:
    given = experiment(source, "regression", training={"epochs": 2, "checkpoints": {"every_steps": 1}, "batch_size": 7})
    prepared = prepare(given.data, given.task)
    targets = prepared.train.targets.copy()  # type: ignore[union-attr]
    targets[40] = np.nan
    return given, dataclasses.replace(prepared, train=dataclasses.replace(prepared.train, targets=targets)), 40


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_poisoned_row_stops_the_run_at_its_step(source: Path, tmp_path: Path, accumulate: int) -> None:
    given, prepared, bad = _poisoned(source)
    given = given.model_copy(update={"training": given.training.model_copy(update={"accumulate": accumulate})})
    with pytest.raises(DivergedError) as caught:
        run_here(given, prepared, tmp_path)
    order = torch.randperm(len(prepared.train.rows), generator=torch.Generator().manual_seed(0))
    step = int((order == bad).nonzero()) // 7
    assert f"at step {step} (learning rate 0.001)" in caught.value.message
    rows = prepared.train.rows[order[step * 7 : (step + 1) * 7].numpy()]
    assert f"rows of the batch: {', '.join(map(str, sorted(rows)))}." in caught.value.message
    assert prepared.train.rows[bad] in rows
    last = Checkpoints(Storage(str(tmp_path))).latest()
    assert last is not None
    assert last.state["step"] == step
    assert all(torch.isfinite(v).all() for k, v in last.tensors.items() if k.startswith("weights/"))


def test_a_huge_rate_stops_the_run(source: Path, tmp_path: Path) -> None:
    given = experiment(source, "regression", training={"optimizer": "sgd", "lr": 1e30})
    with pytest.raises(DivergedError, match=r"learning rate 1e\+30.*training.clip_norm"):
        run_here(given, None, tmp_path)
    last = Checkpoints(Storage(str(tmp_path))).latest()
    assert last is not None
    assert all(torch.isfinite(v).all() for v in last.group("weights").values())


def test_named_tensors_cover_buffers(source: Path, prepared: Prepared) -> None:
    modules = get_family("net").build(experiment(source, model={"norm": "batch"}).model, prepared.schema)
    assert "net/layers.0.norm.running_mean" in named_tensors(modules)
