"""An elastic run takes a node that joins, and goes on without one that dies, on a real cluster."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from training_kit import Listen, experiment, run_here, same, same_history, write_table

from seekray.checkpoint import Checkpoints
from seekray.storage import Storage

KIT = Path(__file__).parents[1] / "models/kit"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.e2e
def test_a_run_grows_and_shrinks_with_the_cluster(tmp_path: Path) -> None:
    """One worker, two, one again; then equal to a run in one process: each row once, each point once."""
    source = write_table(tmp_path / "table.csv")
    done = subprocess.run(
        [sys.executable, str(KIT / "elastic.py"), str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert [world for world, _ in itertools.groupby(said["worlds"])] == [1, 2, 1]
    assert said["most"] == 1
    training = {"precision": "fp64", "max_steps": 2000, "epochs": None}
    heard = Listen()
    alone = run_here(experiment(source, training=training), None, tmp_path / "alone", heard)
    resized = Checkpoints(Storage(str(tmp_path / "run"))).latest()
    assert resized is not None
    same(alone, resized, "weights/", tolerance=1e-6)
    same_history(alone, resized, tolerance=1e-6)
    assert dict(said["losses"]) == pytest.approx(heard.series("loss"), abs=1e-6)
