"""Checkpoints: whole or not there, checked, few, and enough to go on from bit by bit."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from training_kit import Listen, experiment, run_here, same, same_history, write_table

from seekray.checkpoint import Checkpoint, Checkpoints, load_optimizer, optimizer_state
from seekray.config import Training
from seekray.errors import CorruptError, FullError
from seekray.models.optimizers import make_optimizer
from seekray.storage import Storage
from seekray.tracking.spool import Spool

KIT = Path(__file__).parent / "models" / "kit"


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def _some(step: int) -> Checkpoint:
    return Checkpoint({"step": step}, {"weights/a": torch.full((3,), float(step)), "best/a": torch.ones(2)})


def _folder(run: Storage, step: int) -> Path:
    return Path(run.path(f"checkpoints/step_{step:08d}"))


def test_round_trip_keeps_every_bit(run: Storage) -> None:
    tied = torch.randn(4)
    tensors = {
        "a": torch.tensor([0.1, float("-inf"), 1e-45]), "b": torch.randn(3, dtype=torch.float64), "c": torch.tensor(7),
        "d": torch.randn(4, 4).T, "e": torch.randn(2).bfloat16(), "f": torch.get_rng_state(), "g": tied, "h": tied[1:],
    }  # fmt: skip
    Checkpoints(run).save(3, Checkpoint({"x": 0.1, "best": float("-inf")}, tensors))
    back = Checkpoints(run).load(3)
    assert back.state == {"x": 0.1, "best": float("-inf")}
    assert back.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert back.tensors[key].dtype == tensor.dtype
        assert torch.equal(back.tensors[key], tensor)


def test_manifest_has_the_sha256_of_each_file_and_nothing_is_pickled(run: Storage) -> None:
    Checkpoints(run).save(1, _some(1))
    folder = _folder(run, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("state.json", "tensors.safetensors")
    }
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "state.json", "tensors.safetensors"}
    json.loads((folder / "state.json").read_text())
    with safe_open(folder / "tensors.safetensors", "pt") as file:
        assert set(file.keys()) == {"weights/a", "best/a"}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_newest_are_kept(run: Storage, keep: int) -> None:
    checkpoints = Checkpoints(run, keep)
    for step in range(5):
        checkpoints.save(step, _some(step))
    assert checkpoints.steps() == list(range(5))[-keep:]
    assert run.list("checkpoints") == [f"step_{s:08d}" for s in checkpoints.steps()]


def test_saving_the_same_step_again_replaces_it(run: Storage) -> None:
    Checkpoints(run).save(1, _some(1))
    Checkpoints(run).save(1, _some(9))
    assert Checkpoints(run).load(1).state == {"step": 9}


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_corrupt_one_is_passed_over_with_a_warning(
    run: Storage, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    for step in (1, 2):
        Checkpoints(run).save(step, _some(step))
    path = _folder(run, 2) / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        latest = Checkpoints(run).latest()
    assert latest is not None
    assert latest.state == {"step": 1}
    if file == "manifest.json" and damage == "remove":
        assert not caplog.records  # not corrupt: never finished
    else:
        assert "going on from the one before" in caplog.text
        with pytest.raises(CorruptError):
            Checkpoints(run).load(2)


def test_all_corrupt_is_nothing(run: Storage) -> None:
    Checkpoints(run).save(1, _some(1))
    (_folder(run, 1) / "state.json").write_text("{}")
    assert Checkpoints(run).latest() is None


def test_a_torn_write_does_not_displace_a_whole_one(run: Storage) -> None:
    checkpoints = Checkpoints(run, keep=2)
    checkpoints.save(1, _some(1))
    for step in (2, 3):  # two tries that died before their manifest
        _folder(run, step).mkdir(parents=True)
        (_folder(run, step) / "state.json").write_text("{")
    checkpoints.save(4, _some(4))
    assert checkpoints.steps() == [1, 4]
    assert run.list("checkpoints") == ["step_00000001", "step_00000004"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("fused", [False, True])
def test_optimizers_go_on_exactly(kind: Any, fused: bool) -> None:
    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for i in range(count):
            model(torch.ones(2, 3) * (i + 1)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    options = {"lr": 0.01, "fused": fused} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), **options)
    step(model, optimizer, 2)
    groups, tensors = json.loads(json.dumps(optimizer_state(optimizer)[0])), optimizer_state(optimizer)[1]
    tensors = {k: v.clone() for k, v in tensors.items()}
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    step(model, optimizer, 3)
    copy = kind(other.parameters(), **options | {"lr": 5.0})
    load_optimizer(copy, groups, tensors)
    step(other, copy, 3)
    assert torch.equal(model.weight, other.weight)


def test_an_optimizer_goes_on_with_another_weight_decay() -> None:
    """Groups are divided otherwise without one; the state is found again all the same."""
    model = torch.nn.Linear(3, 2)
    none, some = (make_optimizer(model, Training(batch_size=2, epochs=1, weight_decay=w)) for w in (0, 0.1))
    model(torch.ones(2, 3)).sum().backward()
    none.step()
    load_optimizer(some, *optimizer_state(none))
    assert [len(o.param_groups) for o in (none, some)] == [1, 2]
    for parameter in model.parameters():
        assert torch.equal(some.state[parameter]["exp_avg"], none.state[parameter]["exp_avg"])
    assert [g["weight_decay"] for g in some.param_groups] == [0.1, 0]


def test_killed_at_any_moment_it_can_go_on(tmp_path: Path) -> None:
    """`kill -9` while checkpoints are written, many times over; the end is that of an undisturbed run."""
    source = write_table(tmp_path / "table.csv", rows=300)
    given = experiment(
        source, model={"hidden_size": [300, 300], "dropout": 0.1},
        training={"epochs": 16, "batch_size": 32, "checkpoints": {"every_steps": 1, "keep": 2}, "ema": 0.9,
                  "schedule": {"kind": "one-cycle"}},
    )  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(given.as_json()))
    trials = 14
    command = [sys.executable, str(KIT / "kills.py"), str(tmp_path / "e.json"), str(tmp_path / "killed"), str(trials), "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    found = json.loads(done.stdout)
    assert found["status"] == 0
    assert found["steps"] == sorted(found["steps"])
    assert found["torn"] + found["partial"] >= 1, "the kills did not hit a write; the test shows nothing"
    listen = Listen()
    undisturbed = run_here(given, None, tmp_path / "whole", listen)
    killed = Checkpoints(Storage(str(tmp_path / "killed"))).latest()
    assert killed is not None
    same(undisturbed, killed)
    same_history(undisturbed, killed)
    told = [p for e in Spool(Storage(str(tmp_path / "killed"))).events() if e["kind"] == "points" for p in e["points"]]
    for key in ("loss", "lr", "validation_loss"):
        steps = [p["step"] for p in told if p["key"] == key]
        assert len(steps) == len(set(steps)), f"{key} was told twice"
        assert {p["step"]: p["value"] for p in told if p["key"] == key} == listen.series(key)


def test_a_full_disk_leaves_what_was_whole(tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        storage = Storage(str(place))
        storage.write_bytes("a/x.bin", b"1" * 30_000)
        for name in ("a/x.bin", "a/y.bin"):
            with pytest.raises(FullError, match=f"No space left on device: .*{name} could not be written; make room"):
                storage.write_bytes(name, b"2" * 90_000)
        assert storage.read_bytes("a/x.bin") == b"1" * 30_000
        assert [p.name for p in (place / "a").iterdir()] == ["x.bin"]
        storage.write_bytes("a/y.bin", b"3" * 20_000)
    finally:
        subprocess.run(["umount", place], check=True)
