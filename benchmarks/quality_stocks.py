"""Stocks by walk-forward: five companies' next-day return and direction and 5-day volatility, beside what costs nothing.

    python -m benchmarks.quality_stocks [return direction volatility] [--seeds 1]

Four origins (the first day of 2009, 2010, 2011, 2012): the network of `examples/stocks.yaml` is trained on the days before
one, the last tenth of them for validation, and judged on the days from there to the next (the last: to March 2013). Beside it
stand zero, the last value, an exponentially weighted moving average, ridge regression, and of the direction the
more frequent one of the training days and yesterday's. Direction is a classifier of the same windows. Intervals are 95 %, from
draws of whole months of all companies, because one day's companies and a month's windows are not independent.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.in_process import trained
from benchmarks.quality_rec import ROOT
from seekray import experiment_file
from seekray.data.options import Data
from seekray.data.sequences.baselines import ewma, persistence, ridge
from seekray.data.sequences.framing import frame_of, frame_table
from seekray.data.sources import open_source
from seekray.predictor import Predictor

ORIGINS = ("2009-01-01", "2010-01-01", "2011-01-01", "2012-01-01", "2013-04-01")
HISTORY = 60
DRAWS = 2000
RETURN = ["data.target=return", "data.sequence.horizon=1", "data.sequence.stride=1", "model.anchor=none"]


def span(table: pa.Table, first: str, last: str) -> pa.Table:
    """Each company's days from `first` to before `last`, and the HISTORY days before them."""
    parts = []
    for company in pc.unique(table["company"]).to_pylist():
        own = table.filter(pc.equal(table["company"], company)).sort_by("date")
        days = own["date"].to_numpy()
        begin, end = np.searchsorted(days, np.array([first, last], dtype="datetime64[D]"))
        parts.append(own.slice(max(0, int(begin) - HISTORY), int(end) - max(0, int(begin) - HISTORY)))
    return pa.concat_tables(parts)


def forecasts(predictor: Predictor, test: pa.Table, zero: bool) -> tuple[dict[str, Any], Any]:
    """Each forecaster's absolute error of each window, and the windows' months."""
    schema: Any = predictor.schema
    truth, past = np.array(test[schema.targets[0]].to_pylist()), np.array(test[schema.frame["target"]].to_pylist())
    said = {"model": np.array(predictor.predict(test).predictions), "last value": persistence(past[:, -1], schema.horizon)}
    said["EWMA"] = persistence(ewma(past, schema.ewma), schema.horizon)
    inputs = predictor.prepare(test)
    linear = ridge(schema.ridge, inputs["sequence"].numpy(), inputs["dense"].numpy())
    said["ridge"] = linear * schema.target_std + schema.target_mean
    if zero:
        said["zero"] = np.zeros_like(truth)
    return {name: np.abs(values - truth).mean(1) for name, values in said.items()}, _months(test)


def directions(predictor: Predictor, train: pa.Table, test: pa.Table) -> tuple[dict[str, Any], Any]:
    """Whether each is right about each day, and the days' months."""
    truth = np.array(test["direction"].to_pylist())
    counts = pc.value_counts(train["direction"]).to_pylist()
    most = max(counts, key=lambda c: c["counts"])["values"]
    last = np.array([r[-1] > 0 for r in test["return"].to_pylist()])
    said = {"model": np.array(predictor.predict(test).predictions), "majority": np.full(len(truth), most)}
    said["yesterday's"] = np.where(last, "up", "down")
    return {name: (values == truth).astype(float) for name, values in said.items()}, _months(test)


def _months(test: pa.Table) -> Any:
    return test["date"].to_numpy().astype("datetime64[M]")


def one(what: str, first: str, last: str, seed: int, folder: Path) -> tuple[dict[str, Any], Any, str]:
    """A fold's figures of each window, their months, and a note."""
    file = folder / "before.parquet"
    source = f"data.source={file}"
    common = [f"training.seed={seed}", "resources.workers=0", "data.split.test=0"]
    given = RETURN if what != "volatility" else []
    experiment = experiment_file.load(ROOT / "examples" / "stocks.yaml", [*given, *common])
    table = open_source(experiment.data).table()
    before = table.filter(pc.less(table["date"], pa.scalar(date.fromisoformat(first))))
    frame = frame_of(experiment.data, "forecast", table.column_names)
    test = frame_table(span(table, first, last), frame).table
    if what != "direction":
        pq.write_table(before, file)
        found = experiment_file.load(ROOT / "examples" / "stocks.yaml", [*given, *common, source])
        predictor, _, _ = trained(found)
        schema: Any = predictor.schema
        return *forecasts(predictor, test, what == "return"), f"EWMA's decay {schema.ewma}"
    train, test = (_directed(t) for t in (frame_table(before, frame).table, test))
    pq.write_table(train, file)
    asked = experiment.as_json()
    data = {"source": str(file), "target": "direction", "features": ["return", "range_volatility"]}
    data["split"] = {"kind": "time", "by": "date", "test": 0, "validation": 0.1}  # type: ignore[assignment]
    model = {"cell": "gru", "hidden_size": 32, "dropout": 0.1}
    changes = {"task": "classification", "data": Data.model_validate(data).model_dump(), "model": model}
    predictor, _, _ = trained(type(experiment).model_validate(asked | changes))
    return *directions(
        predictor, train, test
    ), f"up {np.mean([d == 'up' for d in train['direction'].to_pylist()]):.3f} of training"


def _directed(windows: pa.Table) -> pa.Table:
    ahead = np.array(windows["return_next"].to_pylist())[:, 0]
    return windows.append_column("direction", pa.array(np.where(ahead > 0, "up", "down"))).drop_columns("return_next")


def interval(values: Any, months: Any, against: Any | None = None) -> tuple[float, float]:
    """Of a mean, or of its ratio to another's, from draws of whole months."""
    _, group = np.unique(months, return_inverse=True)
    size = int(group.max()) + 1
    weights = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=DRAWS)
    below = np.bincount(group) if against is None else np.bincount(group, weights=against)
    low, high = np.quantile(weights @ np.bincount(group, weights=values) / (weights @ below), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["return", "direction", "volatility"])
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    for what in given.what:
        folds = []
        for first, last in itertools.pairwise(ORIGINS):
            with tempfile.TemporaryDirectory() as folder:
                runs = [one(what, first, last, seed, Path(folder)) for seed in range(given.seeds)]
            figures = {name: np.mean([r[0][name] for r in runs], axis=0) for name in runs[0][0]}
            folds.append((figures, runs[0][1]))
            words = ", ".join(f"{name} {v.mean():.4f}" for name, v in figures.items())
            seeds = ", ".join(f"{r[0]['model'].mean():.4f}" for r in runs)
            print(f"{what} {first} to {last}: {len(runs[0][1])} windows, {words}; {runs[0][2]}; seeds {seeds}", flush=True)
        months = np.concatenate([m for _, m in folds])
        everything = {name: np.concatenate([f[name] for f, _ in folds]) for name in folds[0][0]}
        for name, values in everything.items():
            low, high = interval(values, months)
            line = f"{what} all {len(months)}, {name}: {values.mean():.4f} [{low:.4f}, {high:.4f}]"
            if name != "model":
                low, high = interval(everything["model"], months, values)
                line += f"; the model over it {everything['model'].mean() / values.mean():.4f} [{low:.4f}, {high:.4f}]"
            print(line, flush=True)


if __name__ == "__main__":
    main()
