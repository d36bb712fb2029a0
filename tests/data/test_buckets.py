"""Data and answers in an object store: init, train and predict over a real S3 server."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import rows

from seekray import inspect, trainer
from seekray.batch.predict import predict
from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.errors import SeekrayError, UserError
from seekray.experiment_file import load
from seekray.settings import settings
from seekray.storage import Storage, filesystem

pytestmark = pytest.mark.e2e


def houses(count: int = 200) -> pa.Table:
    index = range(count)
    return pa.table({
        "house": [f"h{i}" for i in index], "area": [50.0 + i * 37 % 100 for i in index],
        "place": [["hills", "old town"][i % 2] for i in index],
        "price": [3.0 * (50 + i * 37 % 100) + 40 * (i % 2) for i in index],
    })  # fmt: skip


def put(where: str, table: pa.Table) -> str:
    fs, path = filesystem(where)
    with fs.open_output_stream(path, compression=None) as stream:
        pacsv.write_csv(table, stream) if where.endswith(".csv") else pq.write_table(table, stream)
    return where


@pytest.mark.slow
def test_from_a_bucket_to_a_bucket(bucket: str, home: Path, tmp_path: Path) -> None:
    table = houses()
    csv = put(f"{bucket}/data/houses.csv", table)
    for place in ("hills", "old town"):
        part = table.filter(pa.compute.equal(table["place"], place)).drop_columns("place")
        put(f"{bucket}/houses/place={place.replace(' ', '%20')}/a.parquet", part)
    files = {"csv": csv, "parquet": f"{bucket}/houses"}
    for name, source in files.items():
        file = tmp_path / f"{name}.yaml"
        found = inspect.init(source, ["price"], file)
        assert (found["rows"], {f["name"]: f["kind"] for f in found["features"]}) == (
            200, {"area": "numeric", "place": "categorical"},
        )  # fmt: skip
        experiment = load(file, ["training.epochs=2", "register=null", "data.key=house"])
        assert not inspect.dry_run(experiment)["refused"]
    result = trainer.train(experiment, settings())
    for source in files.values():
        out = f"{bucket}/answers/{len(source)}"
        assert predict(result.bundle, Data(source=source), f"{out}/a.csv", workers=0)["rows"] == 200
        done = predict(result.bundle, Data(source=source), f"{out}/parts", workers=0, part_rows=64)
        assert (done["rows"], done["rejected"]) == (200, 0)
        one, parts = rows(open_source(Data(source=f"{out}/a.csv"))), rows(open_source(Data(source=f"{out}/parts")))
        assert [r["house"] for r in one] == [r["house"] for r in parts]
        assert [r["prediction"] for r in one] == pytest.approx([r["prediction"] for r in parts])
        names = Storage(out).files()
        assert "parts/part-000003.parquet" in names
        assert "a.csv.rejected.jsonl" not in names


def test_what_is_not_there(bucket: str) -> None:
    with pytest.raises(SeekrayError, match=rf"{bucket}/none.csv is not there"):
        open_source(Data(source=f"{bucket}/none.csv"))
    with pytest.raises(SeekrayError, match="s3://no-such-bucket-here"):
        open_source(Data(source="s3://no-such-bucket-here/x.csv"))


@pytest.mark.slow  # waits for what does not come
def test_google_without_credentials_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:9")  # nobody there
    monkeypatch.setenv("HOME", "/nonexistent")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"gs://some-bucket/x.csv: Google Cloud gave no access; log in"):
        open_source(Data(source="gs://some-bucket/x.csv"))
    assert time.monotonic() - began < 30
