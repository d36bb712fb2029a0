"""From a file to arrays: what is fitted on what, what is rejected, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import KINDS, json_rows, picture, run, table_file, write

from seekray.data.prepared import Prepared
from seekray.data.tables import prepare as preparing
from seekray.errors import DataError


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

    def test_what_lies_under_a_null_does_not_matter(self) -> None:
        from seekray.data.fingerprint import content_hash

        hidden = np.array([False, True, False])
        for a, b in (([1, 2, 3], [1, 9, 3]), ([1.0, 2.0, 3.0], [1.0, np.nan, 3.0])):
            columns = [
                pa.Array.from_buffers(t.type, 3, [pa.array(~hidden).buffers()[1], t.buffers()[1]])
                for t in map(pa.array, (a, b))
            ]
            assert columns[0].to_pylist() == columns[1].to_pylist() == [a[0], None, a[2]]
            assert content_hash(pa.table({"x": columns[0]})) == content_hash(pa.table({"x": columns[1]}))

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


def test_memory_of_images(tmp_path: Path) -> None:
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
