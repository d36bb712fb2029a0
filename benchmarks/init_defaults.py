"""What `seekray init` writes for a stranger's table, beside the best linear model and scikit-learn's MLP.

    python -m benchmarks.init_defaults [--only NAME] [--jobs 2] [--json FILE]

29 tables of 178 to 2,000 rows: real ones, and made ones that are linear or curved, clean or noisy,
with few rows, many useless features or categories. 5 folds x 2 seeds, the same for all three.
In each fold `init` sees the training rows alone; the file it writes is loaded and trained as it
stands but for the split, which is the fold. Linear: logistic regression or ridge (scikit-learn's
defaults) on standardised, one-hot features. MLP: MLPClassifier or MLPRegressor with 1,000
iterations, its regression target standardised (without which it does worse).
The promise: accuracy or R2 no worse than the better of the two, less 0.02.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SLACK = 0.02
Table = tuple[Any, np.ndarray]  # features as a pandas DataFrame, answers


def _frame(x: np.ndarray) -> Any:
    import pandas as pd

    return pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])


def _classes(numbers: np.ndarray) -> np.ndarray:
    return np.array([f"c{int(n)}" for n in numbers])


def _real(name: str, classes: bool) -> Table:
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")(as_frame=True)
    x = data.data.rename(columns=lambda c: str(c).replace(" ", "_"))
    return x, _classes(data.target) if classes else data.target.to_numpy()


def _clusters(rows: int, features: int, useful: int, classes: int, per_class: int, seed: int) -> Table:
    from sklearn.datasets import make_classification

    x, y = make_classification(
        rows, features, n_informative=useful, n_redundant=min(4, features - useful), n_classes=classes,
        n_clusters_per_class=per_class, class_sep=1.1, flip_y=0.02, random_state=seed,
    )  # fmt: skip
    return _frame(x), _classes(y)


def _noisy_plane(rows: int, features: int, useful: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(rows, features)), np.zeros(features)
    weights[:useful] = rng.normal(size=useful)
    score = x @ weights
    return _frame(x), np.where(score + rng.logistic(size=rows) * score.std() * 0.6 > 0, "yes", "no")


def _moons(rows: int, noise: float, seed: int) -> Table:
    from sklearn.datasets import make_moons

    x, y = make_moons(rows, noise=noise, random_state=seed)
    return _frame(x), _classes(y)


def _rings(rows: int, seed: int) -> Table:
    from sklearn.datasets import make_circles

    x, y = make_circles(rows, noise=0.15, factor=0.5, random_state=seed)
    return _frame(x), _classes(y)


def _shells(rows: int, seed: int) -> Table:
    """Three classes by the distance from the middle, in eight dimensions."""
    from sklearn.datasets import make_gaussian_quantiles

    x, y = make_gaussian_quantiles(n_samples=rows, n_features=8, n_classes=3, random_state=seed)
    return _frame(x), _classes(y)


def _corners(rows: int, seed: int) -> Table:
    """Exclusive or of two thresholds, among twelve features."""
    x = np.random.default_rng(seed).uniform(size=(rows, 12))
    return _frame(x), np.where((x[:, 0] > 0.5) ^ (x[:, 1] > 0.3), "a", "b")


def _linear(rows: int, features: int, useful: int, noise: float, seed: int) -> Table:
    from sklearn.datasets import make_regression

    x, y = make_regression(rows, features, n_informative=useful, noise=noise, random_state=seed)
    return _frame(x), y


def _friedman(number: int, rows: int, noise: float, seed: int) -> Table:
    from sklearn import datasets

    x, y = getattr(datasets, f"make_friedman{number}")(n_samples=rows, noise=noise, random_state=seed)
    return _frame(x), y


def _mixed(rows: int, seed: int, classes: bool) -> Table:
    """Six numbers, categories of 4, 12 and 30 values, a boolean; effects that add, bend and interact."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6))
    a, b, c, d = rng.integers(0, 4, rows), rng.integers(0, 12, rows), rng.integers(0, 30, rows), rng.random(rows) < 0.3
    effects = rng.normal(size=4), rng.normal(size=12), rng.normal(size=30) * 0.5
    y = x[:, 0] + 0.8 * x[:, 1] * (a % 2) + np.sin(2 * x[:, 2]) + 0.7 * d + 0.5 * x[:, 3] * d
    y += effects[0][a] + effects[1][b] + effects[2][c]
    frame = _frame(x).assign(a=[f"a{v}" for v in a], b=[f"b{v}" for v in b], c=[f"k{v}" for v in c], d=d)
    if classes:
        return frame, np.where(y + rng.logistic(size=rows) * 0.5 > np.median(y), "yes", "no")
    return frame, y * 10 + 100 + rng.normal(size=rows) * 8


TABLES: dict[str, tuple[str, Callable[[], Table]]] = {
    "wine": ("classification", lambda: _real("wine", True)),
    "breast cancer": ("classification", lambda: _real("breast_cancer", True)),
    "digits": ("classification", lambda: _real("digits", True)),
    "noisy plane 200 x 20": ("classification", lambda: _noisy_plane(200, 20, 8, 0)),
    "noisy plane 300 x 100": ("classification", lambda: _noisy_plane(300, 100, 10, 1)),
    "noisy plane 1500 x 40": ("classification", lambda: _noisy_plane(1500, 40, 15, 2)),
    "clusters 300 x 20": ("classification", lambda: _clusters(300, 20, 8, 3, 2, 3)),
    "clusters 1000 x 20": ("classification", lambda: _clusters(1000, 20, 10, 2, 3, 4)),
    "clusters 2000 x 30": ("classification", lambda: _clusters(2000, 30, 12, 4, 3, 5)),
    "clusters 500 x 100": ("classification", lambda: _clusters(500, 100, 8, 2, 2, 6)),
    "moons 300": ("classification", lambda: _moons(300, 0.3, 7)),
    "moons 1000": ("classification", lambda: _moons(1000, 0.2, 8)),
    "rings 400": ("classification", lambda: _rings(400, 111)),
    "shells 600": ("classification", lambda: _shells(600, 112)),
    "corners 500": ("classification", lambda: _corners(500, 114)),
    "mixed classes 400": ("classification", lambda: _mixed(400, 9, True)),
    "mixed classes 1500": ("classification", lambda: _mixed(1500, 10, True)),
    "diabetes": ("regression", lambda: _real("diabetes", False)),
    "linear 200 x 50": ("regression", lambda: _linear(200, 50, 10, 20, 11)),
    "linear 200 x 100": ("regression", lambda: _linear(200, 100, 10, 10, 12)),
    "linear 1000 x 50": ("regression", lambda: _linear(1000, 50, 20, 50, 13)),
    "linear, noisy 300 x 20": ("regression", lambda: _linear(300, 20, 10, 200, 14)),
    "friedman1 200": ("regression", lambda: _friedman(1, 200, 1.0, 15)),
    "friedman1 500": ("regression", lambda: _friedman(1, 500, 1.0, 16)),
    "friedman1 2000": ("regression", lambda: _friedman(1, 2000, 1.0, 17)),
    "friedman2 500": ("regression", lambda: _friedman(2, 500, 50.0, 18)),
    "friedman3 1000": ("regression", lambda: _friedman(3, 1000, 0.1, 19)),
    "mixed amounts 300": ("regression", lambda: _mixed(300, 20, False)),
    "mixed amounts 1500": ("regression", lambda: _mixed(1500, 21, False)),
}


def seekray_score(x: Any, y: np.ndarray, train: np.ndarray, test: np.ndarray, folder: Path) -> tuple[float, str]:
    """`init` on the training rows, then its file trained as it stands; score on the test rows, and the shape chosen."""
    import torch

    from benchmarks.in_process import fit
    from seekray import inspect
    from seekray.checkpoint import load_named
    from seekray.data.tables.prepare import prepare
    from seekray.experiment_file import load
    from seekray.models import get_family
    from seekray.storage import Storage

    part = np.full(len(y), "train", dtype=object)
    part[test] = "test"
    whole = x.assign(answer=y)
    whole.iloc[train].to_csv(folder / "table.csv", index=False)
    inspect.init(str(folder / "table.csv"), ["answer"], folder / "experiment.yaml", force=True)
    written = load(folder / "experiment.yaml")
    if share := written.data.split.validation:
        part[np.random.default_rng(0).permutation(train)[: round(share * len(y))]] = "validation"
    whole.assign(part=part).to_csv(folder / "whole.csv", index=False)
    split = f"data.split={{kind: column, by: part, test: 0.2, validation: {written.data.split.validation:g}}}"
    experiment = load(folder / "experiment.yaml", [f"data.source={folder / 'whole.csv'}", split])
    prepared = prepare(experiment.data, experiment.task)
    Storage(str(folder / "run")).delete("")
    checkpoint, _ = fit(experiment, prepared, folder / "run")
    modules = get_family(experiment.family).build(experiment.model, prepared.schema)
    load_named(modules, checkpoint.group("best"))
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        outputs = get_family(experiment.family).predict(modules, prepared.schema.transform(prepared.held_out))
    targets = torch.from_numpy(prepared.schema.encode_targets(prepared.held_out))
    shape = str(list(experiment.model.layers)) if hasattr(experiment.model, "layers") else ""
    if experiment.task == "classification":
        return float((outputs.argmax(1) == targets).double().mean()), shape
    residual, spread = (outputs - targets).square().sum(), (targets - targets.mean()).square().sum()
    return float(1 - residual / spread), shape


def baseline_scores(task: str, x: Any, y: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, float]:
    """Linear and MLP of scikit-learn on the same fold."""
    from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    warnings.filterwarnings("ignore")
    numeric = [c for c in x if x[c].dtype.kind in "fi"]
    rest = [c for c in x if c not in numeric]
    models: dict[str, Any]
    if task == "classification":
        models = {"linear": LogisticRegression(max_iter=2000), "mlp": MLPClassifier(max_iter=1000, random_state=seed)}
    else:
        mlp = MLPRegressor(max_iter=1000, random_state=seed)
        models = {"linear": Ridge(), "mlp": TransformedTargetRegressor(mlp, transformer=StandardScaler())}
    found = {}
    for name, model in models.items():
        encode = ColumnTransformer([("n", StandardScaler(), numeric), ("c", OneHotEncoder(handle_unknown="ignore"), rest)])
        found[name] = float(make_pipeline(encode, model).fit(x.iloc[train], y[train]).score(x.iloc[test], y[test]))
    return found


def measure(name: str) -> dict[str, Any]:
    """Means over folds and seeds of one table."""
    import torch
    from sklearn.model_selection import KFold, StratifiedKFold

    torch.set_num_threads(1)
    task, make = TABLES[name]
    x, y = make()
    scores: dict[str, list[float]] = {"linear": [], "mlp": [], "seekray": []}
    shapes: list[str] = []
    seconds = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SEEKRAY_HOME"] = f"{scratch}/home"
        for seed in (0, 1):
            kind = StratifiedKFold if task == "classification" else KFold
            for train, test in kind(5, shuffle=True, random_state=seed).split(np.zeros(len(y)), y):
                began = time.perf_counter()
                score, shape = seekray_score(x, y, train, test, Path(scratch))
                seconds += time.perf_counter() - began
                scores["seekray"].append(score)
                shapes.append(shape)
                for model, value in baseline_scores(task, x, y, train, test, seed).items():
                    scores[model].append(value)
    means = {k: float(np.mean(v)) for k, v in scores.items()}
    margin = means["seekray"] - max(means["linear"], means["mlp"])
    chosen = max(set(shapes), key=shapes.count)
    return {"table": name, "rows": len(y), "columns": x.shape[1], "task": task, **means, "margin": margin,
            "hidden": f"{chosen} in {shapes.count(chosen)}", "seconds": seconds / len(shapes)}  # fmt: skip


def main() -> int:
    """Measure and print; 1 where a table misses the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="tables whose name holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    names = [n for n in TABLES if not given.only or any(o in n for o in given.only)]
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    print("| table | rows | columns | best linear | sklearn MLP | seekray init | margin | hidden layers | s a fit |")
    print("|---|---|---|---|---|---|---|---|---|")
    found = []
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(measure, names):
            found.append(row)
            print(
                f"| {row['table']} | {row['rows']} | {row['columns']} | {row['linear']:.3f} | {row['mlp']:.3f} "
                f"| {row['seekray']:.3f} | {row['margin']:+.3f} | {row['hidden']} | {row['seconds']:.1f} |",
                flush=True,
            )
    missed = [row["table"] for row in found if row["margin"] < -SLACK]
    print(f"\nworst margin {min(r['margin'] for r in found):+.3f}, mean {np.mean([r['margin'] for r in found]):+.3f}; "
          f"below -{SLACK}: {', '.join(missed) or 'none'}")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
