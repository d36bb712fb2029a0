"""`seekray tune` as it is typed: a table on a terminal, a kill, and on again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
import yaml
from training_kit import experiment, write_table

from seekray.checkpoint import Checkpoints
from seekray.settings import settings
from seekray.storage import Storage
from seekray.tuner.journal import Journal

SEEKRAY = str(Path(sys.executable).with_name("seekray"))
KIT = str(Path(__file__).parents[1] / "models" / "kit")


@pytest.mark.e2e
@pytest.mark.ray
@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(home: Path, tmp_path: Path) -> None:
    given = experiment(
        write_table(tmp_path / "table.csv"), family="odd_families:Slow", resources={"workers": 1},
        training={"epochs": 12, "batch_size": 8, "checkpoints": {"every_steps": 4}},
        tune={"trials": 4, "searcher": "random", "scheduler": "none", "space": {"training.lr": {"loguniform": [1e-3, 1e-1]}}},
    )  # fmt: skip
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(given.as_json()))
    path = os.pathsep.join(p for p in (KIT, os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "PYTHONPATH": path}
    terminal = pexpect.spawn(SEEKRAY, ["tune", str(file)], env=environment, encoding="utf-8", dimensions=(40, 160), timeout=120)
    terminal.expect(r"[12] of 4 done, [12] running, best loss \S+ \(trial [01]\), ETA \d+:\d\d")
    terminal.expect(r"\s(\d)\s+running\s+[1-9]/12")  # its first epochs are behind it
    begun = int(terminal.match[1])
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.expect(pexpect.EOF)
    runs = Storage(settings().storage).child("runs")
    (search_id,) = [r for r in runs.list() if not re.search(r"-t\d{3}$", r)]
    before = Journal(runs.child(search_id)).trials
    ended = {n for n, entry in before.items() if entry.ended}
    last = Checkpoints(runs.child(before[begun].run_id)).latest()
    assert last is not None
    assert last.state["step"] > 0

    done = subprocess.run(
        [SEEKRAY, "tune", "--resume", search_id, "--json"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [t["status"] for t in found["trials"]] == ["finished"] * 4
    assert {n for n, entry in Journal(runs.child(search_id)).trials.items() if entry == before.get(n)} >= ended
    for number in ended:
        assert f"trial {number}:" not in done.stderr.split("all trials are done")[0], "it is not run again"
    assert "\x1b" not in done.stderr
    assert "trial" in done.stderr
