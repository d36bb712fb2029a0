"""Quality of searches: 40 trials of TPE with ASHA beside scikit-learn's random search over its MLP, and random search alone.

    python -m benchmarks.quality_tune [digits breast-cancer vowels] [--seeds 3] [--trials 40] [--json] [--keep FILE]

For each seed the held-out rows are set aside first (vowels: the published test part); no search sees them. Ours splits the
rest into training and validation rows and keeps the best trial's model as it was trained, on the training rows. `again` is
the best trial's values trained once more on all of these rows, for as many epochs as its best weights had. Random alone
is `searcher: random, scheduler: none` with as many epochs in all as TPE with ASHA took. scikit-learn's is
`RandomizedSearchCV(MLPClassifier, n_iter=40)` behind a `StandardScaler` over the same sizes and rates, one split of the same
share, which is 40 fits, and then trains the best once more on all the rest. For vowels ours is `rec` on the sequences, and
scikit-learn has mean and spread of each of the 12 channels. Difference: of the shares of right answers over all held-out rows
of all seeds, paired, with the 95 % interval of 2,000 bootstrap samples. `--keep` adds what was found to a file, so that the
parts can be measured one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import ray
from scipy.stats import loguniform
from sklearn.model_selection import RandomizedSearchCV, StratifiedShuffleSplit
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.in_process import trained
from seekray import tuner
from seekray.checkpoint import Checkpoints
from seekray.config import Data, Experiment
from seekray.data.prepared import Prepared
from seekray.data.sources import open_source
from seekray.experiment_file import validate, with_values
from seekray.log import configure
from seekray.predictor import Predictor
from seekray.settings import settings
from seekray.storage import Storage

SHARE = 0.2  # of the rows that are not held out: validation
EPOCHS = {"digits": 27, "breast-cancer": 27, "vowels": 18}
RATE, DECAY = [1e-4, 1e-1], [1e-6, 1e-1]
SIZES = [[32], [64], [128], [64, 64], [128, 128]]


def experiment(name: str, seed: int, trials: int, **tune: Any) -> Experiment:
    """What is searched."""
    data: dict[str, Any] = {"source": f"sample:{name}", "target": "label"}
    data["split"] = {"kind": "stratified", "test": 0.25, "validation": SHARE, "seed": seed}
    space: dict[str, Any] = {"model.hidden_size": {"choice": SIZES}, "model.dropout": {"uniform": [0, 0.5]}}
    given: dict[str, Any] = {"data": data, "training": {"epochs": EPOCHS[name], "batch_size": 64, "seed": seed}}
    if name == "vowels":
        data |= {"source": _parted(seed), "target": "speaker", "split": {"kind": "column", "by": "part"}}
        space = {"model.hidden_size": {"choice": [24, 48]}, "model.dropout": {"uniform": [0, 0.5]}}
        given |= {"family": "rec", "model": {"cell": "gru", "bidirectional": True, "pooling": "mean"}}
        given["training"] |= {"batch_size": 32, "clip_norm": 1.0}
    space |= {"training.lr": {"loguniform": RATE}, "training.weight_decay": {"loguniform": DECAY}}
    asked = {"trials": trials, "seed": seed, "metric": "loss", "space": space, **tune}
    return validate({"name": name, **given, "report": {"importances": False}, "tune": asked})


def _parted(seed: int) -> str:
    """The vowels with a share of each speaker's training utterances as validation."""
    table = open_source(Data(source="sample:vowels", target="speaker")).table()
    parts, speakers = np.array(table.column("part").to_pylist(), object), np.array(table.column("speaker").to_pylist())
    rng = np.random.default_rng(seed)
    for speaker in np.unique(speakers):
        rows = np.flatnonzero((parts == "train") & (speakers == speaker))
        parts[rng.permutation(rows)[: round(SHARE * len(rows))]] = "validation"
    file = Path(os.environ["SEEKRAY_HOME"]) / f"vowels-{seed}.parquet"
    pq.write_table(table.set_column(table.column_names.index("part"), "part", [parts.tolist()]), file)
    return str(file)


def searched(given: Experiment) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int, float]:
    """Which held-out rows the best model answers rightly, and the same trained again; epochs of all trials, seconds."""
    began = time.monotonic()
    done = tuner.tune(given, settings())
    seconds = time.monotonic() - began
    state = _state(done.best["run_id"])
    epochs = next(e["epoch"] for e in state["history"] if e["step"] == state["best_step"])
    values = {**done.best["values"], "training.epochs": epochs, "data.split.validation": 0}
    if given.data.split.kind == "column":
        values["data.source"] = "sample:vowels"
    again, prepared, _ = trained(with_values(given, values))
    ours = Predictor.load(Path(done.best_run.bundle))
    return _right(ours, prepared, given), _right(again, prepared, given), sum(t["epoch"] for t in done.trials), seconds


def _state(run_id: str) -> dict[str, Any]:
    last = Checkpoints(Storage(settings().storage).child("runs").child(run_id)).latest()
    assert last is not None
    return last.state


def _right(model: Predictor, prepared: Prepared, given: Experiment) -> np.ndarray[Any, Any]:
    truth = prepared.held_out.column(given.data.target).to_pylist()
    return np.array([str(a) == str(t) for a, t in zip(model.predict(prepared.held_out).predictions, truth, strict=True)])


def sklearn_search(given: Experiment, seed: int, trials: int) -> tuple[np.ndarray[Any, Any], float]:
    """The same of scikit-learn."""
    prepared = given.prepare()
    table, target = open_source(given.data).table(), given.data.target
    held = np.zeros(table.num_rows, bool)
    held[np.asarray(prepared.held_out_rows)] = True
    truth = np.array([str(v) for v in table.column(target).to_pylist()])
    rows = _features(table, [f.name for f in prepared.schema.features])
    model = make_pipeline(StandardScaler(), MLPClassifier(max_iter=100, random_state=seed))
    space = {
        "mlpclassifier__hidden_layer_sizes": [tuple(s) for s in SIZES],
        "mlpclassifier__learning_rate_init": loguniform(*RATE),
        "mlpclassifier__alpha": loguniform(*DECAY),
        "mlpclassifier__batch_size": [32, 64, 128],
    }
    began = time.monotonic()
    split = StratifiedShuffleSplit(1, test_size=SHARE, random_state=seed)
    search = RandomizedSearchCV(model, space, n_iter=trials, cv=split, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(rows[~held], truth[~held])
    return search.predict(rows[held]) == truth[held], time.monotonic() - began


def _features(table: Any, names: list[str]) -> np.ndarray[Any, Any]:
    """Numbers as they are; of sequences the mean and the spread of each channel."""
    columns = []
    for name in names:
        values = table.column(name).to_pylist()
        if isinstance(values[0], list):
            whole = [np.asarray(v, float).reshape(len(v), -1) for v in values]
            columns += [np.stack([v.mean(0) for v in whole]), np.stack([v.std(0) for v in whole])]
        else:
            columns.append(np.asarray(values, float)[:, None])
    return np.concatenate(columns, 1)


def one(name: str, seed: int, trials: int) -> dict[str, Any]:
    """All three of one table and seed."""
    full = EPOCHS[name]
    given = experiment(name, seed, trials)
    ours, again, epochs, seconds = searched(given)
    alone = max(1, round(epochs / full))
    random, _, _, random_seconds = searched(experiment(name, seed, alone, searcher="random", scheduler="none"))
    theirs, their_seconds = sklearn_search(given, seed, trials)
    found = {"ours": ours, "again": again, "random": random, "sklearn": theirs}
    return {
        "name": name, "seed": seed, "right": {k: v.astype(int).tolist() for k, v in found.items()},
        "epochs": epochs, "alone": alone, "seconds": {"ours": seconds, "random": random_seconds, "sklearn": their_seconds},
    }  # fmt: skip


def _difference(found: list[dict[str, Any]], one: str, other: str) -> str:
    """In points, with its interval."""
    both = [np.array(f["right"][one], float) - np.array(f["right"][other], float) for f in found]
    rows = np.concatenate(both)
    rng = np.random.default_rng(0)
    drawn = [rows[rng.integers(0, len(rows), len(rows))].mean() for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{100 * rows.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def line(name: str, found: list[dict[str, Any]]) -> str:
    """A row of the page's table."""
    cells = [name]
    for who in ("ours", "again", "random", "sklearn"):
        values = [100 * statistics.fmean(f["right"][who]) for f in found]
        cells.append(f"{statistics.fmean(values):.2f} ({', '.join(f'{v:.1f}' for v in values)})")
    cells += [_difference(found, *pair) for pair in (("ours", "random"), ("ours", "sklearn"), ("again", "sklearn"))]
    cells.append(" / ".join(f"{statistics.fmean(f['seconds'][w] for f in found):.0f}" for w in ("ours", "random", "sklearn")))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    configure()
    everything: list[dict[str, Any]] = json.loads(given.keep.read_text()) if given.keep and given.keep.exists() else []
    known = {(f["name"], f["seed"]) for f in everything}
    wanted = [(name, seed) for name in given.names for seed in given.seeds if (name, seed) not in known]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        away = {"SEEKRAY_HOME": folder, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
        stack.enter_context(mock.patch.dict(os.environ, away))
        settings.cache_clear()
        if wanted:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        for name, seed in wanted:
            everything.append(one(name, seed, given.trials))
            if given.keep:
                given.keep.write_text(json.dumps(everything))
        ray.shutdown()
    if given.json:
        print(json.dumps(everything, indent=1))
        return
    pairs = "ours − random | ours − scikit-learn | again − scikit-learn"
    print(f"| table | TPE + ASHA | again | random | scikit-learn | {pairs} | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.names:
        print(line(name, [f for f in everything if f["name"] == name]))


if __name__ == "__main__":
    main()
