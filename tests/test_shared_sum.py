"""Ranks of one machine sum through shared memory: in the order of ranks, and never past a dead peer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import forked


def _said(out: Path, world: int) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for rank in range(world) if (file := out / f"{rank}.json").exists()]


@pytest.mark.parametrize("world", [2, 3])
def test_sums_of_several_sizes_are_those_of_the_ranks_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """Bit by bit on each rank, at uneven paces, in two precisions; and no file is left."""
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    forked([{"kind": "shared", "world": world, "out": str(tmp_path)}])
    said = _said(tmp_path, world)
    assert said == [{"gradient": [sum(range(1, world + 1))] * 3, "shared": True, "turns": 200, "wrong": 0}] * world
    assert not list((tmp_path / "t").glob("seekray*"))


def test_ranks_that_cannot_meet_use_the_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a folder whose name is too long for a socket; on two machines, one that the other does not have."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    forked([{"kind": "shared", "world": 2, "out": str(tmp_path)}])
    assert _said(tmp_path, 2) == [{"gradient": [3.0] * 3, "shared": False}] * 2
    assert not list(long.glob("seekray*"))


def test_a_killed_rank_is_an_error_on_the_others(tmp_path: Path) -> None:
    forked([{"kind": "shared", "world": 3, "out": str(tmp_path), "lost": True}])
    said = _said(tmp_path, 3)
    assert len(said) == 2
    for rank in said:
        assert 101 <= rank["turns"] <= 102
        assert rank["wrong"] == 0
        assert "gone" in rank["error"] or "Broken pipe" in rank["error"] or "reset" in rank["error"]
