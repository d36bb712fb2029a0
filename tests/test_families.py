"""What every family promises, over the registration itself; `family_cases.CASES` has the data of each task."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES
from ranks import forked
from training_kit import Listen, prepare_for, run_here, same, same_history

from seekray.checkpoint import Checkpoints, load_named, named_tensors
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.errors import CorruptError
from seekray.generator import Generator, json_rows, open_model
from seekray.models import FAMILIES, get_family
from seekray.predictor import Predictor
from seekray.report import conclude
from seekray.session import Session
from seekray.storage import Storage
from seekray.tracking.spool import Tracker
from seekray.train_state import TrainState
from seekray.verify import local_doors, verify

TASKS = [(name, task) for name in FAMILIES for task in get_family(name).tasks]
EXACT = {"training": {"precision": "fp64", "batch_size": 23, "clip_norm": 0.5}}


class Make:
    """Experiments of one family's task, with their data."""

    def __init__(self, family: str, task: str, folder: Path) -> None:
        self.family, self.task, self.folder = family, task, folder
        self.case = CASES[family, task]

    def __call__(self, **training: Any) -> tuple[Experiment, Prepared]:
        given = self.case.experiment(self.family, self.task, self.folder, {"training": training})
        return given, prepare_for(given)

    def exact(self) -> Experiment:
        """Nothing random on a rank alone, in float64, the last batch of an odd size."""
        return self.case.experiment(self.family, self.task, self.folder, EXACT, self.case.exact)


@pytest.fixture(params=TASKS, ids=lambda case: "-".join(case), scope="module")
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    return Make(*request.param, tmp_path_factory.mktemp("-".join(request.param)))


def _state(given: Experiment, prepared: Prepared, folder: Path) -> tuple[TrainState, Session]:
    session = Session(given.training, Storage(str(folder)), listener=Listen())
    return TrainState(given, session, prepared.schema, prepared.train, prepared.validation), session


def test_every_task_has_a_case() -> None:
    assert set(TASKS) == set(CASES)


def test_shapes(make: Make, tmp_path: Path) -> None:
    given, prepared = make()
    state, session = _state(given, prepared, tmp_path)
    batch = next(iter(state.batches))
    session.begin(batch)
    state.set_training(True)
    shares = state.family.train_step(state.modules, state.optimizers, batch, session)
    assert all(share.ndim == 0 for share in shares.values())
    assert "loss" in shares
    state.set_training(False)
    with torch.no_grad():
        rows = state.family.eval_step(state.modules, batch)
        outputs = state.family.predict(state.modules, batch.inputs)
    assert len(batch.rows) == 16
    assert all(len(figure) == 16 for figure in rows.values())
    assert len(outputs) == 16
    if prepared.schema.targets:
        assert outputs.shape[-1] == prepared.schema.num_outputs
        assert len(prepared.schema.decode(outputs).predictions) == 16
    assert state.family.objective(given.task)[0] in state.family.metrics(rows, given.task)


def test_loss_falls_on_one_batch(make: Make, tmp_path: Path) -> None:
    given, prepared = make(lr=0.02)
    state, session = _state(given, prepared, tmp_path)
    batch = next(iter(state.batches))
    state.set_training(True)
    losses = []
    for _ in range(150):
        session.begin(batch)
        shares = state.family.train_step(state.modules, state.optimizers, batch, session)
        losses.append(float(shares[make.case.falls]))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_saved_and_loaded_give_equal_outputs(make: Make, tmp_path: Path) -> None:
    given, prepared = make()
    last = run_here(given, prepared, tmp_path / "run")
    batch = next(iter(_state(given, prepared, tmp_path)[0].batches))
    outputs = []
    for _ in range(2):
        torch.manual_seed(len(outputs) + 5)
        modules = get_family(given.family).build(given.model, prepared.schema)
        load_named(modules, last.group("weights"))
        for module in modules.values():
            module.eval()
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(get_family(given.family).predict(modules, batch.inputs))
        assert all(torch.equal(v, last.group("weights")[k]) for k, v in named_tensors(modules).items())
    assert torch.equal(*(o.nan_to_num(7.0) for o in outputs))  # NaN fills labelled rows up


@pytest.mark.parametrize("stop_after", [1, 4, 9])  # of 5 steps an epoch: in the first, before the end of it, in the second
def test_resume_equals_no_interruption(make: Make, tmp_path: Path, stop_after: int) -> None:
    given, prepared = make(checkpoints={"every_steps": 1}, schedule={"kind": "cosine", "warmup": 2}, ema=0.9)
    undisturbed = run_here(given, prepared, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_here(given, prepared, tmp_path / "cut", Listen(stop_after))
    resumed = run_here(given, prepared, tmp_path / "cut")
    same(undisturbed, resumed)
    same_history(undisturbed, resumed)
    for key in ("step", "best_step", "best_value", "rate", "batches"):
        assert undisturbed.state[key] == resumed.state[key]


# ---- ranks


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoints of every case on two ranks, joined by gloo, from one process that imports torch once."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = []
    for family, task in TASKS:
        data = folder / f"{family}-{task}-data"
        data.mkdir()
        given = Make(family, task, data).exact().as_json()
        jobs.append({"kind": "run", "experiment": given, "folder": str(folder / f"{family}-{task}"), "world": 2})
    forked(jobs)
    return folder


def test_two_workers_equal_one(make: Make, of_two: Path, tmp_path: Path) -> None:
    """Weights, optimizer state, best weights and every figure."""
    alone = run_here(make.exact(), None, tmp_path)
    ranks = Checkpoints(Storage(str(of_two / f"{make.family}-{make.task}"))).latest()
    assert ranks is not None
    assert ranks.state["world_size"] == 2
    assert alone.state["step"] > 1
    for group in ("weights/", "optimizer/", "best/"):
        same(alone, ranks, group, tolerance=1e-6)
    same_history(alone, ranks, tolerance=1e-6)


# ---- bundles


@pytest.fixture(scope="module")
def bundle(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that a short run leaves, from the same door as any run's."""
    folder = tmp_path_factory.mktemp("bundle")
    given = make.case.experiment(make.family, make.task, make.folder, {"report": {"importances": False}})
    prepared = prepare_for(given)
    last, run = run_here(given, prepared, folder), Storage(str(folder))
    concluded = conclude(given, "0" * 12, run, prepared, last, Tracker(run, "t"))
    return folder / concluded.bundle


def test_a_bundle_is_the_model_that_was_trained(make: Make, bundle: Path) -> None:
    """Loaded from its files alone it answers as the weights in memory do, and as it wrote down itself."""
    _, prepared = make()
    last = Checkpoints(Storage(str(bundle.parent))).latest()
    assert last is not None
    if not prepared.schema.targets:
        loaded = Generator.load(bundle)
        made = [loaded.generate(**request) for request in loaded.sample["requests"]]
        assert made
        assert [json_rows(table) for table in made] == loaded.sample["answers"]
        memory = open_model(loaded.info, prepared.schema, last.group("best"))
        assert isinstance(memory, Generator)
        assert [memory.generate(**request) for request in loaded.sample["requests"]] == made
        return
    predictor = Predictor.load(bundle)
    memory = open_model(predictor.info, prepared.schema, last.group("best"))
    assert isinstance(memory, Predictor)
    answers = predictor.predict(prepared.held_out).columns()
    assert len(answers["prediction"]) == len(prepared.held_out)
    assert answers == memory.predict(prepared.held_out).columns()
    found = verify(local_doors(bundle), predictor.sample)
    assert found["rows"] > 1
    assert found["passed"], found


def test_a_corrupt_bundle_is_refused_with_the_file_that_is_wrong(bundle: Path, tmp_path: Path) -> None:
    files = sorted(file.name for file in bundle.iterdir())
    assert {"bundle.json", "manifest.json", "model.safetensors", "sample.json"} <= set(files)
    for name in files:
        copy = shutil.copytree(bundle, tmp_path / name)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (copy / name).write_bytes(data)
        with pytest.raises(CorruptError, match=name):
            Predictor.load(copy)
