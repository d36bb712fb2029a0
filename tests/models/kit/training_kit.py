"""Small tables and short runs, for the tests and for the processes that they start."""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from seekray import loop
from seekray.checkpoint import Checkpoint, Checkpoints
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.session import Point, Session
from seekray.storage import Storage

TARGETS: dict[str, Any] = {"classification": "kind", "regression": "price", "multilabel": ["wet", "warm"], "rows": None}


def write_table(path: Path, rows: int = 101, seed: int = 0) -> Path:
    """A CSV with three numbers, a category, and a target of each task."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    colour = rng.choice(["red", "green", "blue"], size=rows)
    score = x @ [1.0, -2.0, 0.5] + (colour == "red") + 0.1 * rng.normal(size=rows)
    kind = np.digitize(score, [-1.0, 1.0])
    lines = ["a,b,c,colour,kind,price,wet,warm"]
    for i in range(rows):
        numbers = ",".join(f"{v:.6f}" for v in x[i])
        lines.append(f"{numbers},{colour[i]},k{kind[i]},{score[i]:.6f},{int(score[i] > 1)},{int(x[i, 0] > 0)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def experiment(source: Path | str, task: str = "classification", **parts: Any) -> Experiment:
    """A small experiment; `training`, `model`, `resources` and `data` add to the defaults."""
    features = ["a", "b", "c"] if task == "rows" else ["a", "b", "c", "colour"]
    data = {"source": str(source), "target": TARGETS[task], "features": features} | parts.pop("data", {})
    training = {"epochs": 3, "batch_size": 16, "log_every": 1} | parts.pop("training", {})
    model = ({} if task == "rows" else {"hidden_size": [8]}) | parts.pop("model", {})
    resources = {"workers": 0} | parts.pop("resources", {})
    given = {"name": "t", "family": "gen" if task == "rows" else "net", "task": task} | parts
    return Experiment.model_validate(given | {"data": data, "training": training, "model": model, "resources": resources})


def prepare_for(given: Experiment) -> Prepared:
    """An experiment's data, prepared by its family."""
    return given.prepare()


class Listen:
    """Hears a run; with `stop_after` it is Ctrl-C at the first report beyond that step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.heard: list[Point] = []
        self.states: list[dict[str, Any]] = []
        self._stop_after = stop_after

    def points(self, new: Sequence[Point]) -> None:
        self.heard += new
        if self._stop_after is not None and any(p.step > self._stop_after for p in new):
            raise KeyboardInterrupt

    def progress(self, state: Mapping[str, Any]) -> None:
        self.states.append(dict(state))

    def series(self, key: str) -> dict[int, float]:
        """Step → value; fails where a step was told twice."""
        steps = [p.step for p in self.heard if p.key == key]
        assert len(steps) == len(set(steps)), f"{key} told twice"
        return {p.step: p.value for p in self.heard if p.key == key}


def run_here(
    given: Experiment, prepared: Prepared | None, folder: Path, listen: Any = None, *, session: type[Session] = Session
) -> Checkpoint:
    """Run, or go on with, the loop in this process; its last checkpoint."""
    torch.set_num_threads(1)
    prepared = prepared or prepare_for(given)
    run = Storage(str(folder))
    checkpoints = Checkpoints(run)
    place = (dist.get_rank(), dist.get_world_size()) if given.resources.shard else ()
    where = session(given.training, run, listener=listen or Listen(), resume_from=checkpoints.latest(*place))
    loop.run(given, where, prepared.schema, prepared.train, prepared.validation, prepared.initial)
    last = checkpoints.latest()
    assert last is not None
    return last


@contextlib.contextmanager
def sent_from_here() -> Iterator[None]:
    """MLflow hears of a training at its end and from this process, which knows MLflow: another would import it for 4 s."""

    def sender(run: Storage, where: Any) -> Any:
        from seekray.tracking.carrier import send

        return contextlib.nullcontext(types.SimpleNamespace(wait=lambda: send(run, where)))

    with mock.patch("seekray.trainer.start_sender", sender):
        yield


def bundle_of(raw: dict[str, Any], home: Path) -> Path:
    """The bundle of a training that measures no importances, and of which MLflow does not hear: that takes 5 s of a CPU."""
    from seekray.experiment_file import validate
    from seekray.settings import read_settings
    from seekray.trainer import train

    sender = contextlib.nullcontext(types.SimpleNamespace(wait=lambda: None))
    with mock.patch("seekray.trainer.start_sender", return_value=sender):
        plain = {"resources": {"workers": 0}, "report": {"importances": False}}
        return Path(train(validate(raw | plain), read_settings({"SEEKRAY_HOME": str(home)})).bundle)


def run_ray(given: Experiment, prepared: Prepared, folder: Path, listen: Any = None) -> Checkpoint:
    """The same on the Ray that this process is connected to."""
    from seekray import ray_train
    from seekray.progress import Progress

    run = Storage(str(folder))
    run.write_json("experiment.json", given.as_json())
    ray_train.fit(given, folder.name, run, ray_train.share(prepared), listen or Listen(), Progress(quiet=True))
    last = Checkpoints(run).latest()
    assert last is not None
    return last


def same(one: Checkpoint, other: Checkpoint, prefix: str = "", tolerance: float = 0.0) -> None:
    """Assert that two checkpoints have equal tensors (bit by bit unless a tolerance is given)."""
    keys = {k for k in one.tensors if k.startswith(prefix)}
    assert keys
    assert keys == {k for k in other.tensors if k.startswith(prefix)}
    for key in keys:
        a, b = one.tensors[key], other.tensors[key]
        if tolerance:
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance), (key, (a - b).abs().max())
        else:
            assert torch.equal(a, b), key


def same_history(one: Checkpoint, other: Checkpoint, tolerance: float = 0.0) -> None:
    """Assert that each epoch has the same figures, times aside."""
    a, b = one.state["history"], other.state["history"]
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() - {"seconds"}:
            assert abs(left[key] - right[key]) <= tolerance, (key, left[key], right[key])


class After(threading.Timer):
    """Calls a function after some seconds, whatever the main thread does; a context manager."""

    def __enter__(self) -> After:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
