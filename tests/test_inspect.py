"""init, dry run and doctor: what they find, what they write, what they refuse."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from benchmarks.init_defaults import TABLES as STUDY
from benchmarks.init_defaults import baseline_scores, seekray_score
from typer.testing import CliRunner

from seekray import inspect
from seekray.cluster import Address
from seekray.config import Experiment
from seekray.data.options import Data
from seekray.data.tables.prepare import prepare
from seekray.errors import DataError, UserError
from seekray.experiment_file import load, validate
from seekray.inspect import checks, health, place, plan, sampling, services
from seekray.inspect.ask_cluster import Cluster, Node, ask
from seekray.inspect.defaults import choose
from seekray.inspect.init_file import scalar
from seekray.inspect.probe import probe
from seekray.inspect.task import guess_task
from seekray.models import get_family
from seekray.settings import Settings, settings

ROWS = 300


def houses(rows: int = ROWS) -> pa.Table:
    rng = np.random.default_rng(0)
    size, city = rng.normal(80, 20, rows), rng.choice(["Bonn", "Köln", "Ulm"], rows)
    return pa.table(
        {
            "id": np.arange(rows),
            "size": size,
            "rooms": rng.integers(1, 6, rows),
            "city": city,
            "built": rng.integers(0, 15_000, rows).astype("datetime64[D]"),
            "owner": [f"P{i}x" for i in range(rows)],
            "empty": pa.nulls(rows, pa.string()),
            "country": ["DE"] * rows,
            "balcony": rng.random(rows) > 0.5,
            "price": size * 3 + (city == "Bonn") * 50 + rng.normal(0, 5, rows),
        }
    )


@pytest.fixture
def here(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the houses."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pacsv.write_csv(houses(), folder / "houses.csv")
    return folder


# ---- init


def _shops() -> pa.Table:
    days = np.arange("2024-01-01", "2024-05-01", dtype="M8[D]")
    size = np.repeat([100.0, 160.0], len(days))
    wave = np.tile(20 * np.sin(np.arange(len(days)) * 2 * np.pi / 7), 2)
    names, regions = np.repeat(["a", "b"], len(days)), np.repeat(["north", "south"], len(days))
    return pa.table({"shop": names, "day": np.tile(days, 2), "region": regions, "visitors": size + wave})


def _walks() -> pa.Table:
    steps = [[[float(i), 0.5]] * (3 + i % 4) for i in range(40)]
    return pa.table({"steps": steps, "kinds": [["on", *["off"] * (len(s) - 1)] for s in steps], "who": ["x", "y"] * 20})


def _pairs() -> pa.Table:
    asked = [f"What is the number after the number {i}, please?" for i in range(60)]
    return pa.table({"question": asked, "answer": [f"It is {i + 1}." for i in range(60)], "kind": ["small", "large"] * 30})


@pytest.mark.parametrize(
    ("family", "table", "target", "task", "said"),
    [
        ("rec", _shops, "visitors", "forecast",
         {"time": "day", "id": "shop", "static": ["region"], "history": 15, "horizon": 6, "season": 7, "gap": 216000}),
        ("rec", _walks, "kinds", "labelling", {"steps": "sequence"}),
        ("rec", _walks, "who", "classification", {"steps": "sequence"}),
        ("rec", _pairs, "kind", "classification", {"question": "characters"}),
        ("gen", houses, "city", "rows", ["size", "rooms", "city", "built", "country", "balcony", "price"]),
        ("gen", lambda: houses().select(["owner"]), None, "texts", ["owner"]),
        ("lm", _pairs, None, "finetune", {"prompt": "question", "response": "answer"}),
        ("lm", _pairs, "kind", "classify", {"column": "question"}),
        ("lm", lambda: _pairs().select(["question"]), None, "pretrain", {"column": "question"}),
    ],
)  # fmt: skip
def test_init_writes_for_every_family(
    here: Path, family: str, table: Callable[[], pa.Table], target: str | None, task: str, said: Any
) -> None:
    pq.write_table(table(), here / "own.parquet")
    found = inspect.init("own.parquet", [target] if target else [], here / "own.yaml", family=family)
    made = load(here / "own.yaml")
    assert (made.family, made.task, found["task"]) == (family, task, task)
    if task == "forecast":
        assert made.data.sequence is not None
        written = made.data.sequence.model_dump(mode="json")
        assert {k: written[k] for k in said} == said
    elif family == "lm":
        assert made.data.text is not None
        assert {k: getattr(made.data.text, k) for k in said} == said
    else:
        features = made.data.features or {}
        assert (list(features) if family == "gen" else {n: o.kind for n, o in features.items()}) == said
        assert target is None or family != "gen" or made.model.conditions == (target,)  # type: ignore[attr-defined]
    assert made.prepare().schema is not None  # the data is what the family takes
    assert f"seekray train {here / 'own.yaml'}" in inspect.init_text(found)


def test_init_of_plain_text_and_of_pictures(here: Path) -> None:
    (here / "notes.txt").write_text("Some words of a text. " * 300)
    assert inspect.init("notes.txt", [], here / "t.yaml", family="lm")["task"] == "pretrain"
    assert load(here / "t.yaml").prepare().schema is not None
    inspect.init("sample:digit-images", ["label"], here / "d.yaml", family="gen")
    image = (load(here / "d.yaml").data.features or {})["image"]
    assert (image.size, image.channels) == ((8, 8), 1)


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("rec", "price", "has nothing for --family rec"), ("rec", None, "--target is missing"),
        ("lm", None, "no column of texts; city has names that repeat"), ("tree", None, "expected net, rec, gen, lm"),
        ("gen", "prize", "did you mean 'price'"),
    ],
)  # fmt: skip
def test_init_says_what_a_family_lacks(here: Path, family: str, target: str | None, said: str) -> None:
    table = houses().select(["size", "city", "price"])
    pq.write_table(table, here / "own.parquet")
    with pytest.raises((DataError, UserError), match=re.escape(said)):
        inspect.init("own.parquet", [target] if target else [], here / "own.yaml", family=family)


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([1.5, 2.25, 3.5] * 40, "regression"),
        ([float(i % 3) for i in range(120)], "classification"),
        (list(range(120)), "regression"),
        ([i % 60 for i in range(240)], "regression"),
        ([i % 5 for i in range(120)], "classification"),
        ([0, 1] * 60, "classification"),
        ([True, False] * 60, "classification"),
        (["a", "b", "c"] * 40, "classification"),
        ([f"{i}.5" for i in range(100)] + ["n/a"], "regression"),
    ],
)
def test_the_task_follows_the_target(values: list[Any], task: str) -> None:
    assert guess_task([pa.chunked_array([pa.array(values)])], ["y"])[0] == task


def test_several_targets_are_multilabel_and_must_be_flags() -> None:
    flags, words = pa.chunked_array([[0, 1, 1]]), pa.chunked_array([["a", "b", "c"]])
    assert guess_task([flags, flags], ["a", "b"])[0] == "multilabel"
    with pytest.raises(DataError, match=r"--target b: several targets.*'a', 'b'"):
        guess_task([flags, words], ["a", "b"])


def test_init_writes_a_commented_file_that_says_what_it_guessed(here: Path) -> None:
    found = inspect.init("houses.csv", ["price"], here / "e.yaml")
    text = (here / "e.yaml").read_text()
    experiment = load(here / "e.yaml")
    assert experiment.task == found["task"] == "regression"
    kinds = {n: f.kind for n, f in (experiment.data.features or {}).items()}
    assert kinds == {
        "size": "numeric", "rooms": "numeric", "city": "categorical", "built": "timestamp", "balcony": "boolean",
    }  # fmt: skip
    assert experiment.data.key == ("id",)
    assert experiment.data.exclude == ("owner", "empty", "country")
    assert experiment.data.split.validation == 0
    assert experiment.register_as == "houses"
    assert experiment.resources.workers == 0
    assert "Ray Train" in text
    assert re.search(r"rooms: numeric +# UNSURE: whole numbers", text)
    told = inspect.init_text(found)
    for word in ("rooms", "owner", "empty", "country", "built", "id"):
        assert any(u.startswith(f"{word}:") for u in found["unsure"]), word
        assert f"- {word}:" in told
        assert f"#  - {word}:" in text, "what it was unsure of is in the file too"
    schema = text.splitlines()[0].partition("$schema=")[2]
    assert json.loads((here / schema).read_text())["properties"]["data"]


def test_init_never_overwrites_without_force(here: Path) -> None:
    (here / "e.yaml").write_text("mine")
    with pytest.raises(UserError, match="--force"):
        inspect.init("houses.csv", ["price"], here / "e.yaml")
    assert (here / "e.yaml").read_text() == "mine"
    inspect.init("houses.csv", ["price"], here / "e.yaml", force=True)
    assert load(here / "e.yaml").name == "houses"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("prize", "did you mean 'price'"),
        ("country", "nothing to learn"),
        ("owner", "classes repeat"),
        ("empty", "has no values"),
        ("built", "holds"),
    ],
)
def test_a_target_that_cannot_be_one_is_refused(here: Path, target: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        inspect.init("houses.csv", [target], here / "e.yaml")
    assert not (here / "e.yaml").exists()


ODD = [
    "a b",
    "größe",
    "x: y",
    "# no",
    "- dash",
    "'quoted'",
    '"double"',
    "yes",
    "null",
    "1",
    "1.5",
    "{a}",
    "a, b",
    "~",
    "tab\tx",
    "😀",
]


def test_odd_column_names_survive_in_block_and_flow(here: Path) -> None:
    rng = np.random.default_rng(0)
    for count in (0, 80):
        names = [*ODD, *(f"col {i}, {{x}}" for i in range(count))]
        table = pa.table({n: rng.normal(size=50) for n in names} | {"the: target": rng.normal(size=50)})
        pq.write_table(table, here / "odd.parquet")
        inspect.init("odd.parquet", ["the: target"], here / "odd.yaml", force=True)
        experiment = load(here / "odd.yaml")
        assert list(experiment.data.features or ()) == names
        assert experiment.data.targets == ("the: target",)
        assert len((here / "odd.yaml").read_text().splitlines()) < 75, "many features go several to a line"
    assert scalar("plain_name") == "plain_name"


def test_rows_that_cannot_be_used_are_counted_and_skipped(here: Path) -> None:
    lines = (here / "houses.csv").read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","  # no price
    lines[5] += ",1,2"  # too wide
    (here / "bad.csv").write_text("\n".join(lines))
    found = inspect.init("bad.csv", ["price"], here / "e.yaml")
    assert any(u.startswith("2 rows cannot be used") for u in found["unsure"]), found["unsure"]
    experiment = load(here / "e.yaml")
    assert experiment.data.on_bad_row == "skip"
    assert prepare(experiment.data, experiment.task).rows == ROWS - 2


def test_a_copy_of_the_target_is_left_out(here: Path) -> None:
    table = houses().append_column("again", houses()["price"])
    pq.write_table(table, here / "copy.parquet")
    inspect.init("copy.parquet", ["price"], here / "e.yaml")
    assert "again" in load(here / "e.yaml").data.exclude


def test_a_large_file_is_sampled_and_gets_early_stopping(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 30_000
    pacsv.write_csv(houses(rows), here / "large.csv")
    size = (here / "large.csv").stat().st_size
    monkeypatch.setattr(sampling, "WHOLE_BYTES", size // 4)
    monkeypatch.setattr(sampling, "HEAD_BYTES", size // 8)
    found = inspect.init("large.csv", ["price"], here / "e.yaml")
    assert found["estimated"]
    assert found["rows"] == pytest.approx(rows, rel=0.05)
    experiment = load(here / "e.yaml")
    assert experiment.data.split.validation == 0.1
    assert experiment.training.early_stopping is not None
    assert "owner" not in experiment.data.exclude, "a sample does not tell what the other rows hold"
    subprocess.run(["gzip", "-k", here / "large.csv"], check=True)
    monkeypatch.setattr(sampling, "WHOLE_BYTES", 8)
    again = inspect.init("large.csv.gz", ["price"], here / "gz.yaml")
    assert again["rows"] == pytest.approx(rows, rel=0.2)
    assert load(here / "gz.yaml").name == "large"


def test_the_probe_tells_lines_from_curves() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    base = {f"x{i}": x[:, i] for i in range(5)}
    straight = pa.table(base | {"y": x @ np.arange(5.0) + rng.normal(size=300)})
    bent = pa.table(base | {"y": np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=300)})
    data = Data(source="-", target="y", features={n: {"kind": "numeric"} for n in base})  # type: ignore[dict-item]
    line, curve = probe(straight, data, "regression"), probe(bent, data, "regression")
    assert choose(300, "regression", line).model == {"hidden_size": "[]"}
    assert choose(9000, "regression", line).model == {"hidden_size": "[]"}
    assert choose(300, "regression", curve).model["hidden_size"] == "[128, 128]"
    assert choose(9000, "regression", curve).training["early_stopping"]
    assert choose(100_000, "classification", None).model["hidden_size"] == "[256, 256]"
    assert line.linear > 0.9
    assert line.curved - line.linear < 0.01
    assert curve.curved - curve.linear > 0.3


@pytest.mark.parametrize("name", ["linear 200 x 100", "friedman1 200"])
def test_what_init_writes_is_good_as_it_stands(name: str, tmp_path: Path, home: Path) -> None:
    """One fold of benchmarks/init_defaults.py: a plane that nets learn badly, a curve that lines do."""
    task, make = STUDY[name]
    x, y = make()
    order = np.random.default_rng(1).permutation(len(y))
    train, test = order[40:], order[:40]
    ours, hidden = seekray_score(x, y, train, test, tmp_path)
    theirs = baseline_scores(task, x, y, train, test, 0)
    assert ours > max(theirs.values()) - 0.03, (ours, theirs, hidden)
    assert (hidden == "[]") == (name == "linear 200 x 100")


# ---- dry run


def flowers(**changes: Any) -> Experiment:
    raw = {
        "name": "h",
        "task": "regression",
        "data": {"source": "houses.csv", "target": "price", "exclude": ["owner", "empty"]},
    }
    raw |= {"resources": {"workers": 0}, "training": {"epochs": 3, "batch_size": 32}}
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value  # type: ignore[dict-item]
    return validate(raw)


def test_the_dry_run_of_a_small_table_is_exact(here: Path) -> None:
    experiment = flowers()
    found = inspect.dry_run(experiment)
    prepared = prepare(experiment.data, experiment.task)
    modules = get_family("net").build(experiment.model, prepared.schema)
    assert found["refused"] == []
    data = found["data"]
    assert (data["rows"], data["train"], data["validation"], data["test"]) == (ROWS, 210, 30, 60)
    assert not data["estimated"]
    assert data["dense_size"] == prepared.schema.dense_size
    assert list(data["categorical"].values()) == list(prepared.schema.cardinalities)
    assert found["model"]["parameters"] == sum(p.numel() for m in modules.values() for p in m.parameters())
    assert found["training"] == {
        "batch_size": 32, "steps_per_epoch": 7, "epochs": 3, "steps": 21, "early_stopping": False,
    }  # fmt: skip
    text = inspect.dry_run_text(found)
    assert "300 rows; 210 training, 30 validation, 60 test" in text
    assert "21 steps" in text
    assert not (here / ".seekray").exists(), "a dry run leaves nothing"


def test_a_large_file_is_not_read_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 20_000
    pacsv.write_csv(houses(rows), here / "large.csv")
    size = (here / "large.csv").stat().st_size
    monkeypatch.setattr(sampling, "WHOLE_BYTES", size // 4)
    monkeypatch.setattr(sampling, "HEAD_BYTES", size // 8)
    monkeypatch.setattr(plan, "EXACT_BYTES", size // 4)
    prepare_it = plan.Experiment.prepare
    monkeypatch.setattr(
        plan.Experiment, "prepare",
        lambda self: pytest.fail("read whole") if self.data.source == "large.csv" else prepare_it(self),
    )  # fmt: skip
    found = inspect.dry_run(flowers(data={"source": "large.csv"}))
    assert found["data"]["estimated"]
    assert found["data"]["rows"] == pytest.approx(rows, rel=0.05)
    assert found["data"]["train"] == pytest.approx(0.7 * rows, rel=0.05)
    assert found["training"]["steps"] == pytest.approx(3 * 0.7 * rows / 32, rel=0.05)
    assert found["model"]["parameters"] > 1000
    text = inspect.dry_run_text(found)
    assert "about" in text
    assert "estimated from its first" in text


@pytest.mark.parametrize("large", [False, True])
def test_the_dry_run_of_a_generator(here: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(plan, "OWN_EXACT_BYTES", 100)
    given = {"name": "g", "family": "gen", "task": "rows", "data": {"source": "houses.csv"}, "resources": {"workers": 0}}
    found = inspect.dry_run(validate(given | {"training": {"epochs": 1}}))
    assert found["refused"] == []
    assert found["data"]["estimated"] == large
    assert found["data"]["rows"] == ROWS


@pytest.mark.parametrize("kind", ["file", "folder", "table", "labels", "packed"])
def test_a_large_text_is_estimated_from_its_beginning(here: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Beside what a whole look finds: windows, steps and, with a vocabulary that the beginning fills, parameters."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(["red", "green", "sea", "and", "of", "stone"], 12)) for _ in range(4000)]
    data: dict[str, Any] = {"source": "big.txt", "text": {"tokenizer": "bpe", "tokenize": "ray"}, "split": {"kind": "last"}}
    task = "pretrain"
    if kind == "file":
        (here / "big.txt").write_text("\n".join(lines))
    elif kind == "packed":
        (here / "big.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        data["source"] = "big.txt.gz"
    elif kind == "folder":
        (here / "big").mkdir()
        for i in range(40):
            (here / "big" / f"{i}.txt").write_text("\n".join(lines[i * 100 : (i + 1) * 100]))
        data |= {"source": "big", "split": {"kind": "random"}}
    else:
        rows = [json.dumps({"text": line, "y": "ab"[i % 2]}) for i, line in enumerate(lines)]
        (here / "big.jsonl").write_text("\n".join(rows))
        data |= {"source": "big.jsonl", "split": {"kind": "random"}}
        if kind == "labels":
            data, task = data | {"target": "y"}, "classify"
    model = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "context_length": 32, "vocab_size": 300}
    given = {"name": "t", "family": "lm", "task": task, "data": data, "model": model, "resources": {"workers": 1}}
    experiment = validate(given | {"training": {"epochs": 2, "batch_size": 16}})
    whole = inspect.dry_run(experiment)
    assert not whole["data"]["estimated"]
    size = (here / data["source"]).stat().st_size if kind != "folder" else 250_000
    monkeypatch.setattr(plan, "OWN_EXACT_BYTES", size // 4)
    monkeypatch.setattr(plan, "HEAD_BYTES", 60_000)
    found = inspect.dry_run(experiment)
    assert found["refused"] == whole["refused"] == []
    assert found["data"]["estimated"]
    assert found["data"]["rows"] == pytest.approx(whole["data"]["rows"], rel=0.05)
    for part in ("train", "validation"):
        assert found["data"][part] == pytest.approx(whole["data"][part], rel=0.05)
    assert found["training"]["steps"] == pytest.approx(whole["training"]["steps"], rel=0.05)
    assert found["model"]["parameters"] == whole["model"]["parameters"]
    text = inspect.dry_run_text(found)
    assert "all of it is estimated from its first" in text
    assert ("training windows" in text) == (kind != "labels")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"source": "none.csv"}}, "none.csv"),
        ({"data": {"target": "prize"}}, "prize"),
        ({"data": {"exclude": ["owner", "empty", "colour"]}}, "colour"),
        ({"task": "classification", "data": {"target": "country"}}, "one class"),
        ({"data": {"features": {"city": "numeric"}}}, "city"),
        ({"resources": {"workers": 5000}, "training": {"batch_size": 6000}}, "there are"),
        ({"resources": {"workers": 250}, "training": {"batch_size": 256}}, "250 for 210 training rows"),
        ({"resources": {"workers": 1, "gpus_per_worker": 64}}, "64 GPU"),
        ({"task": "classification", "data": {"target": "city"}, "model": {"class_weights": [1.0, 2.0]}}, "class_weights"),
        ({"storage": "houses.csv"}, "is a file"),
        ({"storage": "no-such://x"}, "no-such"),
    ],
)
def test_what_would_be_refused_is_told(here: Path, changes: dict[str, Any], words: str) -> None:
    found = inspect.dry_run(flowers(**changes))
    assert any(words in text for text in found["refused"]), found["refused"]
    assert "REFUSED" in inspect.dry_run_text(found)


def test_waiting_for_resources_is_no_refusal(here: Path) -> None:
    found = inspect.dry_run(flowers(resources={"workers": 64, "wait": "30m"}, training={"batch_size": 64}))
    assert found["refused"] == []
    assert any("wait up to 1800 s" in w for w in found["warnings"])


def test_a_split_column_without_validation_contradicts_early_stopping(here: Path) -> None:
    table = houses().append_column("part", pa.array(["train"] * 200 + ["test"] * 100))
    pq.write_table(table, here / "parts.parquet")
    split = {"source": "parts.parquet", "split": {"kind": "column", "by": "part"}}
    found = inspect.dry_run(flowers(data=split, training={"early_stopping": {}}))
    assert any("early_stopping" in text for text in found["refused"]), found["refused"]
    assert found["data"]["test"] == 100


def cluster_of(*nodes: Node) -> Cluster:
    return Cluster("10.9.9.9:6379", list(nodes), {"ray": "2.60.0"})


def test_a_cluster_elsewhere_does_not_see_folders_of_this_machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = Node("10.9.9.9", {"CPU": 8.0}, {"CPU": 8.0}, False)
    monkeypatch.setattr(place, "there", lambda *a: cluster_of(far))
    found = inspect.dry_run(flowers(resources={"workers": 2}))
    assert any("which the workers at 10.9.9.9:6379 do not see" in t for t in found["refused"]), found["refused"]
    assert found["resources"]["room"] == 8
    near = Node("127.0.0.1", {"CPU": 8.0}, {"CPU": 1.0}, True)
    monkeypatch.setattr(place, "there", lambda *a: cluster_of(near))
    found = inspect.dry_run(flowers(resources={"workers": 2}))
    assert [t for t in found["refused"] if "do not see" in t] == []
    assert any("room for 1 such workers now" in t for t in found["refused"]), "only what is free counts"


def test_an_address_that_does_not_answer_is_refused_soon(here: Path) -> None:
    began = time.monotonic()
    found = inspect.dry_run(flowers(resources={"workers": 1}), address=f"127.0.0.1:{closed_port()}")
    assert any("nothing answers at 127.0.0.1" in t for t in found["refused"]), found["refused"]
    assert time.monotonic() - began < 30


def test_the_package_leaves_data_and_git_out(here: Path) -> None:
    (here / ".git").mkdir()
    (here / ".git/blob").write_bytes(b"x" * 2_000_000)
    (here / "model.py").write_text("x = 1\n")
    empty = place.package()["bytes"]
    (here / "big.parquet").write_bytes(b"x" * 2_000_000)
    (here / "code.py").write_text("y" * 5000)
    assert place.package()["bytes"] == empty + 5000


def test_a_dry_run_takes_little_and_starts_no_ray(here: Path) -> None:
    script = (
        "import resource, sys\n"
        "from seekray_jobs.train import experiment_of\n"
        "from seekray import inspect\n"
        "found = inspect.dry_run(experiment_of('e.yaml', [], None))\n"
        "print(inspect.dry_run_text(found))\n"
        "assert not {'ray', 'mlflow'} & set(sys.modules), 'imported'\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    inspect.init("houses.csv", ["price"], here / "e.yaml")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stderr.splitlines()[-1]) < 5, "seconds of CPU"


def test_the_command_exits_2_where_something_is_refused(here: Path) -> None:
    from seekray.cli import app

    inspect.init("houses.csv", ["price"], here / "e.yaml")
    good = CliRunner().invoke(app, ["train", "e.yaml", "--dry-run", "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["refused"] == []
    bad = CliRunner().invoke(app, ["train", "e.yaml", "--dry-run", "--set", "data.source=none.csv"])
    assert bad.exit_code == 2
    assert "REFUSED" in bad.stdout


# ---- doctor


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


@pytest.fixture
def where(home: Path) -> Settings:
    home.mkdir(parents=True)
    return settings()


def with_(where: Settings, **changes: Any) -> Settings:
    return Settings(**{**vars(where), **changes})


def only(found: Any) -> Any:
    (check,) = found
    return check


class Answer(http.server.BaseHTTPRequestHandler):
    date = ""

    def do_GET(self) -> None:
        self.send_response_only(200)
        if self.date:
            self.send_header("Date", self.date)
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Callable[[str], str]]:
    started: list[http.server.HTTPServer] = []

    def start(date: str = "") -> str:
        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Dated", (Answer,), {"date": date}))
        threading.Thread(target=made.serve_forever, daemon=True).start()
        started.append(made)
        return f"http://127.0.0.1:{made.server_address[1]}"

    yield start
    for made in started:
        made.shutdown()
        made.server_close()


def test_the_doctor_looks_at_everything(where: Settings) -> None:
    found = inspect.doctor(where)
    names = [c["name"] for c in found["checks"]]
    for name in (
        "cores", "memory", "gpus", "versions", "cluster", "token", "tracking", "storage", "disk", "shared memory",
        "port 8000", "port 8265", "port 5000", "haproxy", "serving", "clock",
    ):  # fmt: skip
        assert name in names
    assert {c["state"] for c in found["checks"]} <= {"ok", "note", "wrong"}
    assert all(c["advice"] for c in found["checks"] if c["state"] != "ok"), "what is wrong comes with what to do"
    text = inspect.doctor_text(found)
    assert all(name in text for name in names)
    json.dumps(found)


def test_a_look_that_hangs_or_fails_does_not_stop_the_doctor(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(settings: Settings, address: str | None) -> list[checks.Check]:
        raise OSError("broken")

    def hangs(settings: Settings, address: str | None) -> list[checks.Check]:
        time.sleep(60)
        return []

    monkeypatch.setattr(health, "ALL", (("a", fails), ("b", hangs), ("c", checks.shared_memory)))
    monkeypatch.setattr(health, "BUDGET_S", 0.5)
    began = time.monotonic()
    found = inspect.doctor(where)["checks"]
    assert time.monotonic() - began < 20
    assert [c["state"] for c in found[:2]] == ["note", "note"]
    assert "broken" in found[0]["found"]
    assert "no answer" in found[1]["found"]
    assert found[2]["name"] == "shared memory"


def test_the_tracking_server_is_asked(where: Settings, server: Callable[[str], str], home: Path) -> None:
    assert only(services.tracking(with_(where, tracking_uri=server("")), None)).state == "ok"
    dead = only(services.tracking(with_(where, tracking_uri=f"http://127.0.0.1:{closed_port()}"), None))
    assert dead.state == "wrong"
    assert "seekray sync" in dead.advice
    assert only(services.tracking(where, None)).state == "ok", "the embedded one is made with the first run"
    assert not (home / "mlflow.db").exists()
    (home / "mlflow.db").write_bytes(b"this is no database at all, but long enough to be read as one" * 40)
    assert only(services.tracking(where, None)).state == "wrong"


def test_storage_and_disk(where: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(services.storage(where, None)).state == "ok"
    (tmp_path / "file").touch()
    assert only(services.storage(with_(where, storage=str(tmp_path / "file/x")), None)).state == "wrong"
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    for gib, state in ((0.5, "wrong"), (3, "note"), (50, "ok")):
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda path, gib=gib: usage(2**40, 0, int(gib * 2**30)))
        assert checks.disk(where, None)[0].state == state
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(2**26, 0, 2**26))
    assert only(checks.shared_memory(where, None)).state == "note", "64 MiB, as containers have"


def test_a_port_in_use_names_its_user(where: Settings, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        monkeypatch.setattr(services, "PORTS", {port: "serve up"})
        check = only(services.ports(where, None))
        assert check.state == "note"
        assert f"(process {os.getpid()})" in check.found
        (home / "serve.json").write_text(json.dumps({"port": port, "host": "127.0.0.1"}))
        assert only(services.ports(where, None)).state == "ok", "our own instance"
    assert only(services.ports(where, None)).found.startswith("free")


def test_the_serving_instance_is_alive_or_stale(where: Settings, home: Path) -> None:
    assert only(services.serving(where, None)).state == "ok"
    with socket.create_server(("127.0.0.1", 0)) as gcs, socket.create_server(("127.0.0.1", 0)) as web:
        state = {"gcs": f"127.0.0.1:{gcs.getsockname()[1]}", "port": web.getsockname()[1], "host": "127.0.0.1"}
        (home / "serve.json").write_text(json.dumps(state))
        assert "is up" in only(services.serving(where, None)).found
        web.close()
        assert only(services.serving(where, None)).state == "wrong"
    stale = only(services.serving(where, None))
    assert stale.state == "note"
    assert "serve down" in stale.advice
    (home / "serve.json").write_text("{")
    assert only(services.serving(where, None)).state == "note"


def test_versions_must_match_here_and_there(where: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(checks.versions(where, None)).state == "ok"
    node = Node("10.9.9.9", {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}, False)
    told = Cluster("10.9.9.9:6379", [node], {"ray": "2.59.0", "python": checks.platform.python_version()})
    monkeypatch.setattr(services, "ask", lambda *a: told)
    check = services.cluster(where, "10.9.9.9:6379")[0]
    assert check.state == "wrong"
    assert "ray 2.59.0 there" in check.found
    same = Cluster(told.address, [node], {"ray": checks.importlib.metadata.version("ray")})
    monkeypatch.setattr(services, "ask", lambda *a: same)
    assert services.cluster(where, "10.9.9.9:6379")[0].state == "ok"
    real = checks.importlib.metadata.version
    monkeypatch.setattr(checks.importlib.metadata, "version", lambda n: "1.0" if n == "torch" else real(n))
    assert "torch 1.0, expected" in only(checks.versions(where, None)).found


def test_a_dead_address_and_an_open_token_are_told(where: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    cluster, token = services.cluster(with_(where, ray_address=f"127.0.0.1:{closed_port()}"), None)
    assert cluster.state == "wrong"
    assert "unset RAY_ADDRESS" in cluster.advice
    assert token.state == "wrong", "a file that is named and not there"
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    assert services.cluster(where, None)[1].advice.startswith("chmod 600")
    (tmp_path / "token").chmod(0o600)
    assert services.cluster(where, None)[1].state == "ok"
    assert services.cluster(where, None)[0].state == "ok", "no address: train starts its own"


def test_a_clock_that_is_off_is_told(where: Settings, server: Callable[[str], str]) -> None:
    assert only(checks.clock(where, None)).state == "ok"
    assert only(checks.clock(with_(where, tracking_uri=server("Mon, 01 Jan 2001 00:00:00 GMT")), None)).state == "wrong"


def test_something_that_is_no_ray_is_told(where: Settings, server: Callable[[str], str]) -> None:
    url = server("")
    assert "dashboard" in ask(Address(url), 5).error
    assert ask(Address("nonsense"), 5).error.startswith("nonsense is not an address")
    told = ask(Address(url.removeprefix("http://")), 1)
    assert told.error
    assert told.nodes == []


@pytest.mark.ray
def test_a_running_ray_tells_its_nodes_and_versions(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    told = ask(Address(address), 60)
    assert told.error == ""
    assert told.total("CPU") == ray.cluster_resources()["CPU"]
    assert told.here
    assert told.versions == {"ray": ray.__version__, "python": checks.platform.python_version()}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-the-token-of-this-cluster-0000")
    refused = ask(Address(address), 30)
    assert "token" in refused.error
    assert refused.nodes == []
