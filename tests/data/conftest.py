"""Tables of every kind, and files of them."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from seekray.data.options import Data
from seekray.data.prepared import Prepared
from seekray.data.sources import csv_files, json_files, open_source
from seekray.data.sources.source import Source
from seekray.data.tables.features import FeatureSchema
from seekray.data.tables.fitting import fit
from seekray.data.tables.prepare import prepare


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (12, 9), form: str = "PNG") -> bytes:
    """An encoded image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format=form)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def mixed() -> pa.Table:
    """90 rows with a column of every kind, missing values among them, and a target of three classes."""
    rng = np.random.default_rng(0)
    n = 90
    start = dt.datetime(2024, 2, 27, 22, 30, 15, 250_000)
    columns: dict[str, Any] = {
        "id": [f"row-{i}" for i in range(n)],
        "size": rng.normal(50, 10, n),
        "weight": [None if i % 9 == 4 else float(i) / 7 for i in range(n)],
        "rooms": pa.array([None if i % 11 == 3 else i % 5 for i in range(n)], pa.int64()),
        "code": pa.array([None if i % 13 == 5 else i % 4 for i in range(n)], pa.int64()),
        "colour": [None if i % 17 == 6 else ["red", "blue", "grün"][i % 3] for i in range(n)],
        "sunny": [None if i % 19 == 7 else i % 2 == 0 for i in range(n)],
        "seen": [None if i % 23 == 8 else start + dt.timedelta(hours=7 * i) for i in range(n)],
        "note": [None if i % 29 == 9 else f"The {i} quick, brown foxes jumped over dog {i % 7}" for i in range(n)],
        "photo": [picture((i, 2 * i, 255 - i)) for i in range(n)],
        "spot": pa.array([None if i == 40 else [i / 3, -i, 1.0] for i in range(n)], pa.list_(pa.float64())),
        "label": [["a", "b", "c"][(i * 7) % 3] for i in range(n)],
    }
    return pa.table(columns)


KINDS = {
    "size": "numeric", "weight": "numeric", "rooms": "numeric", "code": "categorical", "colour": "categorical",
    "sunny": "boolean", "seen": "timestamp", "note": "text", "photo": {"kind": "image", "size": [4, 3]},
    "spot": "vector",
}  # fmt: skip


def as_json(value: Any) -> Any:
    """A value as it comes in a request."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, (dt.date, dt.datetime)) else value


def json_rows(table: pa.Table, names: list[str]) -> list[dict[str, Any]]:
    """Rows after a trip through JSON text."""
    rows = table.select(names).to_pylist()
    found: list[dict[str, Any]] = json.loads(json.dumps([{k: as_json(v) for k, v in row.items()} for row in rows]))
    return found


def write(path: Path, text: str | bytes) -> str:
    """A file's path, after writing it."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


TASK = "classification"


def run(source: object, task: str = TASK, **options: Any) -> Prepared:
    return prepare(Data(**{"source": str(source), "target": "y", **options}), task)


def table_file(folder: Path, columns: dict[str, Any], name: str = "t.parquet") -> Path:
    path = folder / name
    table = pa.table(columns)
    pq.write_table(table, path) if name.endswith("parquet") else pacsv.write_csv(table, path)
    return path


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    """200 rows, x is the row number, two classes."""
    x = np.arange(200)
    return table_file(tmp_path, {"x": x, "c": [f"c{i % 7}" for i in x], "y": [["no", "yes"][i % 2] for i in x]})


def source_of(path: object, **options: Any) -> Source:
    return open_source(Data(source=str(path), **options))


def rows(source: Source, columns: list[str] | None = None) -> list[dict[str, Any]]:
    return [row for batch in source.batches(columns) for row in batch.to_pylist()]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is read as a large one is: in many blocks."""
    for module, block in ((csv_files, 4096), (json_files, 4096)):
        monkeypatch.setattr(module, "WHOLE", 0)
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "HEAD", block)


@pytest.fixture(scope="session")
def plain(mixed: pa.Table) -> pa.Table:
    """What a CSV file can hold."""
    return mixed.select(["id", "size", "weight", "rooms", "colour", "sunny", "note", "label"])


def data(**options: Any) -> Data:
    return Data(**{"source": "unused.csv", **options})


def schema_of(columns: dict[str, Any], features: dict[str, Any] | None = None, **options: Any) -> FeatureSchema:
    return fit(pa.table(columns), data(features=features, **options), "rows")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
