"""From a file to arrays: what is fitted on what, what is rejected, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import KINDS, json_rows, picture, write

from seekray.data import prepare as preparing
from seekray.data.options import Data
from seekray.data.prepare import Prepared, prepare
from seekray.errors import DataError

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


def row_sets(p: Prepared) -> list[set[int]]:
    return [set(p.train.rows.tolist()), set(p.validation.rows.tolist()), set(p.held_out_rows.tolist())]


class TestWhole:
    @pytest.mark.parametrize("kind", ["random", "stratified", "group", "time", "column"])
    def test_no_row_in_two_splits_and_none_lost(self, tmp_path: Path, kind: str) -> None:
        x = np.arange(300)
        columns = {"x": x, "g": x // 3, "p": [["train", "val", "test"][i % 3] for i in x], "y": x % 2}
        by = {"group": "g", "time": "x", "column": "p"}.get(kind)
        p = run(table_file(tmp_path, columns), features=["x"], split={"kind": kind, "by": by})
        train, validation, test = row_sets(p)
        assert train | validation | test == set(range(300))
        assert len(train) + len(validation) + len(test) == 300
        assert p.held_out_name == "test"
        assert p.held_out["x"].to_pylist() == p.held_out_rows.tolist()
        again = run(tmp_path / "t.parquet", features=["x"], split={"kind": kind, "by": by})
        assert again.fingerprint == p.fingerprint
        assert row_sets(again) == row_sets(p)

    def test_fitted_on_training_rows_alone(self, simple: Path) -> None:
        p = run(simple)
        x = p.train.rows.astype(float)
        state = p.schema.features[0].state
        assert (state["mean"], state["std"]) == (x.mean(), x.std())
        assert p.schema.rows == len(x) == sum(p.schema.class_counts or [])
        np.testing.assert_allclose(p.validation.inputs["dense"][:, 0], (p.validation.rows - x.mean()) / x.std(), rtol=1e-5)
        # A category that only other rows have is unseen.
        columns = {"x": np.arange(40), "c": ["a"] * 36 + ["z"] * 4, "y": [0, 1] * 20}
        p = run(table_file(simple.parent, columns), split={"kind": "time", "by": "x", "test": 0.1, "validation": 0})
        assert p.schema.features[0].state["categories"] == ["a"]
        assert p.schema.transform(p.held_out)["categorical"].tolist() == [[1]] * 4

    def test_arrays_are_what_transform_gives(self, tmp_path: Path, mixed: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
        pq.write_table(mixed, tmp_path / "m.parquet", row_group_size=17)
        # Images cannot be missing; every other kind can.
        options: dict[str, Any] = {"target": "label", "features": KINDS, "key": "id", "split": {"kind": "stratified"}}
        monkeypatch.setattr(preparing, "CHUNK", 16)
        p = run(tmp_path / "m.parquet", **options)
        assert p.rows == 90
        assert not p.rejected
        for part in (p.train, p.validation):
            there = mixed.take(pa.array(part.rows))
            for name, tensor in p.schema.transform(there).items():
                np.testing.assert_array_equal(part.inputs[name], tensor.numpy())
            np.testing.assert_array_equal(part.targets, p.schema.encode_targets(there))
        held = mixed.take(pa.array(p.held_out_rows))
        assert p.held_out.select(mixed.column_names).to_pylist() == held.to_pylist()
        rows = json_rows(p.held_out, list(KINDS))
        got = p.schema.transform(p.schema.columns_from_rows(rows))
        for name, tensor in p.schema.transform(held).items():
            np.testing.assert_array_equal(got[name].numpy(), tensor.numpy())
        assert p.schema.key == ("id",)
        assert "id" in p.held_out.column_names

    def test_held_out_without_a_test(self, simple: Path) -> None:
        p = run(simple, split={"test": 0})
        assert (p.held_out_name, p.held_out_rows.tolist()) == ("validation", p.validation.rows.tolist())
        p = run(simple, split={"test": 0, "validation": 0})
        assert (p.held_out_name, len(p.held_out), len(p.validation.rows)) == ("train", 200, 0)
        assert p.validation.inputs["dense"].shape == (0, p.schema.dense_size)
        assert p.validation.inputs["categorical"].shape == (0, 1)
        assert any("no test rows" in w for w in p.warnings)

    def test_only_used_columns_are_read(self, simple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table = pq.read_table(simple).append_column("junk", pa.array([{"a": 1}] * 200))
        pq.write_table(table, simple)
        p = run(simple, features=["x"])
        assert p.held_out.column_names == ["x", "y"]
        p = run(simple, exclude=["junk", "c"])
        assert p.held_out.column_names == ["x", "y"]
        with pytest.raises(DataError, match=r"'junk' holds struct.*data\.exclude"):
            run(simple)

    def test_the_split_column_is_not_learned_from(self, simple: Path) -> None:
        p = run(simple, split={"kind": "group", "by": "c"})
        assert [f.name for f in p.schema.features] == ["x"]
        p = run(simple, features=["c", "x"], split={"kind": "group", "by": "c"})
        assert [f.name for f in p.schema.features] == ["x", "c"]

    def test_regression_multilabel_and_rows(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        path = table_file(
            tmp_path, {"x": rng.normal(size=60), "y": rng.normal(5, 3, 60), "a": [0, 1] * 30, "b": [True, False] * 30}
        )
        p = run(path, "regression", features=["x"], split={"kind": "stratified"})
        assert p.train.targets is not None
        assert p.train.targets.shape == (len(p.train.rows), 1)
        assert float(p.train.targets.mean()) == pytest.approx(0, abs=1e-6)
        p = run(path, "multilabel", target=["a", "b"], features=["x"], split={"kind": "stratified"})
        assert p.train.targets is not None
        assert (p.train.targets.shape[1], p.schema.num_outputs, p.schema.classes) == (2, 2, ["a", "b"])
        p = run(path, "rows", target=None)
        assert p.train.targets is None
        assert p.schema.num_outputs == p.schema.dense_size

    def test_image_folder(self, tmp_path: Path) -> None:
        for i in range(40):
            folder = tmp_path / ["cat", "dog"][i % 2]
            folder.mkdir(exist_ok=True)
            write(folder / f"{i:02}.png", picture((i * 6, 255 * (i % 2), 0)))
        options: dict[str, Any] = {"target": "label", "features": {"image": {"size": [4, 4]}}, "key": "path"}
        p = run(tmp_path, split={"kind": "stratified"}, **options)
        assert p.schema.classes == ["cat", "dog"]
        assert p.train.inputs["dense"].shape == (len(p.train.rows), 48)
        assert float(p.train.inputs["dense"].mean()) == pytest.approx(0, abs=0.01)
        write(tmp_path / "cat" / "00.png", b"broken")
        with pytest.raises(DataError, match=r"'image', row 0: .*does not decode"):
            run(tmp_path, **options)
        p = run(tmp_path, on_bad_row="skip", split={"kind": "stratified"}, **options)
        assert [(r["row"], r["column"], r["value"]) for r in p.rejected] == [(0, "image", "6 bytes")]


class TestFingerprint:
    def table(self, n: int = 500) -> pa.Table:
        rng = np.random.default_rng(0)
        return pa.table(
            {
                "x": [None if i % 7 == 0 else float(v) for i, v in enumerate(rng.normal(size=n))],
                "s": [None if i % 5 == 0 else "ab" * (i % 4) for i in range(n)],
                "b": [i % 3 == 0 for i in range(n)],
                "t": pa.array(np.arange(n), pa.timestamp("s")),
                "v": [[1.0] * (i % 3) for i in range(n)],
                "raw": [bytes([i % 256]) for i in range(n)],
            }
        )

    def test_chunks_order_of_columns_and_slices_do_not_matter(self) -> None:
        from seekray.data.fingerprint import content_hash

        table = self.table()
        want = content_hash(table)
        assert content_hash(pa.concat_tables([table.slice(0, 3), table.slice(3, 200), table.slice(203)])) == want
        assert content_hash(table.select(table.column_names[::-1])) == want
        assert content_hash(pa.concat_tables([table, table]).slice(500)) == want

    def test_any_change_matters(self) -> None:
        from seekray.data.fingerprint import content_hash

        table = self.table()
        seen = {content_hash(table), content_hash(table.slice(1)), content_hash(table.take([*range(1, 500), 0]))}
        for name in table.column_names:
            values = table[name].to_pylist()
            for row, value in ((1, None), (0, values[1]), (499, values[7])):
                changed = [*values[:row], value, *values[row + 1 :]]
                place = table.column_names.index(name)
                if changed != values:
                    seen.add(content_hash(table.set_column(place, name, pa.array(changed, table[name].type))))
        assert len(seen) >= 3 + 15
        moved = {"s": ["ab", "c"]}, {"s": ["a", "bc"]}, {"s": ["", "abc"]}, {"s": [None, "abc"]}
        assert len({content_hash(pa.table(t)) for t in moved}) == 4

    def test_of_a_run(self, simple: Path) -> None:
        base = run(simple).fingerprint
        assert base.keys() == {"schema", "rows", "content", "split"}
        assert json.loads(json.dumps(base)) == base
        seeded = run(simple, split={"seed": 1}).fingerprint
        assert (seeded["content"], seeded["split"] != base["split"]) == (base["content"], True)
        table = pq.read_table(simple)
        pq.write_table(table, simple, row_group_size=11)
        assert run(simple).fingerprint == base
        changed = table.set_column(0, "x", pa.array([*range(199), 0]))
        pq.write_table(changed, simple)
        now = run(simple).fingerprint
        assert (now["schema"], now["split"]) == (base["schema"], base["split"])
        assert now["content"] != base["content"]


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


class TestWarnings:
    def test_constant_infinite_many_categories_and_ids(self, tmp_path: Path) -> None:
        n = 100
        columns = {
            "user_id": range(n),
            "flat": [4.0] * n,
            "wild": [float("inf") if i < 5 else float(i) for i in range(n)],
            "many": [f"m{i % 50}" for i in range(n)],
            "y": [i % 2 for i in range(n)],
        }
        options: dict[str, Any] = {"many": {"max_categories": 10}, "user_id": {}, "flat": {}, "wild": {}}
        p = run(table_file(tmp_path, columns), features=options, split={"test": 0, "validation": 0})
        said = "\n".join(p.warnings)
        assert "'flat' is constant (4)" in said
        assert "'wild' has 5 infinite values" in said
        assert "'many' has 50 categories; the 10 most frequent" in said
        assert "'user_id'" in said
        assert p.schema.cardinalities == (12,)
        assert (p.train.inputs["dense"][:, 1] == 0).all()
        assert np.isfinite(p.train.inputs["dense"]).all()

    def test_nothing_odd_nothing_said(self, simple: Path) -> None:
        assert run(simple, exclude=["c"]).warnings == []


def test_five_hundred_rows_of_many_kinds_stay_small(tmp_path: Path) -> None:
    """Raw images are not all decoded to floats at once: what is allocated is the result and one chunk."""
    import tracemalloc

    n = 300
    blob = picture((9, 9, 9))
    path = table_file(tmp_path, {"image": [blob] * n, "y": [i % 2 for i in range(n)]})
    options = {"image": {"size": [64, 64]}}
    run(path, features=options)
    tracemalloc.start()
    p = run(path, features=options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    result = sum(a.inputs["dense"].nbytes for a in (p.train, p.validation))
    assert peak < 3.2 * result
