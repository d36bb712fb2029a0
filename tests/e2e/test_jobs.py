"""Jobs on a head of this machine with token authentication: sent, followed, listed, stopped, gone on with."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.two_nodes import BIN, ROOT, Head, one_head, seekray

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with one_head() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the examples."""
    path = tmp_path_factory.mktemp("jobs")
    shutil.copytree(ROOT / "examples", path / "examples")
    (path / ".env").write_text("PASSWORD=psst")
    return path


def submit(head: Head, folder: Path, *arguments: str, file: str = "examples/digits.yaml") -> subprocess.CompletedProcess[str]:
    return seekray("submit", "train", file, "--address", head.address, *arguments, cwd=folder, env=head.environment)


def listed(head: Head, folder: Path) -> list[dict[str, Any]]:
    done = seekray("jobs", "list", "--address", head.address, "--json", cwd=folder, env=head.environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["jobs"]
    return found


@pytest.fixture(scope="module")
def trained(head: Head, folder: Path) -> tuple[dict[str, Any], str]:
    """What a submitted training printed: its document and its log."""
    # Without Ray Train, whose start takes 10 s; tests/e2e/test_two_nodes.py has a job with it.
    sets = ("training.epochs=2", "report.importances=false", "resources.workers=0")
    done = submit(head, folder, *(part for s in sets for part in ("--set", s)), "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout), done.stderr


def test_submit_follows_the_log_and_leaves_a_run_that_sync_registers(
    trained: tuple[dict[str, Any], str], head: Head, folder: Path
) -> None:
    job, followed = trained
    assert (job["status"], job["exit_code"]) == ("SUCCEEDED", 0)
    assert "epoch 2/2" in followed
    (found,) = [j for j in listed(head, folder) if j["job_id"] == job["job_id"]]
    assert found["entrypoint"].startswith("python -m seekray_jobs.train examples/digits.yaml")
    log = seekray("jobs", "logs", job["job_id"], "--address", head.address, cwd=folder, env=head.environment)
    assert "epoch 2/2" in log.stdout
    # This cluster is this machine, so the run lies in the folder's own storage.
    synced = seekray("sync", "--json", cwd=folder, env=head.environment)
    assert "1" in [str(r["version"]) for r in json.loads(synced.stdout)["runs"]], synced.stderr


def test_evaluate_takes_the_bundle_along(trained: tuple[dict[str, Any], str], head: Head, folder: Path) -> None:
    (bundle,) = folder.glob(".seekray/storage/runs/*-digits-*/bundle")
    at = ["--address", head.address]
    done = seekray("submit", "evaluate", str(bundle), "--data", "sample:digits", *at, cwd=folder, env=head.environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert '"balanced_accuracy"' in done.stderr


@pytest.mark.slow
def test_predict_writes_where_all_nodes_see_it(
    trained: tuple[dict[str, Any], str], head: Head, folder: Path, tmp_path: Path
) -> None:
    (bundle,) = folder.glob(".seekray/storage/runs/*-digits-*/bundle")
    env = head.environment | {"SEEKRAY_STORAGE": str(tmp_path)}
    arguments = ["--data", "sample:digits", "--out", str(tmp_path / "answers.csv"), "--address", head.address]
    done = seekray("submit", "predict", str(bundle), *arguments, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 1798


def test_what_the_job_finds_wrong_is_exit_code_2(head: Head, folder: Path) -> None:
    done = submit(head, folder, "--set", "data.target=labl", "--set", "resources.workers=0")
    assert done.returncode == 2, done.stderr[-4000:]
    assert "labl" in done.stderr
    assert "Traceback" not in done.stderr
    assert listed(head, folder)[0]["status"] == "FAILED"


def test_what_is_wrong_before_is_exit_code_2_without_a_job(head: Head, folder: Path) -> None:
    before = len(listed(head, folder))
    (folder / "own.csv").write_text("x,label\n1,a\n")
    for arguments in (["--set", "training.epoch=2"], ["--set", "data.source=own.csv"]):
        assert submit(head, folder, *arguments).returncode == 2
    assert len(listed(head, folder)) == before


@pytest.mark.slow
def test_shipped_data_is_trained_on(head: Head, folder: Path) -> None:
    rows = "".join(f"{i},{i % 7},{3 * i + i % 7}\n" for i in range(200))
    (folder / "line.csv").write_text("a,b,y\n" + rows)
    (folder / "line.yaml").write_text(
        "name: line\ntask: regression\ndata: {source: line.csv, target: y}\n"
        "training: {epochs: 1}\nresources: {workers: 0}\nreport: {importances: false}\n"
    )
    done = submit(head, folder, "--ship-data", file="line.yaml")
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_wrong_token_says_so(head: Head, folder: Path) -> None:
    env = head.environment | {"RAY_AUTH_TOKEN": "0" * 64}
    done = seekray("jobs", "list", "--address", head.address, cwd=folder, env=env)
    assert done.returncode == 1
    assert "does not take the token" in done.stderr


@pytest.mark.slow
def test_a_stopped_job_leaves_a_run_that_goes_on(head: Head, folder: Path) -> None:
    long = [
        "--set",
        "name=long",
        "--set",
        "training.epochs=2000",
        "--set",
        "resources.workers=0",
        "--set",
        "training.checkpoints.min_interval=0",
    ]
    started = submit(head, folder, *long, "--no-wait", "--json")
    job = json.loads(started.stdout)["job_id"]
    storage = folder / ".seekray" / "storage" / "runs"
    before = {p.name for p in storage.glob("*")}
    run = _until(lambda: next((p for p in storage.glob("*-long-*") if p.name not in before and _checkpoints(p)), None))
    done = seekray("jobs", "stop", job, "--address", head.address, "--json", cwd=folder, env=head.environment)
    assert json.loads(done.stdout)["status"] == "STOPPED", done.stderr
    log = seekray("jobs", "logs", job, "--address", head.address, cwd=folder, env=head.environment).stdout
    assert f"--resume {run.name}" in log
    segments = sorted((run / "spool").glob("0*.json"))
    assert json.loads(segments[-1].read_text())[-1]["status"] == "killed"
    step = max(int(p.name.removeprefix("step_")) for p in _checkpoints(run))
    again = submit(head, folder, "--resume", run.name, "--set", f"training.epochs={step // 20 + 20}")
    assert again.returncode == 0, again.stderr[-4000:]
    assert f"run {run.name}" in again.stderr


SEARCH = ["tune", "examples/digits-tune.yaml", "--set", "report.importances=false", "--set", "training.epochs=4"]


@pytest.mark.slow
def test_a_search_runs_the_same_as_a_job(head: Head, folder: Path) -> None:
    storage = folder / ".seekray" / "storage" / "runs"
    asked = ["--set", "name=searched", "--set", "tune.trials=5", "--set", "register=searched"]
    done = seekray("submit", *SEARCH, *asked, "--address", head.address, "--json", cwd=folder, env=head.environment)
    assert done.returncode == 0, done.stderr[-4000:]
    (search,) = [p for p in storage.glob("*-searched-*") if (p / "journal.jsonl").exists()]
    trials = json.loads((search / "trials.json").read_text())
    assert [t["status"] in ("finished", "stopped") for t in trials] == [True] * 5
    assert all(f"trial {t['number']}: {t['status']}" in done.stderr for t in trials)
    best = min(trials, key=lambda t: (t["value"], t["number"]))  # the loss
    assert (storage / best["run_id"] / "bundle" / "bundle.json").exists()
    assert f"trial {best['number']} of {search.name}" in (search / "best.yaml").read_text()
    synced = json.loads(seekray("sync", "--json", cwd=folder, env=head.environment).stdout)["runs"]
    versions = {r["run_id"]: r["version"] for r in synced}
    assert {search.name, *(t["run_id"] for t in trials)} <= versions.keys()
    assert versions[best["run_id"]] is not None

    # The same values give the same model here, in this process.
    here = ["--set", "resources.workers=0", "--set", "resources.cpus_per_worker=1", "--set", "name=here"]
    if best["status"] == "finished":
        again = seekray("train", str(search / "best.yaml"), *here, "--json", cwd=folder, env=head.environment)
        assert again.returncode == 0, again.stderr[-4000:]
        told = json.loads((storage / best["run_id"] / "evaluation.json").read_text())["metrics"]
        assert json.loads(again.stdout)["metrics"] == told


@pytest.mark.slow
def test_a_stopped_search_goes_on_as_a_job(head: Head, folder: Path) -> None:
    storage = folder / ".seekray" / "storage" / "runs"
    asked = [
        "--set",
        "name=halted",
        "--set",
        "tune.trials=400",
        "--set",
        "tune.scheduler=none",
        "--set",
        "tune.searcher=random",
    ]
    at = ["--address", head.address]
    started = seekray("submit", *SEARCH, *asked, *at, "--no-wait", "--json", cwd=folder, env=head.environment)
    job = json.loads(started.stdout)["job_id"]

    def ended(search: Path) -> list[dict[str, Any]]:
        entries = {e["number"]: e for e in map(json.loads, (search / "journal.jsonl").read_text().splitlines())}
        return [e for e in entries.values() if e["status"] != "running"]

    def begun() -> Path | None:
        found = next((p.parent for p in storage.glob("*-halted-*/journal.jsonl")), None)
        return found if found and len(ended(found)) > 2 else None

    search = _until(begun)
    done = seekray("jobs", "stop", job, *at, "--json", cwd=folder, env=head.environment)
    assert json.loads(done.stdout)["status"] == "STOPPED", done.stderr
    before = ended(search)
    # The experiment of a search that goes on is the one that it began with, but for what is set now.
    more = ["--resume", search.name, "--set", f"tune.trials={len(before) + 3}"]
    again = seekray("submit", *SEARCH, *asked, *more, *at, "--json", cwd=folder, env=head.environment)
    assert again.returncode == 0, again.stderr[-4000:]
    after = {e["number"]: e for e in ended(search)}
    assert all(after[e["number"]] == e for e in before), "an ended trial is not run again"
    assert len(after) == len(before) + 3


def _checkpoints(run: Path) -> list[Path]:
    return [p for p in (run / "checkpoints").glob("step_*") if (p / "manifest.json").exists()]


def _until(found: Any, timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while (value := found()) is None:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return value


@pytest.mark.slow
def test_plain_ray_job_submit(head: Head, folder: Path) -> None:
    """Without our command line, with seekray installed on the cluster."""
    entry = ["python", "-m", "seekray_jobs.train", "examples/digits.yaml", "--set", "training.epochs=1"]
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--", *entry],
        cwd=folder,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert '"run_id"' in done.stdout + done.stderr
