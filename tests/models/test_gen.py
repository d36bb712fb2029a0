"""DeepSeek-Gen: losses, noise, networks, what it makes and what training says of it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from family_cases import CASES
from PIL import Image
from training_kit import Listen, experiment, prepare_for, run_here, write_table

from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.errors import UserError
from seekray.generator import Generator, open_model
from seekray.models import get_family
from seekray.models.gen_losses import discriminator_loss, generator_loss, gradient_penalty
from seekray.models.gen_networks import normalised, settle
from seekray.models.gen_watch import figures, remarks
from seekray.models.noise import normal, stream, uniform
from seekray.session import Session
from seekray.storage import Storage
from seekray.train_state import TrainState


def make(task: str, folder: Path, **changes: Any) -> tuple[Experiment, Prepared]:
    given = CASES["gen", task].experiment("gen", task, folder, changes)
    return given, prepare_for(given)


def untrained(task: str, folder: Path, **changes: Any) -> Generator:
    """A generator as it is before the first step."""
    given, prepared = make(task, folder, **changes)
    torch.manual_seed(0)
    modules = get_family("gen").build(given.model, prepared.schema)
    info = {"name": "t", "family": "gen", "task": task, "model": given.as_json()["model"]}
    weights = {f"{name}/{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    model = open_model(info, prepared.schema, weights)
    assert isinstance(model, Generator)
    return model


# ---- losses


def test_losses_are_their_formulas() -> None:
    real, fake = torch.tensor([0.3, -2.0]).double(), torch.tensor([1.5, -0.4]).double()
    p_real, p_fake = real.sigmoid(), fake.sigmoid()
    expected = {
        "non_saturating": (-p_real.log() - (1 - p_fake).log(), -p_fake.log()),
        "least_squares": (0.5 * ((real - 1) ** 2 + fake**2), 0.5 * (fake - 1) ** 2),
        "hinge": ((1 - real).clamp_min(0) + (1 + fake).clamp_min(0), -fake),
        "wasserstein": (fake - real + 1e-3 * real**2, -fake),
    }
    for kind, (of_discriminator, of_generator) in expected.items():
        torch.testing.assert_close(discriminator_loss(kind, real, fake), of_discriminator)  # type: ignore[arg-type]
        torch.testing.assert_close(generator_loss(kind, fake), of_generator)  # type: ignore[arg-type]
    smoothed = -(0.9 * p_real.log() + 0.1 * (1 - p_real).log()) - (1 - p_fake).log()
    torch.testing.assert_close(discriminator_loss("non_saturating", real, fake, 0.1), smoothed)


def test_the_penalty_of_a_line_is_its_slope() -> None:
    class Line(torch.nn.Module):
        def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return x @ torch.tensor([3.0, 4.0])

    rows = torch.randn(5, 2)
    found = gradient_penalty(Line(), rows, rows + 1, torch.zeros(5, 0), torch.rand(5, 1))
    torch.testing.assert_close(found, torch.full((5,), 16.0))


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    module = normalised(torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Tanh(), torch.nn.Conv1d(3, 4, 3)))
    module.train()
    for _ in range(30):  # power iterations
        weights = [module[0].weight.detach(), module[2].weight.detach()]  # type: ignore[index]
    for weight in weights:
        assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "hinge", "wasserstein"])
def test_each_loss_trains_and_turns_alternate(loss: str, tmp_path: Path) -> None:
    """Three batches of the discriminator for one of the generator; each network has its own rate."""
    model = {
        "loss": loss,
        "discriminator_steps": 3,
        "generator": {"lr": 0.01},
        "discriminator": {"lr": 0.02, "betas": [0, 0.5]},
    }
    given, prepared = make("rows", tmp_path, model=model)
    state = TrainState(
        given, session := Session(given.training, Storage(str(tmp_path)), listener=Listen()), prepared.schema,
        prepared.train, prepared.validation,
    )  # fmt: skip
    rates = {name: optimizer.param_groups[0] for name, optimizer in state.optimizers.items()}
    assert (rates["generator"]["lr"], rates["discriminator"]["lr"]) == (0.01, 0.02)
    assert rates["discriminator"]["betas"] == (0, 0.5)
    state.modules["generator"].counter.turn.fill_(0)
    moved: dict[str, list[bool]] = {"generator": [], "discriminator": []}
    state.set_training(True)
    for batch in list(state.batches)[:4]:
        before = {n: next(m.parameters()).detach().clone() for n, m in state.modules.items()}
        session.begin(batch)
        state.family.train_step(state.modules, state.optimizers, batch, session)
        for name, module in state.modules.items():
            moved[name].append(not torch.equal(before[name], next(module.parameters())))
    assert moved == {"generator": [False, False, True, False], "discriminator": [True] * 4}


# ---- noise


def test_noise_is_a_function_of_stream_row_and_place() -> None:
    rows = torch.arange(20_000)
    found = normal(stream(7), rows, 6)
    assert torch.equal(normal(stream(7), rows[123:130], 6), found[123:130])
    torch.testing.assert_close(normal(stream(7), rows, 6, torch.float64).float(), found, atol=1e-5, rtol=0)
    assert found.mean(0).abs().max() < 0.03
    assert (found.std(0) - 1).abs().max() < 0.03
    everything = torch.cat([found, normal(stream(8), rows, 6)], 1)
    assert (torch.corrcoef(everything.T) - torch.eye(12)).abs().max() < 0.04
    assert abs(float(torch.corrcoef(torch.stack([found[1:, 0], found[:-1, 0]]))[0, 1])) < 0.03
    even = uniform(stream(7, 1), rows, 3)
    assert 0 < float(even.min()) < 0.001
    assert 0.999 < float(even.max()) < 1
    assert (even.mean(0) - 0.5).abs().max() < 0.01


def test_choices_are_drawn_in_their_proportion() -> None:
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).expand(20_000, 3)
    raw = torch.cat([torch.ones(20_000, 1), logits, logits], 1)
    spans = [("real", 1), ("choice", 3), ("choice", 3)]
    drawn = settle(raw, spans, uniform(1, torch.arange(20_000), 7), None)
    assert torch.equal(drawn[:, 0], raw[:, 0])
    for part in (drawn[:, 1:4], drawn[:, 4:]):
        assert torch.equal(part.sum(1), torch.ones(20_000))
        torch.testing.assert_close(part.mean(0), torch.tensor([0.7, 0.2, 0.1]), atol=0.012, rtol=0)
    soft = settle(raw, spans, uniform(1, torch.arange(20_000), 7), 0.5)
    assert torch.equal(soft[:, 1:4].argmax(1), drawn[:, 1:4].argmax(1))


# ---- what it makes


def test_rows_obey_the_schema(tmp_path: Path) -> None:
    """Also of an untrained generator: range, decimals, type, categories, gaps only where there were some, unique keys."""
    model = untrained("rows", tmp_path)
    real, made = pq.read_table(tmp_path / "rows.parquet"), model.generate(rows=3000, seed=5)
    assert made.schema == real.schema.remove_metadata()
    assert made["id"].to_pylist() == list(range(made["id"][0].as_py(), made["id"][0].as_py() + 3000))
    for name in ("weight", "count", "day"):
        seen, given = made[name].drop_null().to_numpy(), real[name].drop_null().to_numpy()
        assert given.min() <= seen.min()
        assert seen.max() <= given.max()
    weights = made["weight"].drop_null().to_numpy()
    assert (weights == weights.round(2)).all()
    assert made["weight"].null_count
    for name in ("count", "colour", "kind", "day", "id"):
        assert not made[name].null_count
    for name in ("colour", "kind"):
        assert set(made[name].to_pylist()) <= set(real[name].to_pylist())


def test_numbers_keep_their_unit(tmp_path: Path) -> None:
    """Weights in steps of 25 and prices that end in 0.05 come back so."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {"grams": rng.integers(100, 200, 90) * 25, "price": (rng.integers(1, 99, 90) * 0.05).round(2), "x": rng.random(90)}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    given = experiment(tmp_path / "t.parquet", "rows", data={"features": None})
    schema = prepare_for(given).schema
    made = schema.table(rng.normal(size=(500, schema.num_outputs)), np.zeros((500, 0)), 0)  # type: ignore[attr-defined]
    assert not (made["grams"].to_numpy() % 25).any()
    assert np.allclose(made["price"].to_numpy() * 20, (made["price"].to_numpy() * 20).round())
    assert len(np.unique(made["x"].to_numpy())) > 450


def test_where_gives_what_was_asked_for(tmp_path: Path) -> None:
    """A condition is given, other columns are drawn until they fit; the rest stays what it was for that seed."""
    model = untrained("rows", tmp_path)
    made = model.generate(rows=300, seed=1, where={"kind": "b", "colour": "green"})
    assert set(made["kind"].to_pylist()) == {"b"}
    assert set(made["colour"].to_pylist()) == {"green"}
    free = model.generate(rows=3000, seed=1)["kind"].to_pylist()
    real = pq.read_table(tmp_path / "rows.parquet")["kind"].to_pylist()
    for kind in "abc":
        assert free.count(kind) / 3000 == pytest.approx(real.count(kind) / len(real), abs=0.1)
    for where, words in (
        ({"kind": "z"}, "training rows have c, a, b"),
        ({"count": "1000"}, "training rows have"),
        ({"sort": "a"}, "no column"),
    ):
        with pytest.raises(UserError, match=words):
            model.generate(rows=3, where=where)


def test_images_are_png_files_of_their_size(tmp_path: Path) -> None:
    from seekray.images import contact_sheet, write_images

    model = untrained("images", tmp_path)
    made = model.generate(rows=5, where={"label": "red"})
    assert set(made["label"].to_pylist()) == {"red"}
    for data in made["image"].to_pylist():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size, image.mode) == ("PNG", (7, 9), "RGB")
    assert write_images([made], tmp_path / "out") == 5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *(f"{i:06d}.png" for i in range(5)), "contact_sheet.png", "rows.csv",
    ]  # fmt: skip
    sheet = Image.open(io.BytesIO(contact_sheet(made["image"].to_pylist())))
    assert sheet.size == (2 * (7 * 7 + 2), 3 * (9 * 7 + 2))


def test_texts_are_of_the_alphabet(tmp_path: Path) -> None:
    model = untrained("texts", tmp_path)
    made = model.generate(rows=200, where={"length": 7})
    alphabet = set("".join((tmp_path / "names.csv").read_text().split("\n")[1:]))
    assert set("".join(made["name"].to_pylist())) <= alphabet
    assert max(map(len, made["name"].to_pylist())) <= 8
    assert set(made["length"].to_pylist()) == {7}


def test_learns_two_modes_and_a_proportion(tmp_path: Path) -> None:
    """In a few seconds: a number with two modes, whose sign a category follows, and a category of one in five."""
    rng, rows = np.random.default_rng(0), 400
    side = rng.choice([-1, 1], rows)
    table = pa.table({
        "x": (side * 5 + rng.normal(size=rows)).round(3),
        "sign": np.where(side > 0, "plus", "minus"),
        "rare": np.where(rng.random(rows) < 0.2, "yes", "no"),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    given = experiment(
        tmp_path / "t.parquet", "rows", data={"features": None, "split": {"validation": 0}},
        training={"epochs": 50, "batch_size": 50, "lr": 3e-3, "ema": 0.99, "optimizer": "adam", "weight_decay": 0},
        model={"hidden_size": 32, "latent_size": 8},
    )  # fmt: skip
    prepared = prepare_for(given)
    last = run_here(given, prepared, tmp_path / "run")
    info = {"name": "t", "family": "gen", "task": "rows", "model": given.as_json()["model"]}
    made = open_model(info, prepared.schema, last.group("best")).generate(rows=4000)  # type: ignore[union-attr]
    x, plus = made["x"].to_numpy(), np.array(made["sign"].to_pylist()) == "plus"
    assert (np.abs(x) < 2).mean() < 0.1  # between the modes
    assert ((x > 0) == plus).mean() > 0.85
    assert 0.35 < plus.mean() < 0.65
    assert 0.1 < made["rare"].to_pylist().count("yes") / 4000 < 0.32


# ---- watched


def test_collapse_is_said_in_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    real, scores = torch.randn(200, 5), torch.randn(200)
    same = figures(real, torch.randn(200, 5), scores, scores)
    assert same["diversity"] == pytest.approx(1, abs=0.05)
    assert same["nearest"] == pytest.approx(1, abs=0.1)
    assert same["energy_distance"] < 0.05
    collapsed = figures(real, torch.ones(200, 5) + 0.01 * torch.randn(200, 5), scores + 9, scores - 9)
    assert collapsed["diversity"] < 0.1
    assert collapsed["discriminator_accuracy"] == 1
    assert collapsed["energy_distance"] > 1
    copies = figures(real, real + 0.001, scores, scores)
    assert copies["nearest"] < 0.1
    told = ["\n".join(remarks([{}, {f"validation_{k}": v for k, v in f.items()}])) for f in (same, collapsed, copies)]
    assert not told[0]
    assert "collapsed" in told[1]
    assert "discriminator tells 100%" in told[1]
    assert "copies" in told[2]


def test_a_run_leaves_sheets_and_remarks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given, prepared = make("images", tmp_path, training={"epochs": 2, "checkpoints": {"min_interval": 0}})
    with caplog.at_level(logging.WARNING):
        run_here(given, prepared, tmp_path / "run")
    sheets = sorted((tmp_path / "run" / "samples").iterdir())
    assert [s.name for s in sheets] == ["epoch_0001.png", "epoch_0002.png"]
    assert Image.open(sheets[0]).size[0] > 70
    given, prepared = make("rows", tmp_path, training={"epochs": 1})
    run_here(given, prepared, tmp_path / "rows")
    (sheet,) = (tmp_path / "rows" / "samples").iterdir()
    assert len([json.loads(line) for line in sheet.read_text().splitlines()]) == 20


def test_contradictions_are_refused(tmp_path: Path) -> None:
    source = write_table(tmp_path / "t.csv")
    for parts, words in (
        ({"data": {"target": "kind"}}, "data.target"),
        ({"model": {"condition": "kind"}}, "data.features"),
        ({"model": {"loss": "hinge", "label_smoothing": 0.1}}, "label_smoothing"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment(source, "rows", **parts)
