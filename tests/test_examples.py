"""Every shipped experiment loads, fits for two epochs in this process, and says to editors what it is."""

from __future__ import annotations

import importlib
import io
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from seekray import experiment_file, loop
from seekray.checkpoint import Checkpoints
from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.data.tables.prepare import prepare
from seekray.generator import open_model
from seekray.predictor import Predictor
from seekray.session import LocalSession
from seekray.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MEASURED = {"digits", "breast-cancer", "wine", "diabetes"}
# What an example has that would take minutes here, or that another run would have to make first.
SMALLER = {
    "lm": [
        "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", "model.context_length=64", "training.batch_size=256",
        "model.init_from=null", "model.lora=null",
    ],
}  # fmt: skip
examples = pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)


def _pictures(folder: Path) -> Path:
    """Some of scikit-learn's digits as PNGs, as `scripts/mnist.py` writes them."""
    table = open_source(Data(source="sample:digits")).table().slice(0, 150)
    pixels = np.stack([table[f"pixel_{i}_{j}"].to_numpy() for i in range(8) for j in range(8)], axis=1)
    images = []
    for row in (pixels * 15).astype(np.uint8).reshape(-1, 8, 8):
        buffer = io.BytesIO()
        Image.fromarray(row).save(buffer, format="PNG")
        images.append(buffer.getvalue())
    pq.write_table(pa.table({"image": images, "label": table["label"]}), folder / "digits.parquet")
    return folder / "digits.parquet"


def _questions(folder: Path) -> Path:
    """What `examples/questions.py` writes."""
    out = folder / "questions.jsonl"
    subprocess.run([sys.executable, ROOT / "examples" / "questions.py", out], check=True, capture_output=True)
    return out


def _manual(folder: Path) -> Path:
    """The beginning of sample:pydocs."""
    texts = open_source(Data(source="sample:pydocs")).table()["text"].to_pylist()
    (folder / "manual.txt").write_text("\n\n".join(texts)[:20_000])
    return folder / "manual.txt"


def _phrases(folder: Path) -> Path:
    """A few texts of programs with German translations."""
    pairs = [("Open File", "Datei öffnen"), ("Close", "Schließen"), ("Save As", "Speichern unter"), ("Print", "Drucken")]
    rows = [{"english": f"{e} {n}", "translation": f"{t} {n}", "package": "none"} for n in range(20) for e, t in pairs]
    (folder / "phrases.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "phrases.jsonl"


def _words(folder: Path) -> Path:
    """What `examples/words.py` writes, of fewer words and voices."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed (scripts/install installs it)")
    script = runpy.run_path(str(ROOT / "examples" / "words.py"))
    names = script["main"].__globals__
    names |= {"WORDS": ("yes", "no", "stop"), "VOICES": script["VOICES"][::2], "SPEEDS": ("150",)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["words.py", str(folder / "words.parquet")])
        script["main"]()
    return folder / "words.parquet"


# Data of the same form for examples whose own a script makes or fetches, or is large.
STAND_INS: dict[str, Callable[[Path], Path]] = {
    "mnist": _pictures,
    "lm-pretrain": _manual,
    "lm-source": _manual,
    "lm-finetune-qa": _questions,
    "lm-lora": _questions,
    "lm-classify": _questions,
    "lm-translate": _phrases,
    "words": _words,
}


class Silent:
    """Counts points, shows nothing."""

    def __init__(self) -> None:
        self.received = 0

    def points(self, new: Sequence[Any]) -> None:
        self.received += len(new)

    def progress(self, state: Any) -> None: ...


@pytest.fixture
def quality() -> ModuleType:
    """The benchmark, imported when it is asked for: scikit-learn takes a second."""
    return importlib.import_module("benchmarks.quality")


def test_measured_ones_are_shipped() -> None:
    assert {f.stem for f in EXAMPLES} >= MEASURED


@examples
def test_editors_are_told_the_schema(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    assert (file.parent / first.removeprefix(prefix)).resolve() == ROOT / "docs" / "experiment.schema.json"


@examples
def test_editors_find_no_mistake(file: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(file.read_text()), experiment_file.json_schema())


@examples
def test_named_and_registered_as_its_file(file: Path) -> None:
    experiment = experiment_file.load(file)
    assert experiment.name == experiment.register_as == file.stem


@examples
def test_says_how_it_is_run(file: Path) -> None:
    verb = "tune" if experiment_file.load(file).tune else "train"
    assert f"#   seekray {verb} examples/{file.name}\n" in file.read_text()


LONG = {"glucose", "languages", "language-ngrams"}  # 20 s and more, of what the others show in a few


@pytest.mark.parametrize(
    "file", [pytest.param(f, marks=[pytest.mark.slow] if f.stem in LONG else []) for f in EXAMPLES], ids=lambda f: f.stem
)
def test_two_epochs_in_this_process(file: Path, tmp_path: Path) -> None:
    short = ["training.epochs=2", "training.max_steps=null", "resources.workers=0"]
    if file.stem in STAND_INS:
        short.append(f"data.source={STAND_INS[file.stem](tmp_path)}")
    experiment = experiment_file.load(file, [*short, *SMALLER.get(experiment_file.load(file).family, ())])
    prepared = experiment.prepare()
    listener, run = Silent(), Storage(str(tmp_path))
    loop.run(
        experiment,
        LocalSession(experiment.training, run, listener=listener),
        prepared.schema,
        prepared.train,
        prepared.validation,
    )
    checkpoint = Checkpoints(run).latest()
    assert checkpoint is not None
    assert checkpoint.state["finished"]
    assert len(checkpoint.state["history"]) == 2
    assert listener.received
    info = {"name": experiment.name, "family": experiment.family, "model": experiment.as_json()["model"]}
    model = open_model(info, prepared.schema, checkpoint.group("best"))
    if isinstance(model, Predictor):
        assert len(model.predict(prepared.held_out.slice(0, 5)).predictions) == 5
    else:
        assert model.examples(prepared.held_out)["answers"]


class TestQuality:
    """`benchmarks/quality.py`."""

    @pytest.mark.slow
    def test_digits_on_one_fold(self, quality: ModuleType, tmp_path: Path) -> None:
        experiment = experiment_file.load(ROOT / "examples" / "digits.yaml")
        fold = next(quality.folds(experiment, 5, 0, tmp_path))
        accuracy, _ = quality.ours(experiment, fold, 0)
        assert accuracy >= 0.97

    def test_folds_cover_each_row_once(self, quality: ModuleType, tmp_path: Path) -> None:
        experiment = experiment_file.load(ROOT / "examples" / "wine.yaml")
        found = list(quality.folds(experiment, 5, 0, tmp_path))
        assert sum(len(f.test[1]) for f in found) == 178
        for fold in found:
            data = experiment.data.model_copy(
                update={"source": str(fold.path), "split": quality.Split(kind="column", by=quality.PART)}
            )
            prepared = prepare(data, experiment.task)
            assert len(prepared.schema.features) == 13
            assert len(prepared.train.rows) == len(fold.train[1])
            assert prepared.held_out.column("label").to_pylist() == fold.test[1].tolist()
            assert not len(prepared.validation.rows)

    def test_validation_rows_come_from_training(self, quality: ModuleType, tmp_path: Path) -> None:
        experiment = experiment_file.load(ROOT / "examples" / "wine.yaml", ["data.split.validation=0.1"])
        fold = next(quality.folds(experiment, 5, 0, tmp_path))
        data = experiment.data.model_copy(
            update={"source": str(fold.path), "split": quality.Split(kind="column", by=quality.PART)}
        )
        prepared = prepare(data, experiment.task)
        assert len(prepared.validation.rows) == 18
        assert len(prepared.train.rows) == len(fold.train[1]) - 18
        assert prepared.held_out.column("label").to_pylist() == fold.test[1].tolist()

    def test_writes_between_markers(self, quality: ModuleType, tmp_path: Path) -> None:
        page = tmp_path / "benchmarks.md"
        page.write_text("# A\n\n<!-- quality -->\nearlier\n<!-- /quality -->\n\n## B\n")
        scores = quality.Scores([0.9, 1.0], [0.1, 0.2])
        section = quality.markdown({"wine": {"seekray": scores, "mlp": scores, "linear": scores}}, "", 5, 3)
        for _ in range(2):  # writing twice is writing once
            quality.write(section, page)
        text = page.read_text()
        assert "earlier" not in text
        assert "| wine | ≥ 0.975 | 0.9500 ± 0.0500 (0.15 s)" in text
        assert text.endswith("<!-- /quality -->\n\n## B\n")
        page.write_text("# no markers\n")
        with pytest.raises(SystemExit, match="has no <!-- quality -->"):
            quality.write("x", page)
