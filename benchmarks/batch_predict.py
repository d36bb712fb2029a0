"""Batch prediction of a large file: rows/s and the memory of all its processes together.

    PYTHONPATH=platform:jobs python benchmarks/batch_predict.py [--rows 20000000] [--format parquet|csv] [--out parquet|folder]

Generates `--rows` rows of 10 columns in a temporary folder, predicts them over Ray with a 2 x 64 network in a
process of its own, and samples the proportional set size (shared memory counted once) of that process and
all below it, Ray's daemons included. Prints one JSON document. Needs about 4 GB of disk for 20 million rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

COLUMNS = 10


def generate(path: Path, rows: int) -> None:
    """Random numbers, a million rows at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    schema = pa.schema([(f"x{i}", pa.float64()) for i in range(COLUMNS)])
    writer = pq.ParquetWriter(path, schema) if path.suffix == ".parquet" else pacsv.CSVWriter(path, schema)
    with writer:
        for start in range(0, rows, 10**6):
            values = rng.normal(size=(min(10**6, rows - start), COLUMNS)).round(6)
            writer.write_table(pa.table(list(values.T), schema=schema))


def make_bundle(folder: Path) -> Path:
    """An untrained two-class model: weights do not change the work."""
    import numpy as np
    import pyarrow as pa
    import torch

    from seekray import bundle
    from seekray.checkpoint import named_tensors
    from seekray.data.options import Data
    from seekray.data.tables.fitting import fit
    from seekray.models.net import Net, NetConfig
    from seekray.storage import Storage

    torch.manual_seed(0)
    numbers = np.random.default_rng(1).normal(size=(COLUMNS, 1000))
    table = pa.table(list(numbers), names=[f"x{i}" for i in range(COLUMNS)])
    table = table.append_column("y", pa.array(["no", "yes"] * 500))
    schema = fit(table, Data(source="generated", target="y"), "classification")
    config = NetConfig(hidden_size=(64, 64))
    modules = Net().build(config, schema)
    info = {"name": "bench", "family": "net", "task": "classification", "model": config.model_dump(mode="json")}
    sample: dict[str, Any] = {"rows": [], "answers": {}}
    bundle.write(Storage(str(folder)), "bundle", info, schema, named_tensors(modules), sample)
    return folder / "bundle"


def child(bundle: str, source: str, out: str, workers: int) -> None:
    """The process that is measured."""
    import functools

    from seekray import cluster
    from seekray.batch.predict import predict
    from seekray.data.options import Data
    from seekray.settings import settings

    connect = functools.partial(cluster.connect, settings())
    began = time.monotonic()

    def progress(rows: int, total: int | None) -> None:
        print(f"{rows:,} of {total} rows, {rows / (time.monotonic() - began):,.0f} rows/s", file=sys.stderr, flush=True)

    answer = predict(bundle, Data(source=source), out, workers=workers or None, connect=connect, progress=progress)
    print(json.dumps(answer | {"predict_seconds": round(time.monotonic() - began, 1)}))


class Memory(threading.Thread):
    """Samples the proportional set size of a process and all below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.samples, self.peak, self.at_peak = pid, [], 0.0, {}  # type: ignore[var-annotated]

    def run(self) -> None:
        import psutil

        began = time.monotonic()
        while psutil.pid_exists(self._pid):
            found: dict[str, float] = {}
            with contextlib.suppress(psutil.Error):
                top = psutil.Process(self._pid)
                for process in [top, *top.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error, OSError):
                        name = " ".join(process.cmdline())[:60] or process.name()
                        found[f"{process.pid} {name}"] = process.memory_full_info().pss / 2**20
            total = sum(found.values())
            self.samples.append((round(time.monotonic() - began, 1), round(total)))
            if total > self.peak:
                self.peak, self.at_peak = total, {k: round(v) for k, v in found.items()}
            time.sleep(0.5)


def main() -> None:
    """Generate, run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--out", choices=["parquet", "csv", "folder"], default="parquet")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child, given.workers)
        return
    with tempfile.TemporaryDirectory(prefix="seekray-bench-") as folder:
        source = Path(folder) / f"rows.{given.format}"
        subprocess.run(
            [sys.executable, "-c", f"import runpy, pathlib; m = runpy.run_path({__file__!r}); "
             f"m['generate'](pathlib.Path({str(source)!r}), {given.rows}); m['make_bundle'](pathlib.Path({folder!r}))"],
            check=True,
        )  # fmt: skip
        out = Path(folder) / ("out" if given.out == "folder" else f"out.{given.out}")
        command = [
            sys.executable,
            __file__,
            "--workers",
            str(given.workers),
            "--child",
            f"{folder}/bundle",
            str(source),
            str(out),
        ]
        began = time.monotonic()
        lonely = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"SEEKRAY_HOME": f"{folder}/home"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=lonely)
        memory = Memory(process.pid)
        memory.start()
        text = process.communicate()[0]
        memory.join(5)
        if process.returncode:
            sys.exit(process.returncode)
        answer = json.loads(text.splitlines()[-1])
        last = memory.samples[len(memory.samples) // 4 :]
        print(json.dumps({
            "rows": answer["rows"], "rejected": answer["rejected"], "input": given.format, "output": given.out,
            "input_gb": round(source.stat().st_size / 1e9, 2), "wall_seconds": round(time.monotonic() - began, 1),
            "rows_per_second": round(answer["rows"] / answer["predict_seconds"]), "peak_pss_mib": round(memory.peak),
            "pss_mib_over_time": last[:: max(1, len(last) // 12)], "at_peak": memory.at_peak,
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
