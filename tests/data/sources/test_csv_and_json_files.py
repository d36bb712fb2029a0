"""CSV and JSON lines: types of the whole file in small blocks, quotes, delimiters, damaged rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.data.conftest import rows, source_of, write

from seekray.data.sources.written import find_delimiter
from seekray.errors import DataError


class TestCsv:
    def types(self, path: str, **options: Any) -> dict[str, str]:
        return {f.name: str(f.type) for f in source_of(path, **options).table().schema}

    @pytest.mark.parametrize("blocks", [False, True])
    @pytest.mark.parametrize(
        ("first", "late", "kind", "last"),
        [
            ("1", "2.5", "double", 2.5),
            ("1", "abc", "string", "abc"),
            ("1.5", "abc", "string", "abc"),
            ("", "7", "int64", 7),
            ("", "7.5", "double", 7.5),
            ("", "abc", "string", "abc"),
            ("2024-01-01", "never", "string", "never"),
            ("true", "7", "string", "7"),
            ("1", "99999999999999999999", "double", 1e20),
        ],
    )
    def test_type_of_the_whole_file(
        self, tmp_path: Path, first: str, late: str, kind: str, last: object, blocks: bool, request: pytest.FixtureRequest
    ) -> None:
        if blocks:
            request.getfixturevalue("small_blocks")
        n = 20_000
        path = write(tmp_path / "t.csv", "n,x\n" + "".join(f"{i},{first}\n" for i in range(n)) + f"{n},{late}\n")
        batches = list(source_of(path).batches())
        assert {str(b.schema.field("x").type) for b in batches} == {kind}
        assert batches[-1].column("x")[-1].as_py() == last
        assert self.types(path)["x"] == kind
        assert sum(b.num_rows for b in batches) == n + 1

    def test_streaming_is_in_blocks(self, tmp_path: Path, small_blocks: None) -> None:
        path = write(tmp_path / "t.csv", "x,y\n" + "".join(f"{i},{i}\n" for i in range(5000)))
        assert len(list(source_of(path).batches(["x"]))) > 5

    def test_types_that_are_asked_for(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "x,y\n1,2\n3,4\n")
        (batch,) = source_of(path).batches(["x", "y"], {"x": pa.float64(), "y": pa.string()})
        assert batch.to_pylist() == [{"x": 1.0, "y": "2"}, {"x": 3.0, "y": "4"}]
        path = write(tmp_path / "u.csv", "x\n1\nabc\n")
        (batch,) = source_of(path).batches(["x"], {"x": pa.float64()})
        assert batch.to_pylist() == [{"x": "1"}, {"x": "abc"}]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_delimiter_is_found(self, tmp_path: Path, delimiter: str) -> None:
        text = "a,b,c\n1,'x, y',2.5\n2,z,3\n".replace("'", '"').replace(",", delimiter).replace(f"x{delimiter} y", "x, y; z")
        assert source_of(write(tmp_path / "t.csv", text)).table().to_pylist()[0] == {"a": 1, "b": "x, y; z", "c": 2.5}
        assert find_delimiter("one\n1\n2\n") == ","

    @pytest.mark.parametrize("types", [None, {"id": pa.int64(), "note": pa.string()}])
    def test_a_row_longer_than_a_block_late_in_the_file(self, tmp_path: Path, types: Any, small_blocks: None) -> None:
        notes = ["a" * 30] * 2000
        notes[1500] = "b" * 200_000
        path = tmp_path / "long.csv"
        path.write_text("id,note\n" + "".join(f"{i},{note}\n" for i, note in enumerate(notes)))
        found = pa.Table.from_batches(source_of(path).batches(types=types))
        assert found.column("id").to_pylist() == list(range(2000))
        assert found.column("note").to_pylist() == notes

    def test_quoted_newlines_and_bom(self, tmp_path: Path, small_blocks: None) -> None:
        body = "".join(f'{i},"line one\nline, ""two"" {i}"\n' for i in range(2000))
        path = write(tmp_path / "t.csv", "\ufeffn,text\n" + body)
        found = rows(source_of(path))
        assert len(found) == 2000
        assert found[-1] == {"n": 1999, "text": 'line one\nline, "two" 1999'}

    def test_a_row_longer_than_a_block(self, tmp_path: Path) -> None:
        long = "x" * (3 << 20)
        path = write(tmp_path / "t.csv", f'n,text\n1,short\n2,"{long}"\n3,\n')
        assert [(r["n"], len(r["text"] or "")) for r in rows(source_of(path))] == [(1, 5), (2, 3 << 20), (3, 0)]

    def test_missing_values_and_codes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "zip,n,s\n02134,NA,a\n10001,1,\n,NaN,null\n")
        assert source_of(path).table().to_pylist() == [
            {"zip": "02134", "n": None, "s": "a"},
            {"zip": "10001", "n": 1, "s": None},
            {"zip": None, "n": None, "s": None},
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            ("\n\n", "is empty"),
            ("1,2\n3,4\n", "first line is numbers"),
            ("a,a\n1,2\n", "has 'a' twice"),
            ("a,b\n1,2\n1,2,3\n", "row 1: expected 2 values, the row has 3"),
            (b"a,b\n1,\xff\xfe\n", "column 'b' is not UTF-8; set data.encoding"),
        ],
    )
    def test_damage(self, tmp_path: Path, text: str | bytes, message: str) -> None:
        with pytest.raises(DataError, match=message):
            source_of(write(tmp_path / "t.csv", text)).table()

    @pytest.mark.parametrize("blocks", [False, True])
    def test_rows_of_the_wrong_width_are_listed(self, tmp_path: Path, blocks: bool, request: pytest.FixtureRequest) -> None:
        if blocks:
            request.getfixturevalue("small_blocks")
        path = write(tmp_path / "t.csv", "a,b\n" + "1,2\n" * 3000 + "1,2,3\n" + "5,6\n" * 10 + "7\n")
        source = source_of(path, on_bad_row="skip")
        assert len(rows(source)) == 3010
        assert [(m["row"], m["value"]) for m in source.malformed] == [(3000, "1,2,3"), (3011, "7")]

    @pytest.mark.parametrize("blocks", [False, True])
    def test_row_numbers_go_on_over_files(self, tmp_path: Path, blocks: bool, request: pytest.FixtureRequest) -> None:
        if blocks:
            request.getfixturevalue("small_blocks")
        write(tmp_path / "1.csv", "a,b\n1\n1,2\n1,2\n")
        write(tmp_path / "2.csv", "a,b\n1,2\n1,2,3\n1,2\n")
        write(tmp_path / "3.csv", "a,b\n1,2\n1,2,3\n")
        source = source_of(tmp_path, on_bad_row="skip")
        assert len(rows(source)) == 5
        assert [m["row"] for m in source.malformed] == [0, 4, 7]

    def test_several_files(self, tmp_path: Path, small_blocks: None) -> None:
        write(tmp_path / "1.csv", "a,b\n1,x\n")
        write(tmp_path / "2.csv", "a,b\n2.5,y\n")
        assert rows(source_of(tmp_path)) == [{"a": 1.0, "b": "x"}, {"a": 2.5, "b": "y"}]
        assert source_of(tmp_path).table().to_pylist() == rows(source_of(tmp_path))


class TestJson:
    @pytest.mark.parametrize("blocks", [False, True])
    def test_types_and_names_of_all_rows(self, tmp_path: Path, blocks: bool, request: pytest.FixtureRequest) -> None:
        if blocks:
            request.getfixturevalue("small_blocks")
        lines = [json.dumps({"a": i, "b": i, "c": [1, 2]}) for i in range(2000)]
        lines += [json.dumps({"a": 1.5, "b": "x", "late": True}), ""]
        source = source_of(write(tmp_path / "t.jsonl", "\n".join(lines)))
        (last,) = rows(source, ["a", "b", "late"])[-1:]
        assert last == {"a": 1.5, "b": "x", "late": True}
        assert rows(source, ["a", "b", "late"])[0] == {"a": 0.0, "b": "0", "late": None}
        assert len({b.schema for b in source.batches(["a", "b"])}) == 1

    def test_row_numbers_in_small_blocks(self, tmp_path: Path, small_blocks: None) -> None:
        path = write(tmp_path / "t.jsonl", '{"a": 1}\n' * 3000 + "no\n" + '{"a": 1}\n' * 1000 + "[]\n")
        with pytest.raises(DataError, match="row 3000: not JSON"):
            rows(source_of(path))
        source = source_of(path, on_bad_row="skip")
        assert len(rows(source)) == 4000
        assert [m["row"] for m in source.malformed] == [3000, 4001]

    def test_mixed_within_a_block(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.jsonl", '{"a": 1, "b": true}\n{"a": "x", "b": null}\n{"a": 2.5}\n')
        assert [r["a"] for r in rows(source_of(path))] == ["1", "x", "2.5"]

    def test_damage(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.jsonl", '{"a": 1}\n{"a": \n[3]\n{"a": 4}\n')
        with pytest.raises(DataError, match="row 1: not JSON"):
            source_of(path).table()
        source = source_of(path, on_bad_row="skip")
        assert rows(source) == [{"a": 1}, {"a": 4}]
        assert [m["row"] for m in source.malformed] == [1, 2]
        with pytest.raises(DataError, match="is not JSON"):
            source_of(write(tmp_path / "t.json", '[{"a": 1}')).table()
