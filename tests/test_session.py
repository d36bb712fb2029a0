"""A session: gradients of parts and ranks, clipping, the stop at a NaN, precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import forked
from torch import Tensor, nn
from training_kit import Listen

from seekray.config import Training
from seekray.data.batches import Batch
from seekray.errors import DivergedError
from seekray.session import Session
from seekray.storage import Storage


def _session(tmp_path: Path, **training: Any) -> Session:
    return Session(Training(**training), Storage(str(tmp_path)), listener=Listen())


def _batch(rows: Tensor, of: int, last: bool) -> Batch:
    return Batch(inputs={"dense": rows[:, None].float()}, targets=None, rows=rows, global_rows=of, last=last)


def _backward(session: Session, model: nn.Module, batch: Batch) -> bool:
    session.begin(batch)
    return session.backward(model(batch.inputs["dense"]).square().sum() / batch.global_rows, [model])


def test_parts_add_up_to_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, rows = nn.Linear(1, 2), torch.arange(7)
    session = _session(tmp_path)
    assert _backward(session, model, _batch(rows, 7, True))
    whole = model.weight.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    assert not _backward(session, model, _batch(rows[:3], 7, False))
    assert not _backward(session, model, _batch(rows[3:5], 7, False))
    assert _backward(session, model, _batch(rows[5:], 7, True))
    torch.testing.assert_close(model.weight.grad, whole)


def test_the_gradient_norm_is_clipped_and_kept(tmp_path: Path) -> None:
    model = nn.Linear(1, 2)
    session = _session(tmp_path, clip_norm=0.01)
    _backward(session, model, _batch(torch.arange(100), 1, True))
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()  # type: ignore[union-attr]
    assert float(norm) == pytest.approx(0.01, rel=1e-4)
    assert session.grad_norm is not None
    assert float(session.grad_norm) > 1


@pytest.mark.parametrize("bad", [0, 2])  # in the first part, and in the last
def test_a_nan_in_any_part_stops_before_the_step(tmp_path: Path, bad: int) -> None:
    model, session = nn.Linear(1, 1), _session(tmp_path)
    session.where = lambda: "at step 7 (learning rate 0.5)"
    _backward(session, model, _batch(torch.arange(90, 95), 5, True))
    parts = [_batch(torch.tensor([part, part + 10]), 6, part == 2) for part in range(3)]
    parts[bad].inputs["dense"][1] = float("inf")
    assert not _backward(session, model, parts[0])
    assert not _backward(session, model, parts[1])
    with pytest.raises(DivergedError) as caught:
        _backward(session, model, parts[2])
    assert "at step 7 (learning rate 0.5)" in caught.value.message
    assert "rows of the batch: 0, 1, 2, 10, 11, 12." in caught.value.message  # those of this step, of all parts
    assert "training.lr" in caught.value.message


def test_an_exploding_gradient_stops_too(tmp_path: Path) -> None:
    model, session = nn.Linear(1, 1), _session(tmp_path, clip_norm=1.0)
    model.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(DivergedError):
        _backward(session, model, _batch(torch.arange(3), 3, True))


def test_precisions(tmp_path: Path) -> None:
    assert _session(tmp_path).dtype == torch.float32
    assert _session(tmp_path, precision="fp64").dtype == torch.float64
    bf16 = _session(tmp_path, precision="bf16")
    assert bf16.dtype == torch.float32
    model = nn.Linear(4, 4)
    with bf16.autocast():
        assert model(torch.ones(2, 4)).dtype == torch.bfloat16
    with _session(tmp_path).autocast():
        assert model(torch.ones(2, 4)).dtype == torch.float32


def test_ranks_with_different_numbers_of_rows(tmp_path: Path) -> None:
    forked([{"kind": "session", "world": 3, "out": str(tmp_path)}])
    for rank in range(3):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said == {"gather": [[0, 0], [1, 1], [2, 2]], "sum": [3.0, 3.0], "agree": [True, False]}
