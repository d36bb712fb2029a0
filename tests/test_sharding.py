"""Sharded training: two ranks compute what one does with half of the weights each, and any number goes on from it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES
from ranks import forked
from safetensors import safe_open
from training_kit import Listen, run_here, same, same_history

from seekray.checkpoint import Checkpoint, Checkpoints, rows_of
from seekray.config import Experiment
from seekray.errors import CorruptError
from seekray.generator import load_model
from seekray.report import conclude
from seekray.storage import Storage
from seekray.tracking.spool import Tracker

STEPS = 20
TRAINING: dict[str, Any] = {
    "max_steps": STEPS, "epochs": None, "batch_size": 8, "precision": "fp32", "clip_norm": 0.2, "lr": 0.01, "ema": 0.9,
    "checkpoints": {"every_steps": 5, "keep": 10},
}  # fmt: skip
IN_PARTS: dict[str, Any] = {"training": {"accumulate": 2}, "model": {"checkpointing": True}}
SGD: dict[str, Any] = {"training": {"optimizer": "sgd", "momentum": 0.9, "ema": None, "max_steps": 8, "precision": "fp64"}}
SHARDED = {"workers": 2, "shard": True}
WIDE: dict[str, Any] = {"model": {"hidden_size": 64, "num_heads": 4}, "training": {"ema": None}}


def given(folder: Path, workers: int, task: str = "pretrain", *changes: dict[str, Any]) -> Experiment:
    """A small language model; cut over that many workers, or with 0 of them whole."""
    shape = {"model": {"dropout": 0.0, "hidden_size": 20, "num_layers": 2}}  # 20 rows are 7, 7 and 6 for three
    resources = {"resources": {"workers": workers, "shard": workers > 0}}
    return CASES["lm", task].experiment("lm", task, folder, shape, {"training": TRAINING}, resources, *changes)


def job(experiment: Experiment, folder: Path, **more: Any) -> dict[str, Any]:
    """A run for `forked`."""
    base = {"kind": "run", "experiment": experiment.as_json(), "folder": str(folder)}
    return base | {"world": experiment.resources.span[0]} | more


def last_of(folder: Path) -> Checkpoint:
    """The newest checkpoint."""
    found = Checkpoints(Storage(str(folder))).latest()
    assert found is not None
    return found


def until(folder: Path, step: int, copy: Path) -> Path:
    """A copy of a run that has come to a step."""
    shutil.copytree(folder, copy)
    for later in (copy / "checkpoints").iterdir():
        if int(later.name[5:]) > step:
            shutil.rmtree(later)
    return copy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 1 (whole) and of 2 ranks, and what went on from those: `2-1` from 2 ranks' step 15 by one process."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "held").mkdir()
    ears = Listen()
    run_here(given(folder, 0), None, folder / "1", ears)
    (folder / "losses.json").write_text(json.dumps(ears.series("loss")))
    two = given(folder, 2, "pretrain", IN_PARTS)
    forked([
        job(two, folder / "2"), job(two, folder / "lost", lost_at=15),
        job(given(folder, 2, "classify", SGD), folder / "classify"),
        {"kind": "held", "experiment": given(folder, 2, "pretrain", WIDE).as_json(), "world": 2, "out": str(folder / "held")},
    ])  # fmt: skip
    shutil.copytree(folder / "lost", folder / "found")
    for name, start in (("2-2", "2"), ("2-1", "2"), ("2-3", "2"), ("1-2", "1")):
        until(folder / start, 15, folder / name)
    forked([
        job(two, folder / "2-2"), job(two, folder / "1-2"), job(two, folder / "found"), job(given(folder, 3), folder / "2-3"),
    ])  # fmt: skip
    run_here(given(folder, 0), None, folder / "2-1")
    return folder


def losses(checkpoint: Checkpoint, key: str = "loss") -> dict[int, float]:
    """Of each step that the run told lately."""
    return {p["step"]: p["value"] for p in checkpoint.state["told"] if p["key"] == key}


def test_losses_are_those_of_one_worker(runs: Path) -> None:
    """With accumulation, clipping, recomputed activations and an average, beside none of the first and third."""
    one = {int(k): v for k, v in json.loads((runs / "losses.json").read_text()).items()}
    two = losses(last_of(runs / "2"))
    assert len(two) == STEPS
    assert two.keys() == one.keys()
    assert max(abs(one[s] - two[s]) for s in one) <= 1e-5
    alone = last_of(runs / "1")
    norms = losses(alone, "grad_norm")
    assert max(norms.values()) > TRAINING["clip_norm"], "nothing was clipped; the test shows less than it says"
    assert losses(last_of(runs / "2"), "grad_norm") == pytest.approx(norms, rel=1e-3)
    for group in ("weights/", "average/", "best/", "optimizer/"):
        same(alone, last_of(runs / "2"), group, tolerance=2e-4)
    same_history(alone, last_of(runs / "2"), tolerance=1e-4)


def test_they_begin_with_the_same_bits(runs: Path) -> None:
    begun = [Checkpoints(Storage(str(runs / name))).load(0).group("weights") for name in ("1", "2")]
    assert all(found.keys() == begun[0].keys() for found in begun)
    assert all(torch.equal(value, found[key]) for found in begun for key, value in begun[0].items())


def test_each_rank_holds_about_half(runs: Path, tmp_path: Path) -> None:
    """Of all memory that tensors take: weights and, after steps, optimizer state; nothing stays gathered."""
    one = run_here(given(runs, 0, "pretrain", WIDE, {"training": {"max_steps": 1}}), None, tmp_path)
    weights = sum(v.nbytes for v in one.group("weights").values())
    moments = sum(v.nbytes for v in one.group("optimizer/lm").values())
    for rank in range(2):
        held = json.loads((runs / "held" / f"{rank}.json").read_text())
        assert held["built"] == (0 if rank else weights), "rank 0 alone has ever held all weights"
        assert held["start"] == pytest.approx(weights / 2, rel=0.1)
        assert held["steps"] == pytest.approx((weights + moments) / 2, rel=0.1)
        assert held["validation"] == pytest.approx(held["steps"], rel=0.02)


def test_each_rank_writes_its_rows(runs: Path) -> None:
    folder = runs / "2-3" / "checkpoints" / f"step_{STEPS:08d}"
    names = [f"tensors-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"].keys() == {*names, "state.json"}
    assert {p.name for p in folder.iterdir()} == {*names, "state.json", "manifest.json"}
    index = json.loads((folder / "state.json").read_text())["shards"]
    norm = "weights/lm/norm.weight"
    assert index[norm] == {"shape": [20], "rows": [7, 7, 6]}
    assert {k.split("/")[0] for k in index} == {"weights", "average", "best", "optimizer"}
    whole = last_of(runs / "2-3").tensors
    for rank, name in enumerate(names):
        with safe_open(folder / name, "pt") as file:
            for key, entry in index.items():
                start = sum(entry["rows"][:rank])
                assert list(whole[key].shape) == entry["shape"]
                assert torch.equal(file.get_tensor(key), whole[key][start : start + entry["rows"][rank]])


@pytest.mark.parametrize("world", [1, 2, 5])
def test_rows_are_read_by_any_number(runs: Path, world: int) -> None:
    checkpoints = Checkpoints(Storage(str(runs / "2-3")))
    whole = checkpoints.load(STEPS).tensors
    parts = [checkpoints.load(STEPS, rank, world) for rank in range(world)]
    for key in json.loads((runs / "2-3" / "checkpoints" / f"step_{STEPS:08d}" / "state.json").read_text())["shards"]:
        assert [len(p.tensors[key]) for p in parts] == [len(c) for c in whole[key].chunk(world)] + [0] * (
            world - len(whole[key].chunk(world))
        )
        assert torch.equal(torch.cat([p.tensors[key] for p in parts]), whole[key])


def test_as_many_ranks_go_on_bit_by_bit(runs: Path) -> None:
    same(last_of(runs / "2"), last_of(runs / "2-2"))
    same_history(last_of(runs / "2"), last_of(runs / "2-2"))
    assert {s: v for s, v in losses(last_of(runs / "2")).items() if s > 15} == {
        s: v for s, v in losses(last_of(runs / "2-2")).items() if s > 10
    }


@pytest.mark.parametrize("name", ["2-1", "2-3", "1-2"])
def test_another_number_of_workers_goes_on(runs: Path, name: str) -> None:
    """Sharded to whole, to more ranks, and whole to sharded; without dropout, so that equal means equal."""
    on, one = last_of(runs / name), last_of(runs / "1")
    assert on.state["world_size"] == int(name[2])
    assert on.state["step"] == STEPS
    found, expected = losses(on), json.loads((runs / "losses.json").read_text())
    assert max(abs(expected[str(s)] - found[s]) for s in range(16, STEPS + 1)) <= 1e-5
    same(one, on, "weights/", tolerance=2e-4)


def test_a_rank_killed_while_writing_leaves_the_checkpoint_before(runs: Path) -> None:
    """Rank 0's file is there, no manifest is; going on from the one before ends where the undisturbed run ended."""
    lost = runs / "lost" / "checkpoints"
    assert (lost / "step_00000015").exists()
    assert not (lost / "step_00000015" / "manifest.json").exists()
    assert last_of(runs / "lost").state["step"] == 10
    same(last_of(runs / "2"), last_of(runs / "found"))


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_corrupt_shard_is_named_and_passed_over(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    copy = until(runs / "2", STEPS, tmp_path / "copy")
    path = copy / "checkpoints" / f"step_{STEPS:08d}" / "tensors-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data) if damage == "flip" else path.unlink()
    with pytest.raises(CorruptError, match=r"tensors-00002-of-00002\.safetensors"):
        Checkpoints(Storage(str(copy))).load(STEPS)
    with caplog.at_level(logging.WARNING):
        assert last_of(copy).state["step"] == 15
    assert "tensors-00002-of-00002.safetensors" in caplog.text


def test_the_bundle_is_that_of_one_worker(runs: Path) -> None:
    bundles = {}
    for name in ("1", "2"):
        experiment = given(runs, 0)
        run = Storage(str(runs / name))
        done = conclude(experiment, "0" * 12, run, experiment.prepare(), last_of(runs / name), Tracker(run, "t"))
        bundles[name] = load_model(runs / name / done.bundle)
    one, two = (bundles[name].modules["lm"].state_dict() for name in ("1", "2"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[k], two[k], rtol=0, atol=2e-4) for k in one)
    best = last_of(runs / "2").group("best")
    assert all(torch.equal(v, best[f"lm/{k}"]) for k, v in two.items())


def test_classifiers_are_cut_too(runs: Path, tmp_path: Path) -> None:
    """Two modules, another optimizer, and texts of unequal lengths, to the rounding of doubles."""
    one, two = run_here(given(runs, 0, "classify", SGD), None, tmp_path), last_of(runs / "classify")
    for group in ("weights/", "best/", "optimizer/"):
        same(one, two, group, tolerance=1e-12)
    same_history(one, two, tolerance=1e-12)


@pytest.mark.parametrize(
    ("family", "parts", "words"),
    [
        ("lm", {"resources": {"workers": 1, "shard": True}}, "resources.workers is 1; give 2 or more"),
        ("lm", {"resources": {"workers": [1, 3], "shard": True}}, "give 2 or more"),
        ("net", {"resources": SHARDED}, "family net does not say how its weights are cut"),
        ("lm", {"resources": SHARDED, "training": {"compile": True}}, "do not go together"),
        ("lm", {"resources": SHARDED, "training": {"fused": True, "optimizer": "sgd"}}, "no fused sgd"),
    ],
)
def test_what_cannot_be_cut_is_refused(family: str, parts: dict[str, Any], words: str) -> None:
    task = "pretrain" if family == "lm" else "classification"
    data = {"source": "x.csv"} | ({"target": "y"} if family == "net" else {})
    with pytest.raises(ValueError, match=words):
        Experiment.model_validate({"name": "t", "family": family, "task": task, "data": data} | parts)


def test_rows_are_cut_as_torch_cuts() -> None:
    for rows in range(1, 20):
        for world in range(1, 8):
            chunks = [len(c) for c in torch.empty(rows, 2).chunk(world)]
            assert rows_of(rows, world) == chunks + [0] * (world - len(chunks))
