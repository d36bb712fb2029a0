"""A whole training: what is printed, what Ctrl-C leaves, how it goes on, how it fails."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest
import yaml
from training_kit import Listen, experiment, run_here, same, same_history, write_table

from seekray import trainer
from seekray.checkpoint import Checkpoints
from seekray.config import Experiment
from seekray.errors import ConfigError, DataError, DivergedError, ModelNotFoundError
from seekray.experiment_file import with_values
from seekray.progress import Progress, line
from seekray.settings import settings
from seekray.tracking.spool import Spool, state

SEEKRAY = str(Path(sys.executable).with_name("seekray"))
KIT = str(Path(__file__).parent / "models" / "kit")


def _file(folder: Path, given: Experiment) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(given.as_json()))
    return path


def _only_run() -> Any:
    runs = trainer.runs_storage(None, settings())
    (run_id,) = runs.list()
    return runs.child(run_id)


def _alive(processes: list[psutil.Process], patience: float) -> list[str]:
    """Those that are still there after some seconds."""
    gone_by = time.monotonic() + patience
    while True:
        found = []
        for process in processes:
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline())[:200])
            except psutil.NoSuchProcess:
                pass
        if not found or time.monotonic() > gone_by:
            return found
        time.sleep(0.1)


# ---- progress


def test_a_line_of_progress() -> None:
    state = {"step": 20, "total_steps": 90, "epoch": 2, "epochs": 9, "finished": False, "loss": 0.25}
    state |= {"validation_loss": 0.3, "validation_accuracy": 0.9, "rows_per_second": 12345.6}
    shown = line(state, began=100.0, began_step=10, now=110.0)
    assert shown == "epoch 3/9  step 20/90  loss 0.25  val accuracy 0.9  12,346 rows/s  ETA 1:10"


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    clock = [0.0]
    monkeypatch.setattr("seekray.progress.time.monotonic", lambda: clock[0])
    progress = Progress(stream)
    for step in range(1, 101):
        clock[0] = step * 0.2
        progress.update({"step": step, "total_steps": 100, "epoch": 0, "epochs": 1, "finished": step == 100})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 4 <= len(lines) <= 6  # in 20 s, and the last
    assert "step 100/100" in lines[-1]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


# ---- the command


@pytest.mark.e2e
@pytest.mark.ray
def test_ctrl_c_on_a_terminal_and_on_again(home: Path, tmp_path: Path) -> None:
    """`train` with a Ray of its own under a terminal, interrupted, gone on with elsewhere: as if nothing had happened."""
    source = write_table(tmp_path / "table.csv")
    given = experiment(
        source, family="odd_families:Slow", model={"dropout": 0.2}, resources={"workers": 1},
        training={"epochs": 12, "batch_size": 8, "checkpoints": {"every_steps": 4}},
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": KIT}
    terminal = pexpect.spawn(
        SEEKRAY, ["train", str(_file(tmp_path, given))], env=environment, encoding="utf-8", dimensions=(40, 160), timeout=90
    )
    terminal.expect(r"━.*step 2\d/108")  # a bar, some way into the run
    family = psutil.Process(terminal.pid).children(recursive=True)
    assert len(family) > 3
    began = time.monotonic()
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    seconds = time.monotonic() - began
    terminal.close()
    assert terminal.exitstatus == 130, terminal.before
    assert seconds < 20  # the tracking server is told of the end; a few seconds on an idle machine
    assert not _alive(family, 5)
    run = _only_run()
    run_id = run.uri.rsplit("/", 1)[-1]
    assert f"go on with: seekray train --resume {run_id}" in terminal.before
    assert state(run)["status"] == "killed"
    last = Checkpoints(run).latest()
    assert last is not None
    assert 20 <= last.state["step"] < 108

    elsewhere = with_values(trainer.load_run(run_id, settings()), {"resources.workers": 0})
    result = trainer.train(elsewhere, settings(), resume=run_id)
    assert result.run_id == run_id
    assert state(run)["status"] == "finished"
    whole = Listen()
    undisturbed = run_here(given, None, tmp_path / "whole", whole)
    resumed = Checkpoints(run).latest()
    assert resumed is not None
    same(undisturbed, resumed)
    same_history(undisturbed, resumed)
    told = [p for e in Spool(run).events() if e["kind"] == "points" for p in e["points"]]
    for key in ("loss", "validation_loss", "lr"):
        steps = [p["step"] for p in told if p["key"] == key]
        assert len(steps) == len(set(steps)), f"{key} was told twice"
        assert {p["step"]: p["value"] for p in told if p["key"] == key} == whole.series(key)

    write_table(source, seed=1)
    with pytest.raises(DataError, match="has changed since the run began"):
        trainer.train(trainer.load_run(run_id, settings()), settings(), resume=run_id)


@pytest.mark.e2e
@pytest.mark.ray
def test_a_training_prints_little_on_a_terminal(home: Path, tmp_path: Path) -> None:
    given = experiment(write_table(tmp_path / "table.csv"), resources={"workers": 2, "cpus_per_worker": 0.5}, register="t")
    output = pexpect.run(
        f"{SEEKRAY} train {_file(tmp_path, given)}", encoding="utf-8", dimensions=(40, 300), timeout=120, withexitstatus=True
    )
    text, code = output
    assert code == 0, text
    shown = re.sub(r"[^\n]*\r(?!\n)", "", text)  # what a bar has overwritten
    assert len(shown.splitlines()) <= 40, shown
    assert "model   t/1" in shown
    assert "ray" not in re.sub(r"Ray Train worker|seekray|/\S+", "", shown).lower()


@pytest.mark.e2e
def test_without_a_terminal_there_is_one_document_and_plain_lines(home: Path, tmp_path: Path) -> None:
    given = experiment(write_table(tmp_path / "table.csv"))
    done = subprocess.run(
        [SEEKRAY, "train", str(_file(tmp_path, given)), "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"run_id", "bundle", "model", "version", "metrics"}
    assert Path(found["bundle"], "manifest.json").exists()
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert "step 15/15" in done.stderr
    assert len(done.stderr.splitlines()) <= 40


# ---- failures


@pytest.mark.e2e
def test_a_run_that_diverges_is_marked_failed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = experiment(
        write_table(tmp_path / "table.csv"),
        "regression",
        training={"optimizer": "sgd", "lr": 1e30, "max_steps": 9, "epochs": None},
    )
    with pytest.raises(DivergedError) as caught:
        trainer.train(given, settings(), progress=Progress())
    assert caught.value.exit_code == 1
    run = _only_run()
    found = state(run)
    assert found["status"] == "failed"
    assert "rows of the batch" in found["message"]
    assert Checkpoints(run).latest() is not None
    shown = capsys.readouterr().err
    assert f"run {found['run_id']} failed; its log: " in shown
    assert "Traceback" not in shown
    assert Path(re.findall(r"its log: (\S+)", shown)[0]).exists()


def test_an_unknown_run_is_not_resumed(home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="'no-such' is not under"):
        trainer.load_run("no-such", settings())


def test_contradictions_that_show_only_with_the_data(home: Path, tmp_path: Path) -> None:
    source = write_table(tmp_path / "table.csv", rows=14)
    given = experiment(source, resources={"workers": 12})
    with pytest.raises(ConfigError, match=r"12 for \d+ training rows"):
        trainer.train(given, settings())
