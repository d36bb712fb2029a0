"""Quality of the shipped experiments: 5 folds x 3 seeds, beside scikit-learn's MLP and the best linear model.

    python -m benchmarks.quality [digits wine ...] [--folds 5] [--seeds 3] [--fold-seed 0] [--write] [--json]

Each experiment is `examples/NAME.yaml` as it is shipped: only the rows (a fold's, from a Parquet file with a split
column) and `training.seed` (0, 1, 2) are put in. The folds are scikit-learn's `StratifiedKFold` or `KFold`, shuffled
with `--fold-seed`, and the same for all three. Ours goes from the file through `prepare`, the training loop, a
checkpoint on disk and the `Predictor`; one torch thread. scikit-learn's models stand behind a `StandardScaler`, the MLP
with its default settings but for `max_iter=1000`, the linear one with the best value of a small grid, chosen on these
same test folds (so in its favour). Prints a Markdown section; `--write` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.in_process import fit, model_of
from seekray import experiment_file
from seekray.config import Experiment
from seekray.data import split as splits
from seekray.data.options import Split
from seekray.data.sources import open_source
from seekray.data.tables.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"digits": 0.983, "breast-cancer": 0.975, "wine": 0.975, "diabetes": 0.46}
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
PART = "__part__"
PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass
class Scores:
    """One method on one table: a score and CPU seconds a fit."""

    values: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        return statistics.pstdev(self.values)


@dataclass(frozen=True)
class Fold:
    """One division of a table: its file, and the same rows as scikit-learn wants them."""

    path: Path
    train: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
    test: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def folds(experiment: Experiment, count: int, seed: int, folder: Path) -> Iterator[Fold]:
    """The table once a fold, with a column that says which part a row is of."""
    table = open_source(experiment.data).table()
    (target,) = experiment.data.targets
    answers = table.column(target).to_numpy(zero_copy_only=False)
    features = np.stack([table.column(n).to_numpy() for n in table.column_names if n != target], axis=1)
    kind = StratifiedKFold if experiment.task == "classification" else KFold
    for number, (train, test) in enumerate(kind(count, shuffle=True, random_state=seed).split(features, answers)):
        parts = np.full(table.num_rows, "train", dtype=object)
        parts[test] = "test"
        if share := experiment.data.split.validation:
            parts[train[_validation(experiment, answers[train], share * table.num_rows / len(train))]] = "validation"
        path = folder / f"{experiment.name}-{number}.parquet"
        pq.write_table(table.append_column(PART, pa.array(parts.tolist())), path)
        yield Fold(path, (features[train], answers[train]), (features[test], answers[test]))


def _validation(experiment: Experiment, answers: np.ndarray[Any, Any], share: float) -> np.ndarray[Any, Any]:
    """Which training rows the experiment would keep for validation."""
    split = Split(kind=experiment.data.split.kind, test=0, validation=share, seed=experiment.data.split.seed)
    strata = splits.strata_of(experiment.task, [pa.array(answers)]) if split.kind == "stratified" else None
    return splits.assign(split, len(answers), strata=strata) == splits.VALIDATION


def score(task: str, answers: Any, predictions: Any) -> float:
    """Accuracy, or R²."""
    return float(accuracy_score(answers, predictions) if task == "classification" else r2_score(answers, predictions))


def ours(experiment: Experiment, fold: Fold, seed: int) -> tuple[float, float]:
    """Score and CPU seconds of the shipped values on one fold; the training alone is timed."""
    split = Split(kind="column", by=PART)
    experiment = experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"source": str(fold.path), "split": split}),
            "training": experiment.training.model_copy(update={"seed": seed}),
        }
    )
    prepared = prepare(experiment.data, experiment.task)
    with tempfile.TemporaryDirectory() as folder:
        last, seconds = fit(experiment, prepared, folder)
    predictor = model_of(experiment, prepared, last)
    answers = prepared.held_out.column(experiment.data.targets[0]).to_pylist()
    return score(experiment.task, answers, predictor.predict(prepared.held_out).predictions), seconds


def theirs(task: str, estimator: Any, fold: Fold) -> tuple[float, float]:
    """The same of a scikit-learn estimator behind a scaler."""
    model = make_pipeline(StandardScaler(), estimator)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an MLP that has not converged is what the defaults give
        model.fit(*fold.train)
    seconds = time.process_time() - began
    return score(task, fold.test[1], model.predict(fold.test[0])), seconds


def repeat(fit: Callable[[Fold, int], tuple[float, float]], rows: Sequence[Fold], seeds: int, note: str = "") -> Scores:
    """All folds with all seeds."""
    results = [fit(fold, seed) for fold in rows for seed in range(seeds)]
    return Scores([r[0] for r in results], [r[1] for r in results], note)


def compare(experiment: Experiment, rows: Sequence[Fold], seeds: int) -> dict[str, Scores]:
    """seekray, the MLP of scikit-learn and the best linear model on the same folds."""
    task = experiment.task
    classes = task == "classification"
    mlp = MLPClassifier if classes else MLPRegressor
    linear = []
    for value in GRID:
        estimator = LogisticRegression(C=value, max_iter=5000) if classes else Ridge(alpha=value)
        # A linear fit has no seed: one a fold.
        note = f"{'C' if classes else 'alpha'} = {value:g}"
        linear.append(repeat(lambda f, _, e=estimator: theirs(task, e, f), rows, 1, note))
    return {
        "seekray": repeat(lambda f, s: ours(experiment, f, s), rows, seeds),
        "mlp": repeat(lambda f, s: theirs(task, mlp(max_iter=1000, random_state=s), f), rows, seeds),
        "linear": max(linear, key=lambda s: s.mean),
    }


def markdown(found: Mapping[str, dict[str, Scores]], arguments: str, count: int, seeds: int) -> str:
    """The section of the page."""
    lines = [
        f"`python -m benchmarks.quality{arguments}`: {count} folds × {seeds} seeds, mean ± standard deviation over all fits, "
        "CPU seconds a fit",
        "on one thread in brackets. Accuracy, for diabetes R². `seekray` is `examples/NAME.yaml` as shipped, one set of values",
        "for all folds and seeds; scikit-learn's MLP has its defaults (`max_iter=1000`); the linear model (logistic or ridge",
        "regression) has the best value of a grid, chosen on these same test folds, so in its favour.",
        "",
        "| table | target | seekray | scikit-learn MLP | best linear model | target met |",
        "|---|---|---|---|---|---|",
    ]
    for name, methods in found.items():
        target = TARGETS.get(name)
        cells = [f"{s.mean:.4f} ± {s.std:.4f} ({_seconds(s)}{f', {s.note}' if s.note else ''})" for s in methods.values()]
        met = "" if target is None else "yes" if methods["seekray"].mean >= target else "**no**"
        lines.append(f"| {name} | {'' if target is None else f'≥ {target}'} | {' | '.join(cells)} | {met} |")
    return "\n".join(lines)


def _seconds(scores: Scores) -> str:
    mean = statistics.fmean(scores.seconds)
    return f"{mean:.2f} s" if mean >= 0.01 else "< 0.01 s"


def write(section: str, page: Path = PAGE, *, marker: str = "quality") -> None:
    """Put the section between the page's markers."""
    text = page.read_text()
    before, begin, rest = text.partition(f"<!-- {marker} -->\n")
    _, end, after = rest.partition(f"<!-- /{marker} -->")
    if not (begin and end):
        raise SystemExit(f"{page} has no <!-- {marker} --> and <!-- /{marker} --> lines")
    page.write_text(f"{before}{begin}\n{section}\n\n{end}{after}")


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TARGETS), help="experiments of examples/; default: all four")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fold-seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, dict[str, Scores]] = {}
    for name in given.names:
        experiment = experiment_file.load(ROOT / "examples" / f"{name}.yaml")
        with tempfile.TemporaryDirectory() as folder:
            rows = list(folds(experiment, given.folds, given.fold_seed, Path(folder)))
            with threadpool_limits(1):
                found[name] = compare(experiment, rows, given.seeds)
        print(name, {k: round(s.mean, 4) for k, s in found[name].items()}, file=sys.stderr, flush=True)
    shown = "".join(f" {a}" for a in arguments if a not in ("--write", "--json"))
    section = markdown(found, shown, given.folds, given.seeds)
    if given.json:
        print(json.dumps({n: {k: asdict(s) | {"mean": s.mean, "std": s.std} for k, s in m.items()} for n, m in found.items()}))
    else:
        print(section)
    if given.write:
        write(section)
    return int(any(found[n]["seekray"].mean < TARGETS[n] for n in found if n in TARGETS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
