"""Texts by a bundle: `Generator`, files of prompts, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from small_lm import write_bundle
from training_kit import write_table
from typer.testing import CliRunner

from seekray.batch.texts import answer
from seekray.cli import app
from seekray.data.options import Data
from seekray.errors import DataError, UserError
from seekray.generator import Generator
from seekray.models.text_engine import Piece

ASKED: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["once", "twice upon", None, "x" * 200, *(f"number {i}" for i in range(30))]
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": t}) + "\n" for i, t in enumerate(texts)))
    return path


def test_generator(bundle: Path) -> None:
    generator = Generator.load(bundle)
    made = generator.generate(["once", "twice upon"], **ASKED)
    assert made.column("prompt").to_pylist() == ["once", "twice upon"]
    assert generator.generate("once", **ASKED).to_pylist() == made.slice(0, 1).to_pylist()
    assert "".join(generator.stream("once", **ASKED)) == made.column("text")[0].as_py()
    pieces: list[Piece] = list(generator.pieces(prompts=["once"], **ASKED))
    assert len(pieces) == made.column("tokens")[0].as_py()
    ids = [generator.schema.tokenizer.end, *generator.schema.tokenizer.encode(["once"])[0]]  # type: ignore[attr-defined]
    assert generator.generate([ids], **ASKED).column("text") == made.slice(0, 1).column("text")
    expected = generator.modules["lm"](torch.tensor([ids]))[0]
    assert torch.equal(generator.logits(ids), expected)
    with pytest.raises(UserError, match=r"temperature: .* \(given: -1\)"):
        generator.generate("once", temperature=-1)
    with pytest.raises(DataError, match="a prompt of 201 tokens given, the model looks at 96"):
        generator.generate("x" * 200)


def test_the_sample_is_what_it_answers_again(bundle: Path) -> None:
    generator = Generator.load(bundle)
    assert generator.examples(pa.table({"text": ["abc"]})) == generator.sample


def test_a_file_of_prompts(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    data = Data(source=str(prompts), key=("id",))
    done = answer(bundle, data, str(tmp_path / "a.parquet"), ASKED, part_rows=7)
    assert done == {"rows": 32, "rejected": 2, "out": str(tmp_path / "a.parquet")}
    made = pq.read_table(tmp_path / "a.parquet")
    assert made.column("id").to_pylist() == ["p0", "p1", *(f"p{i}" for i in range(4, 34))]
    alone = Generator.load(bundle).generate(made.column("prompt").to_pylist(), **ASKED)
    assert made.drop_columns(["id"]).equals(alone)
    reasons = [json.loads(line) for line in (tmp_path / "a.parquet.rejected.jsonl").read_text().splitlines()]
    assert [r["row"] for r in reasons] == [2, 3]
    assert "expected a text, got None" in reasons[0]["reason"]
    assert "a prompt of 201 tokens" in reasons[1]["reason"]


def test_several_texts_of_a_prompt(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    answer(bundle, Data(source=str(prompts)), str(tmp_path / "parts"), ASKED | {"n": 2, "logprobs": 0}, part_rows=9)
    made = pads.dataset(tmp_path / "parts").to_table()
    assert made.column("row").to_pylist() == [i for i in range(34) if i not in (2, 3) for _ in range(2)]
    assert made.column("sample").to_pylist() == [0, 1] * 32
    assert [len(p) for p in made.column("logprobs").to_pylist()] == made.column("tokens").to_pylist()
    with pytest.raises(UserError, match="other"):
        answer(bundle, Data(source=str(prompts)), str(tmp_path / "parts"), ASKED)


def test_which_column_the_prompts_are_in(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("question\nonce\n")
    assert answer(bundle, Data(source=str(tmp_path / "one.csv")), str(tmp_path / "o.jsonl"), ASKED)["rows"] == 1
    (tmp_path / "two.csv").write_text("question,other\nonce,1\n")
    with pytest.raises(DataError, match="prompt"):
        answer(bundle, Data(source=str(tmp_path / "two.csv")), str(tmp_path / "o.jsonl"), ASKED)


@pytest.mark.ray
def test_over_ray(bundle: Path, prompts: Path, tmp_path: Path, ray_cluster: None) -> None:
    data = Data(source=str(prompts))
    here = answer(bundle, data, str(tmp_path / "here.parquet"), ASKED)
    there = answer(bundle, data, str(tmp_path / "there.parquet"), ASKED, workers=1, part_rows=8)
    assert (there["rows"], there["rejected"]) == (here["rows"], here["rejected"])
    assert pq.read_table(tmp_path / "there.parquet").equals(pq.read_table(tmp_path / "here.parquet"))


def test_the_command(bundle: Path, prompts: Path, tmp_path: Path, home: Path) -> None:
    run = CliRunner().invoke
    asked = ["--max-tokens", "12", "--temperature", "0.8", "--seed", "3"]
    expected = Generator.load(bundle).generate(["once", "twice upon"], **ASKED).to_pylist()
    shown = run(app, ["generate", str(bundle), "--prompt", "once", *asked])
    assert shown.stdout == expected[0]["text"] + "\n"
    document = run(app, ["generate", str(bundle), "--prompt", "once", "--prompt", "twice upon", *asked, "--json"])
    assert json.loads(document.stdout)["texts"] == expected
    out = tmp_path / "o.jsonl"
    done = run(app, ["generate", str(bundle), "--data", str(prompts), "--out", str(out), *asked, "--json"])
    assert json.loads(done.stdout) == {"rows": 32, "rejected": 2, "out": str(out)}
    assert json.loads(out.read_text().splitlines()[0])["text"] == expected[0]["text"]
    for wrong in (["--data", str(prompts)], ["--prompt", "once", "--out", str(out)], []):
        assert isinstance(run(app, ["generate", str(bundle), *wrong]).exception, UserError)


def test_a_model_of_rows_makes_no_texts(tmp_path: Path) -> None:
    from training_kit import experiment, prepare_for, run_here

    from seekray.report import conclude
    from seekray.storage import Storage
    from seekray.tracking.spool import Tracker

    given = experiment(write_table(tmp_path / "table.csv"), "rows", training={"epochs": 1})
    prepared = prepare_for(given)
    last, run = run_here(given, prepared, tmp_path), Storage(str(tmp_path))
    folder = tmp_path / conclude(given, "0" * 12, run, prepared, last, Tracker(run, "t")).bundle
    with pytest.raises(UserError, match="t does not make texts"):
        Generator.load(folder).stream("once")
