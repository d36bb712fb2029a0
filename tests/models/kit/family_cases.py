"""Small data and a small model for each task of each family: what `tests/test_families.py` runs over.

A new family, or a new task, is one more entry of `CASES`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from training_kit import experiment, write_table

from seekray.config import Experiment

# Merged into the case's parts, one level deep.
Parts = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One task of one family.

    given: writes the data into a folder and gives the experiment's `data` and `model` (and `training`
    beyond batches of 16 and 3 epochs); some 70 training rows make 5 steps an epoch, as the resume test
    wants. Random layers (dropout) belong in, so that resuming is told from starting again.
    exact: changes that leave no random number to a rank alone, so that two workers can equal one.
    falls: the figure of a step that falls when one batch is learned again and again.
    """

    given: Callable[[Path], dict[str, Any]]
    exact: Parts = field(default_factory=dict)
    falls: str = "loss"

    def experiment(self, family: str, task: str, folder: Path, *changes: Parts) -> Experiment:
        """The experiment of a case, its data in `folder`, with changes to it."""
        parts: dict[str, Any] = {"name": "t", "family": family, "task": task, "resources": {"workers": 0}}
        base = {"training": {"epochs": 3, "batch_size": 16, "log_every": 1}}
        for change in (base, self.given(folder), *changes):
            for key, value in change.items():
                parts[key] = parts.get(key, {}) | dict(value) if isinstance(value, Mapping) else value
        return Experiment.model_validate(parts)


def _table(task: str, folder: Path) -> dict[str, Any]:
    """Three numbers and a category, with a target of the task."""
    source = folder / "table.csv"
    given = experiment(source if source.exists() else write_table(source), task).as_json()
    return {"data": given["data"], "model": {"hidden_size": [8], "dropout": 0.2, "norm": "batch"}}


def _mixed_rows(folder: Path) -> dict[str, Any]:
    """Numbers, one of them with gaps, a category made and one given, a date and a key."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, rows = np.random.default_rng(0), 101
    table = pa.table({
        "id": pa.array(range(100, 100 + rows)),
        "weight": pa.array(rng.normal(size=rows).round(2), mask=rng.random(rows) < 0.2),
        "count": pa.array(rng.poisson(3, rows)),
        "colour": pa.array(rng.choice(["red", "green"], rows)),
        "kind": pa.array(rng.choice(["a", "b", "c"], rows)),
        "day": pa.array(np.datetime64("2024-01-01") + rng.integers(0, 300, rows)),
    })  # fmt: skip
    pq.write_table(table, folder / "rows.parquet")
    data = {"source": str(folder / "rows.parquet"), "key": ["id"]}
    model = {"condition": ["kind"], "hidden_size": 16, "discriminator_steps": 2, "dropout": 0.0, "norm": "batch"}
    return {"data": data, "model": model}


def _pictures(folder: Path) -> dict[str, Any]:
    """Squares in red or blue, in a folder each."""
    from PIL import Image, ImageDraw

    for number in range(101):
        colour = ("red", "blue")[number % 2]
        (folder / "pictures" / colour).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (7, 9), "white")
        ImageDraw.Draw(image).rectangle((number % 3, number % 4, 5, 6), fill=colour)
        image.save(folder / "pictures" / colour / f"{number:03}.png")
    features = {"image": {"size": [9, 7]}, "label": {}}
    model = {"condition": "label", "hidden_size": 8, "latent_size": 4, "spectral_norm": True}
    model |= {"loss": "least_squares", "discriminator": {"lr": 0.02}, "generator": {"lr": 0.0005}}
    return {"data": {"source": str(folder / "pictures"), "features": features}, "model": model}


def _names(folder: Path) -> dict[str, Any]:
    """Words of three syllables."""
    words = [f"{'bdfglm'[i % 6]}a{'nrst'[i % 4]}o{'ck'[i % 2]}" + "i" * (i % 3) for i in range(101)]
    (folder / "names.csv").write_text("name,length\n" + "".join(f"{w},{len(w)}\n" for w in words))
    model = {"condition": "length", "hidden_size": 8, "latent_size": 4, "num_layers": 1}
    return {"data": {"source": str(folder / "names.csv"), "features": ["name", "length"]}, "model": model}


def _sequences(task: str, folder: Path) -> dict[str, Any]:
    """Lists of 3 to 12 steps of two numbers, a text and a number, with a target of the task."""
    source = folder / "sequences.parquet"
    if not source.exists():
        rng = np.random.default_rng(0)
        lists = [rng.normal(size=(int(n), 2)) for n in rng.integers(3, 13, size=101)]
        words = ["".join(rng.choice(list("abcd"), size=len(x))) for x in lists]
        columns = {
            "steps": pa.array([x.tolist() for x in lists], pa.list_(pa.list_(pa.float64()))),
            "word": words,
            "age": rng.normal(size=101),
            "kind": [f"k{int(x[:, 0].sum() > 0)}" for x in lists],
            "each": [["up" if v > 0 else "down" for v in np.cumsum(x[:, 0])] for x in lists],
            "ahead": [[float(x[-1, 0] + i * x[-1, 1]) for i in range(3)] for x in lists],
        }
        pq.write_table(pa.table(columns), source)
    target = {"classification": "kind", "labelling": "each", "forecast": "ahead"}[task]
    features = {"steps": {}, "word": {"kind": "characters", "ngrams": [1, 2]}, "age": {}}
    model = {"hidden_size": 8, "dropout": 0.2, "num_layers": 2}
    if task == "classification":
        model |= {"pooling": "max", "crop": 0.5, "crop_steps": 2}
    return {"data": {"source": str(source), "target": target, "features": features}, "model": model}


SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "context_length": 16, "vocab_size": 300, "dropout": 0.1}


def _texts(task: str, folder: Path) -> dict[str, Any]:
    """Sums: as running text, as questions with answers, or as questions of one digit or of two."""
    sums = [(a, b) for a in range(10) for b in range(10)]
    rows = [{"q": f"{a}+{b}=", "a": str(a + b), "kind": "two" if a + b > 9 else "one"} for a, b in sums]
    split = {"test": 0.15, "validation": 0.15}
    if task == "pretrain":
        source = folder / "sums.txt"
        source.write_text("".join(f"{r['q']}{r['a']}\n" for r in rows) * 3)
        data = {"source": str(source), "text": {"tokenizer": "byte"}, "split": split | {"kind": "last"}}
    else:
        source = folder / "sums.jsonl"
        source.write_text("".join(json.dumps(r) + "\n" for r in rows))
        text = {"tokenizer": "byte", "column": "q"}
        if task == "finetune":
            text = {"tokenizer": "byte", "prompt": "q", "response": "a", "format": "{prompt}"}
        data = {"source": str(source), "text": text, "split": split} | ({"target": "kind"} if task == "classify" else {})
    return {"data": data, "model": SMALL}


WITHOUT_DROPOUT = {"model": {"dropout": 0.0}}

CASES: dict[tuple[str, str], Case] = {
    ("net", "classification"): Case(partial(_table, "classification"), exact=WITHOUT_DROPOUT),
    ("net", "regression"): Case(partial(_table, "regression"), exact=WITHOUT_DROPOUT),
    ("net", "multilabel"): Case(partial(_table, "multilabel"), exact=WITHOUT_DROPOUT),
    ("rec", "classification"): Case(partial(_sequences, "classification"), exact={"model": {"dropout": 0.0, "crop": 1.0}}),
    ("rec", "labelling"): Case(partial(_sequences, "labelling"), exact=WITHOUT_DROPOUT),
    ("rec", "forecast"): Case(partial(_sequences, "forecast"), exact=WITHOUT_DROPOUT),
    ("lm", "pretrain"): Case(partial(_texts, "pretrain"), exact=WITHOUT_DROPOUT),
    ("lm", "finetune"): Case(partial(_texts, "finetune"), exact=WITHOUT_DROPOUT),
    ("lm", "classify"): Case(partial(_texts, "classify"), exact=WITHOUT_DROPOUT),
    # a generator has no loss that falls; its discriminator has
    ("gen", "rows"): Case(_mixed_rows, falls="discriminator_loss"),
    ("gen", "images"): Case(_pictures, falls="discriminator_loss"),
    ("gen", "texts"): Case(_names, falls="discriminator_loss"),
}
