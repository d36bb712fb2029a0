"""Bad data: a clear error, or a counted and listed rejection; never a traceback, never a silent drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import TASK, run, table_file, write

from seekray.errors import DataError


class TestBadData:
    def csv(self, folder: Path, rows: list[str], header: str = "x,y") -> str:
        return write(folder / "bad.csv", "\n".join([header, *rows]) + "\n")

    def test_a_text_in_a_numeric_column(self, tmp_path: Path) -> None:
        rows = [f"{i},{i % 2}" for i in range(999)]
        rows.insert(500, "abc,1")
        path = self.csv(tmp_path, rows)
        for options in ({}, {"features": {"x": "numeric"}}):
            with pytest.raises(DataError, match=r"'x', row 500: expected a number, got 'abc'.*on_bad_row: skip") as error:
                run(path, **options)
            assert error.value.field == "x"
        p = run(path, on_bad_row="skip")
        assert p.rejected == [{"row": 500, "column": "x", "value": "abc", "reason": "expected a number"}]
        assert p.rows == 999
        assert any("1 row is left out" in w and "row 500" in w for w in p.warnings)
        used = np.concatenate([p.train.rows, p.validation.rows, p.held_out_rows])
        assert sorted(used.tolist()) == [i for i in range(1000) if i != 500]
        assert p.held_out.schema.field("x").type == pa.float64()
        values = dict(zip(p.held_out_rows.tolist(), p.held_out["x"].to_pylist(), strict=True))
        assert all(v == (row if row < 500 else row - 1) for row, v in values.items())
        p.schema.transform(p.schema.columns_from_rows([{"x": v} for v in p.held_out["x"].to_pylist()]))

    @pytest.mark.parametrize(
        ("task", "target", "bad", "reason"),
        [
            (TASK, ["a", "b"], "", "the target is missing"),
            ("regression", ["1.5", "2"], "", "the target is missing"),
            ("regression", ["1.5", "2"], "NaN", "the target is missing"),
            ("regression", ["1.5", "2"], "inf", "the target is not finite"),
            ("regression", ["1.5", "2"], "high", "expected a number"),
            ("multilabel", ["0", "1"], "2", "expected true or false"),
            ("multilabel", ["0", "1"], "", "the target is missing"),
        ],
    )
    def test_targets(self, tmp_path: Path, task: str, target: list[str], bad: str, reason: str) -> None:
        rows = [f"{i},{target[i % 2]}" for i in range(40)] + [f"7,{bad}"]
        path = self.csv(tmp_path, rows)
        options: dict[str, Any] = {"target": ["y"]} if task == "multilabel" else {}
        with pytest.raises(DataError, match=f"'y', row 40: {reason}"):
            run(path, task, **options)
        p = run(path, task, on_bad_row="skip", **options)
        assert [(r["row"], r["column"]) for r in p.rejected] == [(40, "y")]
        assert reason in p.rejected[0]["reason"]
        assert p.rows == 40

    def test_nan_target_in_parquet(self, tmp_path: Path) -> None:
        path = table_file(tmp_path, {"x": range(21), "y": [0.0, 1.0] * 10 + [float("nan")]})
        with pytest.raises(DataError, match="'y', row 20: the target is"):
            run(path)
        assert run(path, on_bad_row="skip").schema.classes == [0, 1]

    @pytest.mark.parametrize(
        ("kind", "good", "bad"),
        [
            ("timestamp", "2024-01-0{d}", "soon"),
            ("boolean", "yes", "perhaps"),
        ],
    )
    def test_other_kinds(self, tmp_path: Path, kind: str, good: str, bad: str) -> None:
        rows = [f"{good.format(d=i % 9 + 1)},{i % 2}" for i in range(40)] + [f"{bad},1"]
        path = self.csv(tmp_path, rows)
        with pytest.raises(DataError, match=f"'x', row 40: expected .*got '{bad}'"):
            run(path, features={"x": kind})
        p = run(path, features={"x": kind}, on_bad_row="skip")
        assert [r["row"] for r in p.rejected] == [40]

    def test_vectors_of_the_wrong_length(self, tmp_path: Path) -> None:
        vectors = [[1.0, float(i)] for i in range(30)] + [[1.0]]
        path = table_file(tmp_path, {"v": vectors, "y": [i % 2 for i in range(31)]})
        with pytest.raises(DataError, match="'v', row 30: expected a list of 2 numbers, 1 numbers given"):
            run(path)
        assert run(path, on_bad_row="skip").rows == 30

    def test_malformed_rows_keep_the_numbers_of_the_others(self, tmp_path: Path) -> None:
        rows = [f"{i},{i % 2}" for i in range(50)]
        rows[10] = "1,2,3"
        rows[20] = "20,"
        p = run(self.csv(tmp_path, rows), on_bad_row="skip")
        assert [(r["row"], r["column"]) for r in p.rejected] == [(10, None), (20, "y")]
        assert dict(zip(p.held_out_rows.tolist(), p.held_out["x"].to_pylist(), strict=True)) == {
            int(r): int(r) for r in p.held_out_rows
        }
        with pytest.raises(DataError, match="row 10: expected 2 values, the row has 3"):
            run(tmp_path / "bad.csv")

    def test_split_columns(self, tmp_path: Path) -> None:
        rows = [f"{i},{i % 2},2024-01-{i + 1:02}" for i in range(28)] + ["28,1,"]
        path = self.csv(tmp_path, rows, "x,y,day")
        with pytest.raises(DataError, match="'day', row 28: the time to split by is missing"):
            run(path, split={"kind": "time", "by": "day"})
        assert run(path, split={"kind": "time", "by": "day"}, on_bad_row="skip").rows == 28
        assert run(path, split={"kind": "time", "by": "day"}, on_bad_row="skip").rejected[0]["row"] == 28

    def test_everything_rejected(self, tmp_path: Path) -> None:
        path = self.csv(tmp_path, ["a,1", "b,0"])
        with pytest.raises(DataError, match=r"all 2 rows are rejected.*expected a number, got 'a'"):
            run(path, features={"x": "numeric"}, on_bad_row="skip")

    def test_header_only_and_empty(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no rows"):
            run(self.csv(tmp_path, []))
        with pytest.raises(DataError, match="is empty"):
            run(write(tmp_path / "e.csv", ""))
        pq.write_table(pa.table({"x": pa.array([], pa.int64()), "y": pa.array([], pa.int64())}), tmp_path / "e.parquet")
        with pytest.raises(DataError, match="no rows"):
            run(tmp_path / "e.parquet")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target": "lable"}, r"data\.target: column 'lable' .*did you mean 'label'"),
            ({"features": ["x", "zz"]}, r"data\.features: column 'zz'"),
            ({"key": "idd"}, r"data\.key: column 'idd' .*did you mean 'id'"),
            ({"exclude": ["xx"]}, r"data\.exclude: column 'xx'"),
            ({"split": {"kind": "group", "by": "g"}}, r"data\.split\.by: column 'g'"),
        ],
    )
    def test_columns_that_are_not_there(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        path = self.csv(tmp_path, ["1,2,a", "2,3,b"], "id,x,label")
        with pytest.raises(DataError, match=message):
            run(path, **{"target": "label", **options})

    def test_nothing_to_learn_from(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no column is left"):
            run(self.csv(tmp_path, ["1,0", "2,1"]), key="x")

    def test_classes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"one class only \('a'\)"):
            run(self.csv(tmp_path, [f"{i},a" for i in range(20)]))
        rows = [f"{i},{'rare' if i == 0 else 'ab'[i % 2]}" for i in range(40)]
        path = self.csv(tmp_path, rows)
        split = {"kind": "time", "by": "x"}
        assert "rare" in (run(path, features=["x"], split=split).schema.classes or [])
        path = self.csv(tmp_path, [*rows[::-1][:-1], "99,rare"])
        with pytest.raises(DataError, match=r"class 'rare' of 'y' has no training row \(1 in all\).*stratified"):
            run(path, features=["x"], split=split)
        assert "rare" in (run(path, split={"kind": "stratified"}).schema.classes or [])
        with pytest.raises(DataError, match="task: regression"):
            run(self.csv(tmp_path, [f"{i},{i / 7}" for i in range(200)]))

    def test_truncated_parquet(self, simple: Path) -> None:
        simple.write_bytes(simple.read_bytes()[:300])
        with pytest.raises(DataError, match="may be truncated"):
            run(simple)

    @pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow"])
    def test_noise_is_never_a_traceback(self, tmp_path: Path, name: str) -> None:
        rng = np.random.default_rng(0)
        for size in (1, 10, 100, 5000):
            with pytest.raises(DataError):
                run(write(tmp_path / name, b"" if size == 1 else rng.bytes(size)))
