"""Every format gives the same rows, in batches, of the columns asked for only; damage is a clear error."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import as_json, picture, rows, source_of, write

from seekray.errors import DataError


class TestSamples:
    @pytest.mark.parametrize("name", ["digits", "wine", "breast-cancer", "diabetes"])
    def test_equal_to_scikit_learn(self, name: str) -> None:
        from sklearn import datasets

        load = {"digits": datasets.load_digits, "wine": datasets.load_wine, "breast-cancer": datasets.load_breast_cancer}
        expected = load[name]() if name in load else datasets.load_diabetes(scaled=False)
        source = source_of(f"sample:{name}")
        table = source.table()
        target = "progression" if name == "diabetes" else "label"
        names = [n.replace(" ", "_").replace("/", "_") for n in expected.feature_names]
        assert table.column_names == [*names, target]
        np.testing.assert_array_equal(np.stack([table[n].to_numpy() for n in names], 1), expected.data)
        answers = table[target].to_pylist()
        if name in ("wine", "breast-cancer"):
            assert answers == [str(expected.target_names[t]) for t in expected.target]
        else:
            assert answers == expected.target.tolist()
        assert source.count() == table.num_rows == len(expected.data)
        assert source.paths == []
        assert "BSD" in source.description or "CC BY" in source.description

    def test_scikit_learn_is_not_imported(self) -> None:
        code = (
            "import sys; from seekray.data.sources import open_source; from seekray.data.options import Data; "
            "open_source(Data(source='sample:digits')).table(); assert not {'sklearn', 'torch'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_unknown(self) -> None:
        with pytest.raises(DataError, match=r"no sample:digit, .*did you mean sample:digits"):
            source_of("sample:digit")


class TestFormats:
    @pytest.fixture(params=["csv", "csv.gz", "parquet", "jsonl", "json", "arrow", "stream", "folder"])
    def file(self, request: pytest.FixtureRequest, tmp_path: Path, plain: pa.Table) -> Path:
        form = request.param
        path = tmp_path / f"data.{form}"
        if form.startswith("csv"):
            pacsv.write_csv(plain, tmp_path / "data.csv")
            if form == "csv.gz":
                path.write_bytes(gzip.compress((tmp_path / "data.csv").read_bytes()))
        elif form == "parquet":
            pq.write_table(plain, path, row_group_size=20)
        elif form.startswith("json"):
            lines = [json.dumps({k: as_json(v) for k, v in row.items()}) for row in plain.to_pylist()]
            path.write_text("\n".join(lines) if form == "jsonl" else "[" + ",".join(lines) + "]")
        elif form == "folder":
            path.mkdir()
            pq.write_table(plain.slice(0, 50), path / "a.parquet")
            pq.write_table(plain.slice(50), path / "b.parquet")
            (path / "_SUCCESS").write_text("")
        else:
            opened = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
            path = path.with_suffix(".arrow")
            with pa.OSFile(str(path), "wb") as out, opened(out, plain.schema) as writer:
                writer.write_table(plain, max_chunksize=20)
        return path

    def test_same_rows_everywhere(self, file: Path, plain: pa.Table) -> None:
        source = source_of(file)
        assert source.table().to_pylist() == plain.to_pylist()
        assert rows(source) == plain.to_pylist()
        assert source.schema.names == plain.column_names
        assert source.bytes
        assert source.paths

    def test_same_rows_in_small_blocks(self, file: Path, plain: pa.Table, small_blocks: None) -> None:
        source = source_of(file)
        batches = list(source.batches())
        assert pa.Table.from_batches(batches).to_pylist() == plain.to_pylist()
        assert source.table().to_pylist() == plain.to_pylist()

    def test_only_some_columns_in_the_order_asked(self, file: Path, plain: pa.Table) -> None:
        for found in (next(iter(source_of(file).batches(["label", "size"]))), source_of(file).table(["label", "size"])):
            assert found.schema.names == ["label", "size"]
            assert found.to_pylist()[:3] == plain.select(["label", "size"]).to_pylist()[:3]

    def test_a_column_that_is_not_there(self, file: Path) -> None:
        with pytest.raises(DataError, match=r"'lable' is not in the data.*did you mean 'label'"):
            source_of(file).table(["lable"])


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    """Another column may be damaged, and nobody notices."""
    noise = [np.random.default_rng(i).bytes(500).hex() for i in range(500)]
    table = pa.table({"a": np.arange(500), "b": noise, "c": np.arange(500)})
    pq.write_table(table, tmp_path / "t.parquet", compression="gzip", use_dictionary=False)
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    pacsv.write_csv(table, tmp_path / "t.csv")
    for name in ("t.parquet", "t.arrow", "t.csv"):
        whole = bytearray((tmp_path / name).read_bytes())
        middle = len(whole) // 2
        whole[middle : middle + 50] = b"\xff" * 50
        (tmp_path / name).write_bytes(bytes(whole))
        assert source_of(tmp_path / name).table(["c", "a"]).to_pylist() == table.select(["c", "a"]).to_pylist()
        with pytest.raises(DataError):
            source_of(tmp_path / name).table()
    # An image that nobody asks for is not opened.
    (tmp_path / "images" / "cat").mkdir(parents=True)
    write(tmp_path / "images" / "cat" / "1.png", picture((1, 2, 3)))
    images = source_of(tmp_path / "images")
    (tmp_path / "images" / "cat" / "1.png").unlink()
    assert rows(images, ["label"]) == [{"label": "cat"}]
    with pytest.raises(DataError, match="is not there"):
        rows(images)


class TestTyped:
    def test_hive_partitions(self, tmp_path: Path) -> None:
        for year, name in ((2023, "a"), (2024, "b")):
            folder = tmp_path / f"year={year}" / f"site={name}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"x": [year * 1.0 if year == 2023 else year]}), folder / "p.parquet")
        source = source_of(tmp_path)
        assert rows(source, ["x", "year", "site"]) == [
            {"x": 2023.0, "year": 2023, "site": "a"},
            {"x": 2024.0, "year": 2024, "site": "b"},
        ]
        assert source.count() == 2

    def test_whole_numbers_in_one_file_fractions_in_the_next(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"x": [1.5]}), tmp_path / "b.parquet")
        assert rows(source_of(tmp_path)) == [{"x": 1.0}, {"x": 1.5}]

    def test_types_become_plain(self, tmp_path: Path) -> None:
        import decimal

        table = pa.table(
            {
                "d": pa.array([decimal.Decimal("1.50")]),
                "c": pa.array(["x"]).dictionary_encode(),
                "h": pa.array([np.float16(0.5)]),
                "v": pa.array(["long enough for a view"], pa.string_view()),
            }
        )
        with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
        found = source_of(tmp_path / "t.arrow").table()
        assert [str(t) for t in found.schema.types] == ["double", "string", "float", "string"]
        assert found.to_pylist() == [{"d": 1.5, "c": "x", "h": 0.5, "v": "long enough for a view"}]

    @pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
    def test_truncated(self, tmp_path: Path, name: str, plain: pa.Table) -> None:
        path = tmp_path / name
        if name == "t.parquet":
            pq.write_table(plain, path)
        else:
            with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, plain.schema) as writer:
                writer.write_table(plain)
        whole = path.read_bytes()
        for cut in (whole[: len(whole) // 2], whole[:10], whole[:-3]):
            path.write_bytes(cut)
            with pytest.raises(DataError, match="may be truncated"):
                source_of(path).table()

    def test_damaged_in_the_middle(self, tmp_path: Path, plain: pa.Table) -> None:
        path = tmp_path / "t.parquet"
        pq.write_table(plain, path, write_page_checksum=True, compression="gzip")
        whole = bytearray(path.read_bytes())
        whole[60:200] = b"\xff" * 140
        path.write_bytes(bytes(whole))
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            list(source_of(path).batches())


class TestFolders:
    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        for i, (label, form) in enumerate((("cat", "PNG"), ("cat", "JPEG"), ("dog", "PNG"))):
            folder = tmp_path / label
            folder.mkdir(exist_ok=True)
            write(folder / f"{i}.{form.lower()}", picture((i, 0, 0), form=form))
        write(tmp_path / "cat" / ".hidden.png", b"")
        return tmp_path

    def test_images_by_class(self, images: Path) -> None:
        source = source_of(images)
        found = rows(source)
        assert [(r["label"], r["path"]) for r in found] == [("cat", "cat/0.png"), ("cat", "cat/1.jpeg"), ("dog", "dog/2.png")]
        assert found[0]["image"] == (images / "cat" / "0.png").read_bytes()
        assert source.count() == 3
        assert not source.warnings

    def test_images_without_a_class_and_other_files(self, images: Path) -> None:
        write(images / "9.png", picture((1, 1, 1)))
        write(images / "read.me", "x")
        source = source_of(images)
        assert rows(source, ["label"])[0] == {"label": None}
        assert "read.me" in source.warnings[0]

    def test_nothing_there(self, tmp_path: Path) -> None:
        write(tmp_path / "data.csv", "a\n1\n")
        with pytest.raises(DataError, match=r"dta.csv is not there; did you mean 'data.csv'"):
            source_of(tmp_path / "dta.csv")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="has no data files"):
            source_of(tmp_path / "empty")
        pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
        with pytest.raises(DataError, match="files of csv and parquet"):
            source_of(tmp_path)
        with pytest.raises(DataError, match="no known format"):
            source_of(write(tmp_path / "x.bin", b"\x00\x01"))
        for name in ("e.csv", "e.parquet", "e.jsonl", "e.arrow"):
            with pytest.raises(DataError, match="is empty"):
                source_of(write(tmp_path / name, ""))

    def test_format_by_content(self, tmp_path: Path, plain: pa.Table) -> None:
        pq.write_table(plain, tmp_path / "noname")
        assert source_of(tmp_path / "noname").table().num_rows == 90
        assert rows(source_of(write(tmp_path / "lines", '{"a": 1}\n'))) == [{"a": 1}]
        assert rows(source_of(write(tmp_path / "commas", "a,b\n1,2\n"))) == [{"a": 1, "b": 2}]

    def test_file_uri(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "a\n1\n")
        assert rows(source_of(f"file://{path}")) == [{"a": 1}]
