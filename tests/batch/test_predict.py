"""Batch prediction: order, parts, resume, bad rows, and equal answers with and without Ray."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch

from seekray import bundle as bundles
from seekray.batch.parts import Plan, answer_schema, read_parts, salvage
from seekray.batch.predict import predict
from seekray.checkpoint import named_tensors
from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.data.tables.fitting import fit
from seekray.errors import DataError, ResourcesError, UserError
from seekray.models.net import Net, NetConfig
from seekray.predictor import Predictor
from seekray.storage import Storage

ROOT = Path(__file__).resolve().parents[2]
ROWS = 5000


def table(rows: int = ROWS) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "id": [f"k{i}" for i in range(rows)],
            "size": rng.normal(size=rows),
            "count": rng.integers(0, 9, rows),
            "colour": rng.choice(["red", "green", "blue"], rows),
            "unused": np.arange(rows),
            "kind": rng.choice(["no", "yes"], rows),
        }
    )


def make_bundle(folder: Path, data: pa.Table, options: Data, task: str = "classification") -> Path:
    torch.manual_seed(0)
    schema = fit(data, options, task)
    config = NetConfig(hidden_size=(32, 32))
    modules = Net().build(config, schema)
    info = {"name": "m", "family": "net", "task": task, "model": config.model_dump(mode="json")}
    bundles.write(Storage(str(folder)), "bundle", info, schema, named_tensors(modules), {"rows": [], "answers": {}})
    return folder / "bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = Data(source="x", target="kind", key=("id",), features={"size": {}, "count": {}, "colour": {}})
    return make_bundle(tmp_path_factory.mktemp("bundle"), table(), options)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    whole = table()
    pq.write_table(whole, folder / "t.parquet", row_group_size=700)
    pacsv.write_csv(whole, folder / "t.csv")
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole.to_pylist()))
    return {kind: str(folder / f"t.{kind}") for kind in ("parquet", "csv", "jsonl")}


@pytest.fixture(scope="module")
def expected(bundle: Path) -> pa.Table:
    whole = table()
    answers = Predictor.load(bundle).predict(whole).columns()
    return pa.table({"id": whole["id"]} | answers)


def close(found: pa.Table, wanted: pa.Table) -> None:
    assert found.column_names == wanted.column_names
    for name in wanted.column_names:
        a, b = found[name].to_pylist(), wanted[name].to_pylist()
        assert a == pytest.approx(b, abs=1e-6) if name.startswith("probability") else a == b


@pytest.mark.parametrize("source", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ""])
def test_every_format_keeps_order_keys_and_answers(
    bundle: Path, sources: dict[str, str], expected: pa.Table, tmp_path: Path, source: str, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    done = predict(bundle, Data(source=sources[source]), str(out), part_rows=1234)
    assert done == {"rows": ROWS, "rejected": 0, "out": str(out)}
    if suffix == ".csv":
        found = pacsv.read_csv(out)
    elif suffix == ".jsonl":
        found = pa.Table.from_pylist([json.loads(line) for line in out.read_text().splitlines()])
    elif suffix == ".parquet":
        found = pq.read_table(out)
    else:
        assert len(list(out.glob("part-*.parquet"))) == 5
        found = pads.dataset(out).to_table()
    close(found, expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name]  # nothing beside it


def test_without_a_key_rows_are_numbered(bundle: Path, tmp_path: Path) -> None:
    pq.write_table(table(100).drop_columns(["id"]), tmp_path / "t.parquet")
    predict(bundle, Data(source=str(tmp_path / "t.parquet")), str(tmp_path / "out.parquet"), part_rows=30)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["row", "prediction", "probability_no", "probability_yes"]
    assert found["row"].to_pylist() == list(range(100))


def test_other_tasks_have_their_columns(tmp_path: Path) -> None:
    data = table(200).append_column("b", pa.array([0, 1] * 100)).append_column("c", pa.array([1, 1, 0, 0] * 50))
    pq.write_table(data, tmp_path / "t.parquet")
    options = Data(source="x", target=("b", "c"), features={"size": {}, "colour": {}})
    many = make_bundle(tmp_path / "many", data, options, "multilabel")
    predict(many, Data(source=str(tmp_path / "t.parquet")), str(tmp_path / "many.parquet"))
    predict(many, Data(source=str(tmp_path / "t.parquet")), str(tmp_path / "many.csv"))
    found = pq.read_table(tmp_path / "many.parquet").to_pylist()
    assert all(row["prediction"] == [n for n in ("b", "c") if row[f"probability_{n}"] >= 0.5] for row in found)
    # A list is `b|c` in CSV.
    texts = [row["prediction"] or "" for row in pacsv.read_csv(tmp_path / "many.csv").to_pylist()]
    assert texts == ["|".join(row["prediction"]) for row in found]
    number = make_bundle(tmp_path / "number", data, Data(source="x", target="size", features={"count": {}}), "regression")
    predict(number, Data(source=str(tmp_path / "t.parquet"), key=("unused",)), str(tmp_path / "number.parquet"))
    answers = pq.read_table(tmp_path / "number.parquet")
    assert answers.column_names == ["unused", "prediction"]
    assert answers["prediction"].to_pylist() == pytest.approx(Predictor.load(number).predict(data).predictions, rel=1e-6)


def test_bad_rows_are_put_aside_and_neighbours_unharmed(bundle: Path, tmp_path: Path, expected: pa.Table) -> None:
    bad = {7: "oops", 8: "1,5", 150: "?", 2600: "n/a?", ROWS - 1: "x"}
    lines = ["id,size,count,colour"]
    for i, row in enumerate(table().to_pylist()):
        lines.append(
            f'{row["id"]},"{bad[i]}",{row["count"]},{row["colour"]}'
            if i in bad
            else f"{row['id']},{row['size']!r},{row['count']},{row['colour']}"
        )
    lines.insert(101, "too,many,values,in,this,row")  # record 100; those after it move by one
    source = tmp_path / "t.csv"
    source.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.parquet"
    done = predict(bundle, Data(source=str(source)), str(out), part_rows=1000)
    assert (done["rows"], done["rejected"]) == (ROWS - len(bad), len(bad) + 1)
    aside = [json.loads(line) for line in (tmp_path / "out.parquet.rejected.jsonl").read_text().splitlines()]
    assert [a["row"] for a in aside] == [7, 8, 100, 151, 2601, ROWS]
    assert "'oops'" in aside[0]["reason"]
    assert "size" in aside[0]["reason"]
    assert "row" not in aside[0]["reason"]
    assert aside[0]["values"]["id"] == "k7"
    assert "too,many" in aside[2]["values"]
    close(pq.read_table(out), expected.take([i for i in range(ROWS) if i not in bad]))
    folder = tmp_path / "folder"
    predict(bundle, Data(source=str(source)), str(folder), part_rows=1000)
    assert sorted(p.name for p in (folder / "rejected").iterdir()) == [f"_part-00000{i}.jsonl" for i in (0, 2, 4)]
    predict(bundle, Data(source=str(source).replace("t.csv", "t.csv")), str(folder), part_rows=1000)
    clean = tmp_path / "clean.parquet"
    pq.write_table(table(50), clean)
    predict(bundle, Data(source=str(clean)), str(out))
    assert not (tmp_path / "out.parquet.rejected.jsonl").exists()  # not left over from before


def test_an_image_that_does_not_decode_is_put_aside(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "images" / label / f"{i}.png")
    source = Data(source=str(tmp_path / "images"), target="label", features={"image": {"size": (8, 8)}}, key=("path",))
    images = make_bundle(tmp_path, open_source(source).table(), source)
    (tmp_path / "images" / "a" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = predict(images, Data(source=str(tmp_path / "images")), str(tmp_path / "out.jsonl"), part_rows=5)
    assert (done["rows"], done["rejected"]) == (11, 1)
    (aside,) = [json.loads(line) for line in (tmp_path / "out.jsonl.rejected.jsonl").read_text().splitlines()]
    assert aside["row"] == 3
    assert aside["values"]["path"].endswith("a/3.png")
    assert "image" in aside["reason"]


def test_salvage_finds_the_bad_rows_without_trying_each() -> None:
    calls = 0

    def attempt(part: pa.Table) -> int:
        nonlocal calls
        calls += 1
        if {13, 700} & set(part["x"].to_pylist()):
            raise DataError("column 'x', row 0: bad")
        return len(part)

    pieces, reasons = salvage(attempt, pa.table({"x": np.arange(1000)}))
    assert reasons == {13: "column 'x': bad", 700: "column 'x': bad"}
    assert [stop - start for start, stop, _ in pieces] == [n for *_, n in pieces]
    assert sum(n for *_, n in pieces) == 998
    assert pieces == sorted(pieces)
    assert calls < 60


def test_a_missing_column_and_a_wrong_output_are_said(bundle: Path, sources: dict[str, str], tmp_path: Path) -> None:
    pq.write_table(table(10).rename_columns(["id", "sise", "count", "colour", "unused", "kind"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'size'.*did you mean 'sise'"):
        predict(bundle, Data(source=str(tmp_path / "t.parquet")), str(tmp_path / "out.csv"))
    with pytest.raises(UserError, match=r"\.xlsx"):
        predict(bundle, Data(source=sources["parquet"]), str(tmp_path / "out.xlsx"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="other files"):
        predict(bundle, Data(source=sources["parquet"]), str(tmp_path / "full"))
    with pytest.raises(DataError, match="nokey"):
        predict(bundle, Data(source=sources["parquet"], key=("nokey",)), str(tmp_path / "out.csv"))
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("out*"))


def test_a_file_appears_whole_or_not_at_all(bundle: Path, sources: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("before")

    def stop(rows: int, total: int | None) -> None:
        if rows > 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(bundle, Data(source=sources["parquet"]), str(out), part_rows=1000, progress=stop)
    assert out.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_after_a_kill_only_missing_parts_are_computed(
    bundle: Path, sources: dict[str, str], expected: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    code = f"""
        import time
        from seekray.batch.predict import predict
        from seekray.data.options import Data
        predict({str(bundle)!r}, Data(source={sources["csv"]!r}), {str(out)!r}, part_rows=500,
                progress=lambda rows, total: time.sleep(0.1))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / ".part-000009.parquet.dead.part").write_bytes(b"torn")  # what a kill in the middle of a write leaves
    there = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    assert 3 <= len(there) < 10
    assert json.loads((out / "_manifest.json").read_text())["complete"] is False

    computed: list[int] = []
    import seekray.batch.predict as module

    real = module.predict_part
    monkeypatch.setattr(module, "predict_part", lambda p, plan, part: computed.append(part.index) or real(p, plan, part))
    done = predict(bundle, Data(source=sources["csv"]), str(out), part_rows=999)  # the interrupted run's cut is kept
    assert done["rows"] == ROWS
    assert sorted(computed) == [i for i in range(10) if f"part-{i:06d}.parquet" not in there]
    assert there == {name: (out / name).stat().st_mtime_ns for name in there}
    assert not list(out.glob(".*"))
    close(pads.dataset(out).to_table(), expected)
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["complete"]
    assert [p["rows"] for p in manifest["parts"]] == [500] * 10
    computed.clear()
    assert predict(bundle, Data(source=sources["csv"]), str(out))["rows"] == ROWS
    assert computed == []


def test_parts_of_another_model_or_of_changed_data_are_refused(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "t.parquet"
    pq.write_table(table(100), source)
    predict(bundle, Data(source=str(source)), str(tmp_path / "out"))
    torch.manual_seed(1)
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    info = json.loads((other / "bundle.json").read_text()) | {"name": "else"}
    loaded = bundles.load(bundle)
    bundles.write(Storage(str(tmp_path)), "other", info, loaded.schema, loaded.tensors, loaded.sample)
    with pytest.raises(UserError, match="another model"):
        predict(other, Data(source=str(source)), str(tmp_path / "out"))
    pq.write_table(table(101), source)
    with pytest.raises(UserError, match="changed"):
        predict(bundle, Data(source=str(source)), str(tmp_path / "out"))


def test_parts_and_row_numbers_do_not_depend_on_batches(sources: dict[str, str], bundle: Path) -> None:
    schema = Predictor.load(bundle).schema
    source = open_source(Data(source=sources["parquet"]))
    plan = Plan(("id", "size"), ("id",), 777, "ipc", answer_schema(schema, source.schema, ["id"]))
    parts = list(read_parts(source, plan, frozenset()))
    assert [len(p.table) for p in parts] == [777] * 6 + [ROWS - 6 * 777]
    assert np.concatenate([p.numbers for p in parts]).tolist() == list(range(ROWS))
    skipped = list(read_parts(source, plan, frozenset({0, 2, 6})))
    assert [p.index for p in skipped] == [1, 3, 4, 5]
    assert skipped[1].table.equals(parts[3].table)
    assert skipped[1].first == 3 * 777


# ---- over Ray


@pytest.mark.ray
def test_over_ray_answers_and_rejects_are_the_same(bundle: Path, tmp_path: Path, ray_cluster: None) -> None:
    data = tmp_path / "bad.csv"
    sizes = ["bad" if i in (3, 4001) else repr(v) for i, v in enumerate(table()["size"].to_pylist())]
    pacsv.write_csv(table().set_column(1, "size", pa.array(sizes)), data)
    seen: list[int] = []
    results = {}
    for workers in (0, 2):
        out = tmp_path / f"{workers}.parquet"
        results[workers] = predict(
            bundle, Data(source=str(data)), str(out), workers=workers, part_rows=100,
            progress=lambda rows, total: seen.append(rows),
        ) | {"out": ""}  # fmt: skip
    assert results[0] == results[2] == {"rows": ROWS - 2, "rejected": 2, "out": ""}
    a, b = (pq.read_table(tmp_path / f"{w}.parquet") for w in (0, 2))
    assert a.equals(b)
    assert (tmp_path / "0.parquet.rejected.jsonl").read_text() == (tmp_path / "2.parquet.rejected.jsonl").read_text()
    assert seen[-1] == ROWS
    assert seen == sorted(seen[:50]) + sorted(seen[50:])


@pytest.mark.slow
@pytest.mark.ray
def test_over_ray_a_slow_part_does_not_change_the_order(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image
    from ray.data import DataContext

    # Both actors are there from the first part on.
    monkeypatch.setattr(DataContext.get_current(), "wait_for_min_actors_s", 120)

    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
    for i in range(24):  # the first part takes a hundred times as long as the others
        side = 4000 if i < 4 else 8
        Image.new("RGB", (side, side), (i, 9 * i, 0)).save(tmp_path / "images" / ("a" if i < 12 else "b") / f"{i:02}.png")
    source = Data(source=str(tmp_path / "images"), target="label", features={"image": {"size": (8, 8)}}, key=("path",))
    images = make_bundle(tmp_path, open_source(source).table(), source)
    asked = Data(source=str(tmp_path / "images"))
    predict(images, asked, str(tmp_path / "out.jsonl"), workers=2, part_rows=4)
    found = [json.loads(line)["path"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [name[-6:-4] for name in found] == [f"{i:02}" for i in range(24)]


@pytest.mark.ray
def test_over_ray_a_folder_is_gone_on_with_and_errors_are_ours(
    bundle: Path, sources: dict[str, str], expected: pa.Table, tmp_path: Path, ray_cluster: None
) -> None:
    out = tmp_path / "out"
    predict(bundle, Data(source=sources["parquet"]), str(out), workers=1, part_rows=500)
    for gone in (1, 4, 9):
        (out / f"part-{gone:06d}.parquet").unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    assert predict(bundle, Data(source=sources["parquet"]), str(out), workers=1)["rows"] == ROWS
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}
    close(pads.dataset(out).to_table(), expected)
    damaged = tmp_path / "damaged.parquet"
    whole = bytearray(Path(sources["parquet"]).read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 5000] = bytes(5000)
    damaged.write_bytes(whole)
    with pytest.raises(DataError, match=r"damaged\.parquet"):
        predict(bundle, Data(source=str(damaged)), str(tmp_path / "o.csv"), workers=1)
    with pytest.raises(ResourcesError, match="999 workers"):
        predict(bundle, Data(source=sources["parquet"]), str(tmp_path / "o.csv"), workers=999)
    assert not list(tmp_path.glob("*o.csv*"))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3-compatible server in a process of its own; gives an address of an empty bucket."""
    code = (
        "from moto.server import ThreadedMotoServer as S; import threading; s = S('127.0.0.1', 0); s.start(); "
        "print(s.get_host_and_port()[1], flush=True); threading.Event().wait()"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = next(int(line) for line in server.stdout if line.strip().isdigit())
    given = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
    }
    patch = pytest.MonkeyPatch()
    for name, value in given.items():
        patch.setenv(name, value)
    from pyarrow.fs import S3FileSystem

    fs = S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True)
    fs.create_dir("data")
    yield "s3://data"
    patch.undo()
    server.kill()
    server.wait()


def test_object_store_in_and_out(bundle: Path, sources: dict[str, str], expected: pa.Table, s3: str, tmp_path: Path) -> None:
    from seekray.storage import filesystem

    Storage(s3).write_bytes("in/t.parquet", Path(sources["parquet"]).read_bytes())
    source = Data(source=f"{s3}/in/t.parquet")
    assert predict(bundle, source, f"{s3}/out", part_rows=2000)["rows"] == ROWS
    storage = Storage(f"{s3}/out")
    assert storage.list() == ["_manifest.json", "part-000000.parquet", "part-000001.parquet", "part-000002.parquet"]
    storage.delete("part-000001.parquet")
    assert predict(bundle, source, f"{s3}/out")["rows"] == ROWS
    fs, path = filesystem(f"{s3}/out")
    close(pads.dataset([f"{path}/part-00000{i}.parquet" for i in range(3)], filesystem=fs).to_table(), expected)
    predict(bundle, source, f"{s3}/one.csv")
    close(pacsv.read_csv(pa.BufferReader(Storage(s3).read_bytes("one.csv"))), expected)


def test_the_job_prints_one_document_and_says_what_is_wrong(bundle: Path, sources: dict[str, str], tmp_path: Path) -> None:
    def job(source: str, out: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "seekray_jobs.predict", str(bundle), "--data", source, "--out", str(tmp_path / out)]
        given = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "SEEKRAY_HOME": str(tmp_path / "home")}
        return subprocess.run(command, capture_output=True, text=True, env=given, check=False)

    done = job(sources["csv"], "out.jsonl")
    assert json.loads(done.stdout) == {"rows": ROWS, "rejected": 0, "out": str(tmp_path / "out.jsonl")}
    pq.write_table(table(10).drop_columns(["colour"]), tmp_path / "t.parquet")
    wrong = job(str(tmp_path / "t.parquet"), "no.csv")
    assert wrong.returncode == 2
    assert "colour" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_twenty_million_rows_stay_under_two_gigabytes(kind: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/batch_predict.py"), "--format", kind]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["rows"] == 20_000_000
    assert found["peak_pss_mib"] * 2**20 < 2e9, found


def test_the_benchmark_runs(tmp_path: Path) -> None:
    module = runpy.run_path(str(ROOT / "benchmarks/batch_predict.py"))
    module["generate"](tmp_path / "rows.parquet", 1000)
    made = module["make_bundle"](tmp_path)
    assert predict(made, Data(source=str(tmp_path / "rows.parquet")), str(tmp_path / "out.parquet"))["rows"] == 1000
