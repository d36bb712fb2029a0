"""`seekray generate`: the same rows however they are cut, whoever makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from training_kit import experiment, prepare_for, run_here, write_table

from seekray.batch.generate import generate
from seekray.errors import UserError
from seekray.generator import Generator
from seekray.report import conclude
from seekray.storage import Storage
from seekray.tracking.spool import Tracker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gen")
    given = experiment(write_table(folder / "table.csv"), "rows", training={"epochs": 1})
    prepared = prepare_for(given)
    last, run = run_here(given, prepared, folder), Storage(str(folder))
    return folder / conclude(given, "0" * 12, run, prepared, last, Tracker(run, "t")).bundle


def test_rows_do_not_depend_on_how_they_are_cut(bundle: Path, tmp_path: Path) -> None:
    whole = Generator.load(bundle).generate(rows=1000, seed=3)
    assert generate(bundle, {"rows": 1000, "seed": 3}, str(tmp_path / "a.parquet"), part_rows=300) == {
        "rows": 1000, "out": str(tmp_path / "a.parquet"),
    }  # fmt: skip
    generate(bundle, {"rows": 1000, "seed": 3}, str(tmp_path / "folder"), part_rows=77)
    assert pq.read_table(tmp_path / "a.parquet").equals(whole)
    assert pads.dataset(tmp_path / "folder").to_table().equals(whole)
    assert not Generator.load(bundle).generate(rows=1000, seed=4).equals(whole)


def test_a_folder_is_gone_on_with(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    generate(bundle, {"rows": 500}, str(out), part_rows=100)
    (out / "part-000002.parquet").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    assert generate(bundle, {"rows": 500}, str(out))["rows"] == 500
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}.items()
    assert len(pads.dataset(out).to_table()) == 500
    with pytest.raises(UserError, match="other"):
        generate(bundle, {"rows": 500, "seed": 1}, str(out))


def test_text_files(bundle: Path, tmp_path: Path) -> None:
    whole = Generator.load(bundle).generate(rows=50)
    generate(bundle, {"rows": 50}, str(tmp_path / "a.csv"))
    generate(bundle, {"rows": 50}, str(tmp_path / "a.jsonl"))
    assert pacsv.read_csv(tmp_path / "a.csv").column_names == whole.column_names
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert pa.Table.from_pylist(lines, whole.schema).equals(whole)


def test_what_cannot_be_asked_for_is_refused(bundle: Path, tmp_path: Path) -> None:
    for request, words in (({"rows": 0}, "rows"), ({"row": 3}, "row"), ({"rows": 3, "where": {"nothing": "1"}}, "nothing")):
        with pytest.raises(UserError, match=words):
            generate(bundle, request, str(tmp_path / "a.csv"))


@pytest.mark.ray
def test_over_ray_the_rows_are_the_same(bundle: Path, tmp_path: Path, ray_cluster: None) -> None:
    generate(bundle, {"rows": 1000}, str(tmp_path / "0.parquet"), workers=0, part_rows=100)
    generate(bundle, {"rows": 1000}, str(tmp_path / "2.parquet"), workers=2, part_rows=100)
    assert pq.read_table(tmp_path / "0.parquet").equals(pq.read_table(tmp_path / "2.parquet"))
