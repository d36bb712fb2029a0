"""Whole searches on the session's Ray: what is left, what fails, what goes on."""

from __future__ import annotations

import contextlib
import io
import json
import re
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient
from training_kit import experiment, prepare_for, run_here, same, write_table

from seekray import ray_train, tuner
from seekray.bundle import load as load_bundle
from seekray.checkpoint import Checkpoints
from seekray.config import Experiment
from seekray.errors import ConfigError, SeekrayError
from seekray.experiment_file import load, with_values
from seekray.progress import Progress
from seekray.settings import settings
from seekray.storage import Storage
from seekray.tracking.spool import Spool, start_of
from seekray.trainer import load_run, write_start
from seekray.tuner.journal import Journal
from seekray.tuner.table import Table
from seekray.tuner.trial import LoopTrial, part_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster", "home")]
SPACE = {"model.hidden_size": {"choice": [[4], [16]]}, "training.lr": {"loguniform": [1e-3, 1e-1]}}


def searched(folder: Path, **tune: Any) -> Experiment:
    parts = {"training": {"epochs": 6}, "resources": {"workers": 1}, "data": {"split": {"validation": 0.3}}}
    tune = {"trials": 4, "space": SPACE, "concurrency": 1} | tune  # a process of a trial takes 4 s to start
    return experiment(write_table(folder / "table.csv"), **parts, tune=tune)


def journal_of(search_id: str) -> Journal:
    return Journal(Storage(settings().storage).child("runs").child(search_id))


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process that sends to MLflow: the spools stay."""
    sender = contextlib.nullcontext(types.SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr(tuner, "start_sender", lambda run, where: sender)


@pytest.mark.e2e
def test_a_search_from_its_file_to_the_registered_model(tmp_path: Path) -> None:
    given = searched(tmp_path, metric="accuracy", searcher="random", concurrency=2).model_copy(update={"register_as": "t"})
    done = tuner.tune(given, settings(), source="t.yaml")
    told = done.as_json()
    assert set(told) == {"run_id", "bundle", "model", "version", "metrics", "search_id", "best", "trials"}
    assert json.dumps(told)
    assert (told["model"], told["version"]) == ("t", "1")
    assert [t["number"] for t in told["trials"]] == [0, 1, 2, 3]
    assert {t["status"] for t in told["trials"]} <= {"finished", "stopped"}
    best = max(told["trials"], key=lambda t: (t["value"], -t["number"]))
    assert told["best"] == best
    assert told["run_id"] == best["run_id"]

    # best.yaml is a plain experiment, and its training is the one that was kept.
    file = Path(done.folder) / "best.yaml"
    text = file.read_text()
    assert f"lr: {best['values']['training.lr']}  # trial {best['number']} of {done.search_id}: random over loguniform" in text
    plain = load(file)
    assert plain.tune is None
    assert plain.register_as == "t"
    kept = Checkpoints(Storage(settings().storage).child("runs").child(best["run_id"])).latest()
    assert kept is not None
    if best["status"] == "finished":
        same(run_here(plain, None, tmp_path / "again"), kept)
    assert load_bundle(Path(told["bundle"])).info["run_id"] == best["run_id"]

    client = MlflowClient(settings().tracking_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parent = next(r for r in runs if r.info.run_name == done.search_id)
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {r.info.run_name for r in children} == {t["run_id"] for t in told["trials"]}
    assert all(r.info.status == "FINISHED" and "validation_accuracy" in r.data.metrics for r in children)
    assert parent.data.metrics["best_accuracy"] == best["value"]
    assert {"best.yaml", "plots", "trials.json"} <= {f.path for f in client.list_artifacts(parent.info.run_id)}


def test_a_search_that_was_interrupted_goes_on(tmp_path: Path, untracked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    space = {
        "training.optimizer": {"choice": ["sgd", "adamw"]},
        "training.momentum": {
            "choice": [0.0, 0.5],
            "when": {"training.optimizer": "sgd"},
        },  # before it in the alphabet
    }
    given = searched(tmp_path, grace=2, reduction=2, trials=5, space=space, concurrency=2)
    ends = []
    with monkeypatch.context() as patch:

        def event(self: Table, text: str) -> None:
            ends.append(text) if "running" not in text else None
            if len(ends) == 2:
                raise KeyboardInterrupt

        patch.setattr(Table, "event", event)
        with pytest.raises(KeyboardInterrupt):
            tuner.tune(given, settings())
    (search_id,) = [r for r in Storage(settings().storage).child("runs").list() if "-t0" not in r]
    before = journal_of(search_id)
    assert len(before.ended) == 2

    again = load_run(search_id, settings())
    done = tuner.tune(again, settings(), resume=search_id)
    assert done.search_id == search_id
    after = journal_of(search_id).trials
    assert len(after) == 5
    assert all(entry.ended for entry in after.values())
    for entry in before.trials.values():
        assert after[entry.number].values == entry.values
        if entry.ended:
            assert after[entry.number] == entry, "an ended trial is not run again"


def test_a_trial_is_the_loop_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    given = experiment(write_table(tmp_path / "table.csv"), training={"epochs": 6}, model={"dropout": 0.2})
    prepared = prepare_for(given)
    run = Storage(str(tmp_path / "run"))
    write_start(run, given, prepared, resume=False)
    config = {
        "number": 0, "search_id": "s", "run_id": "s-t000", "run": run.uri, "values": {}, "rungs": [2, 4],
        "start": start_of("s-t000", given.name, {}, {}), "others": ["accuracy", "parameters"], "row": None,
        "parts": [{"experiment": given.as_json(), "data": ray_train.share(prepared)}],
    }  # fmt: skip
    found = []
    for _ in range(3):  # each in an actor that knows nothing of the one before
        found.append(LoopTrial.__new__(LoopTrial))
        found[-1].reset_config(dict(config))
        found[-1].answer = found[-1].step()
    assert [(t.answer["epoch"], t.answer["done"]) for t in found] == [(2, False), (4, False), (6, True)]
    last = Checkpoints(run).latest()
    assert last is not None
    same(run_here(given, prepared, tmp_path / "whole"), last)
    assert found[-1].answer["score"] == last.state["best_value"]
    assert found[-1].answer["others"]["parameters"] == sum(t.numel() for t in last.group("best").values())
    assert 0 < found[-1].answer["others"]["accuracy"] <= 1
    spool = Spool(run)
    assert [e["kind"] for e in spool.events()].count("start") == 1, "the first word, once a driver"
    assert spool.events()[0]["kind"] == "start"


def test_failures_have_reasons_and_do_not_sink_the_search(tmp_path: Path, untracked: None) -> None:
    space = {
        "training.optimizer": {"choice": ["sgd", "adamw"]},
        "training.momentum": {"choice": [0, 0.5]},  # for sgd alone
        "training.lr": {"choice": [0.01, 1e30]},  # diverges
    }
    done = tuner.tune(searched(tmp_path, searcher="grid", trials=8, space=space, scheduler="none"), settings())
    reasons = {t["number"]: t["reason"] for t in done.trials}
    assert [t["status"] == "finished" for t in done.trials][:4:2] == [True, True]
    assert "training.momentum is for sgd, not for adamw" in reasons[6]
    assert "training.momentum is for sgd, not for adamw" in reasons[7]
    assert any("the loss became NaN or infinite" in r for r in reasons.values())
    assert {t["status"] for t in done.trials} == {"finished", "failed"}

    only = {"training.lr": {"choice": [1e30]}, "training.optimizer": {"choice": ["sgd"]}, "training.seed": {"int": [0, 9]}}
    with pytest.raises(SeekrayError, match=r"the first 5 trials all failed.*\n  trial 0: the loss became NaN"):
        tuner.tune(searched(tmp_path, trials=9, space=only), settings())


@pytest.mark.slow
def test_repetitions_are_one_trial(tmp_path: Path, untracked: None) -> None:
    given = searched(tmp_path, searcher="random", trials=2, scheduler="none", repeat={"folds": 3}, metric="accuracy")
    done = tuner.tune(given, settings())
    assert len(done.trials) == 2
    best, runs = done.best, Storage(settings().storage).child("runs")
    parts = [Checkpoints(part_of(runs.child(best["run_id"]), i)).latest() for i in range(3)]
    values = [part.state["best_value"] for part in parts if part is not None]
    assert len(set(values)) > 1
    assert best["value"] == pytest.approx(sum(values) / 3)
    plain = load(Path(done.folder) / "best.yaml")
    assert plain.data.split.fold == (0, 3)
    assert parts[0] is not None
    same(run_here(plain, None, tmp_path / "again"), parts[0])


@pytest.mark.slow
def test_a_trial_goes_on_from_where_a_scheduler_paused_it(tmp_path: Path, untracked: None) -> None:
    space = {"training.lr": {"loguniform": [1e-4, 1e-1]}}
    given = searched(tmp_path, searcher="random", scheduler="hyperband", trials=12, space=space)
    given = with_values(given, {"training.epochs": 9}).model_copy(update={"tune": given.tune})
    heard = io.StringIO()
    done = tuner.tune(given, settings(), progress=Progress(heard))
    went_on = re.findall(r"trial (\d+): from epoch (\d)", heard.getvalue())
    assert went_on, heard.getvalue()
    assert {t["status"] for t in done.trials} == {"finished", "stopped"}
    resumed = {int(n) for n, _ in went_on}
    whole = next(t for t in done.trials if t["number"] in resumed and t["status"] == "finished")
    plain = with_values(given, whole["values"])
    kept = Checkpoints(Storage(settings().storage).child("runs").child(whole["run_id"])).latest()
    assert kept is not None
    same(run_here(plain, None, tmp_path / "whole"), kept)


def test_the_worst_take_over_the_best(tmp_path: Path, untracked: None) -> None:
    space = {"training.lr": {"loguniform": [1e-6, 1e-1]}, "model.hidden_size": {"choice": [[4], [8]]}}
    given = searched(tmp_path, searcher="random", scheduler="pbt", trials=6, space=space, grace=2, concurrency=2)
    given = with_values(given, {"training.epochs": 12}).model_copy(update={"tune": given.tune})
    done = tuner.tune(given, settings())
    changed = [t for t in done.trials if t.get("schedule")]
    assert changed
    for trial in changed:
        (first, before), *_, (epoch, after) = trial["schedule"]
        assert first == 0 < epoch
        assert after == trial["values"] != before
        assert 1e-6 <= after["training.lr"] <= 1e-1
    assert all(t["epoch"] == 12 for t in done.trials)


def _trials() -> set[psutil.Process]:
    """Processes of trials on the session's Ray, those of a search that ended a moment ago too."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::LoopTrial" in " ".join(process.cmdline()):
                found.add(process)
    return found


def test_a_trial_whose_process_dies_is_tried_once_more(
    tmp_path: Path, untracked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = searched(tmp_path, searcher="random", trials=2, scheduler="none")
    given = with_values(given, {"family": "odd_families:Slow"}).model_copy(update={"tune": given.tune})
    event, killed, others = Table.event, set(), _trials()

    def kill(self: Table, text: str) -> None:
        if text.startswith("trial 0: running") and not killed:
            killed.update(_trials() - others)
            for process in killed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        event(self, text)

    monkeypatch.setattr(Table, "event", kill)
    done = tuner.tune(given, settings())
    assert killed
    assert [t["status"] for t in done.trials] == ["finished", "finished"]


def test_a_search_may_end_early_and_over_the_data(tmp_path: Path, untracked: None) -> None:
    space = {"data.exclude": {"choice": [[], ["a"]]}}
    given = searched(tmp_path, searcher="grid", metric="accuracy", target=0.01, trials=9, scheduler="none", space=space)
    given = with_values(given, {"data.features": None}).model_copy(update={"tune": given.tune})
    done = tuner.tune(given, settings())
    assert "the target is reached" in done.ended_by
    assert len(done.trials) < 9
    plateau = tuner.tune(given.model_copy(update={"tune": given.tune.model_copy(update={"target": None})}), settings())  # type: ignore[union-attr]
    assert [t["values"] for t in plateau.trials] == [{"data.exclude": []}, {"data.exclude": ["a"]}]


def test_a_search_may_end_by_its_time_or_on_a_plateau(tmp_path: Path, untracked: None) -> None:
    space = {"training.lr": {"loguniform": [1e-4, 1e-1]}, "model.dropout": {"uniform": [0, 0.5]}}
    given = searched(tmp_path, searcher="cmaes", scheduler="none", trials=1000, space=space, time="4s")
    done = tuner.tune(given, settings())
    assert done.ended_by == "the time is over (4 s)"
    assert len(done.trials) < 1000
    assert all(t["reason"] in ("", done.ended_by, f"{done.ended_by}, before its first rung") for t in done.trials)
    given = searched(tmp_path, searcher="random", scheduler="none", trials=1000, space=space, plateau=2)
    done = tuner.tune(given, settings())
    assert done.ended_by == "2 trials in a row brought nothing better"
    assert sum(t["number"] > done.best["number"] and t["status"] == "finished" for t in done.trials) >= 2


@pytest.mark.slow
def test_a_trial_of_two_workers_is_the_same_as_one_of_one(tmp_path: Path, untracked: None) -> None:
    """It stops at a comparison and goes on, in another Ray Train."""
    space = {"training.lr": {"choice": [0.03]}, "training.seed": {"choice": [3]}}
    found = []
    for workers in (1, 2):
        given = searched(tmp_path, searcher="grid", trials=1, grace=3, space=space)
        given = with_values(given, {"resources.workers": workers}).model_copy(update={"tune": given.tune})
        done = tuner.tune(given, settings())
        assert [(t["status"], t["epoch"]) for t in done.trials] == [("finished", 6)]
        last = Checkpoints(Storage(settings().storage).child("runs").child(done.best["run_id"])).latest()
        assert last is not None
        assert last.state["world_size"] == workers
        found.append((done.best, last))
    (one, single), (two, double) = found
    assert two["value"] == pytest.approx(one["value"], rel=1e-5)
    same(single, double, "weights/", 1e-5)


def test_a_split_without_validation_rows_is_told_before_anything_starts(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,part,y\n" + "".join(f"{i},{'test' if i % 4 == 0 else 'train'},{i % 2}\n" for i in range(40)))
    data = {"target": "y", "features": None, "split": {"kind": "column", "by": "part"}}
    given = experiment(table, data=data, tune={"space": {"training.lr": {"choice": [0.1]}}})
    with pytest.raises(ConfigError, match="the split leaves none"):
        tuner.tune(given, settings())


def test_an_experiment_without_a_search_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tune: is missing"):
        tuner.tune(experiment(write_table(tmp_path / "table.csv")), settings())
