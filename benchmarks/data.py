"""CSV → tensors, and one row → tensors, beside pandas in the same run.

    PYTHONPATH=platform python benchmarks/data.py [--rows 500000] [--json]

Medians of `--repeats` runs, ours and pandas' in turn, of the same file, warm in the page cache. `read` is
`Source.batches` → `FeatureSchema.transform` with a fitted schema (standardised float32 tensors); `prepare`
also fits, splits, and hashes; pandas is `read_csv` + `to_numpy` of the same columns (and, as
`pandas_tensor`, the standardising and float32 that ours includes).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.data.tables.prepare import prepare

COLUMNS = 20


def write_csv(path: Path, rows: int) -> None:
    """Normal deviates with six digits, and a class."""
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=rows).round(6) for i in range(COLUMNS)}
    pacsv.write_csv(pa.table(columns | {"label": rng.integers(0, 3, size=rows)}), path)


def measure(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds and CPU seconds (all threads) of each, taken in turn so that a busy moment hits all."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            start, cpu = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return {name: (statistics.median(s for s, _ in v), statistics.median(c for _, c in v)) for name, v in taken.items()}


def csv_to_tensors(folder: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Rows/s of ours and of pandas."""
    import pandas as pd
    import torch

    path = folder / "numbers.csv"
    write_csv(path, rows)
    data = Data(source=str(path), target="label")
    names = [f"x{i}" for i in range(COLUMNS)]
    schema = prepare(data, "classification").schema
    mean = np.array([f.state["mean"] for f in schema.features])
    std = np.array([f.state["std"] for f in schema.features])

    def read() -> None:
        done = sum(len(schema.transform(batch)["dense"]) for batch in open_source(data).batches(names))
        assert done == rows

    def pandas_tensor() -> None:
        torch.from_numpy(((pd.read_csv(path, usecols=names).to_numpy() - mean) / std).astype(np.float32))

    work: dict[str, Callable[[], object]] = {
        "read": read,
        "prepare": lambda: prepare(data, "classification"),
        "pandas": lambda: pd.read_csv(path, usecols=names).to_numpy(),
        "pandas_tensor": pandas_tensor,
    }
    found = measure(work, repeats)
    return {
        "rows": rows,
        "mb": round(path.stat().st_size / 1e6, 1),
        "load_average": os.getloadavg()[0],
        "rows_per_second": {name: round(rows / s) for name, (s, _) in found.items()},
        "cpu_seconds": {name: round(c, 3) for name, (_, c) in found.items()},
        "read_over_pandas": round(found["pandas"][0] / found["read"][0], 2),
        "prepare_over_pandas": round(found["pandas"][0] / found["prepare"][0], 2),
    }


def one_row(loops: int = 5000) -> dict[str, float]:
    """Microseconds of `transform` on one row of lists, as an endpoint has it."""
    prepared = prepare(Data(source="sample:digits", target="label"), "classification")
    row = prepared.held_out.drop_columns(["label"]).slice(0, 1).to_pylist()
    schema = prepared.schema
    columns = schema.columns_from_rows(row)
    for _ in range(200):
        schema.transform(columns)
    start = time.perf_counter()
    for _ in range(loops):
        schema.transform(columns)
    middle = time.perf_counter()
    for _ in range(loops):
        schema.columns_from_rows(row)
    end = time.perf_counter()
    return {
        "transform_us": round((middle - start) / loops * 1e6, 1),
        "columns_from_rows_us": round((end - middle) / loops * 1e6, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"csv": csv_to_tensors(Path(folder), given.rows, given.repeats), "one_row_of_64": one_row()}
    if given.json:
        print(json.dumps(found))
        return
    speed = found["csv"]["rows_per_second"]
    print(f"CSV of {given.rows:,} rows x {COLUMNS} columns ({found['csv']['mb']} MB), rows/s:")
    for name, value in speed.items():
        cpu = found["csv"]["cpu_seconds"][name]
        print(f"  {name:14} {value:>10,}   {value / speed['pandas']:.2f} x pandas   {cpu:.2f} s of CPU")
    print(f"load average {found['csv']['load_average']:.1f} on {os.cpu_count()} cores")
    print(f"one row of 64 numbers: {found['one_row_of_64']}")


if __name__ == "__main__":
    main()
