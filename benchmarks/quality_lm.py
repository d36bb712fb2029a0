"""Quality of `lm`: a language model of pydocs, questions in held-out wordings, translation as a demonstration.

    python -m benchmarks.quality_lm [pydocs questions translation] [--seeds 1] [--steps 1400] [--write] [--json]

pydocs: 4 layers of 128, BPE of 1,024, one thread, at most 4 CPU minutes; beside it byte unigrams, an 8-gram Kneser-Ney, xz
and bzip2 that have seen the training text. All predict the same last tenth. questions: `examples/questions.py` (held-out
wordings) from the model of pydocs and from a random start, equal steps. translation: needs the file that
`examples/catalogues.py` writes (`--pairs`), else it is left out; beside copying and the nearest known sentence (of training
and validation).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.in_process import trained
from benchmarks.lm_parts import bz, kneser_ney, primed, unigrams, xz
from benchmarks.quality import write as write_between
from seekray import experiment_file
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.evaluation import evaluate
from seekray.generator import Generator
from seekray.model_ref import with_base
from seekray.settings import read_settings

ROOT = Path(__file__).resolve().parents[1]
PYDOCS: dict[str, Any] = {
    "name": "pydocs", "family": "lm", "task": "pretrain",
    "data": {"source": "sample:pydocs", "split": {"kind": "last", "test": 0, "validation": 0.1}},
    "model": {
        "hidden_size": 128, "num_layers": 4, "num_heads": 4, "vocab_size": 1024, "context_length": 256, "dropout": 0.1,
    },
    "training": {
        "max_steps": 880, "batch_size": 8, "lr": 0.003, "weight_decay": 0.1, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup": 0.05, "final": 0.05},
    },
    "resources": {"workers": 0},
}  # fmt: skip
BITS, MINUTES, EXACT = 1.84, 4.0, 0.95
RATES = {"pre-trained": 0.002, "random": 0.004}
EPOCHS = (2, 4, 6, 10, 14)
STEPS = 1400  # of translation: about five CPU minutes


def pydocs(seed: int, folder: Path | None = None) -> dict[str, float]:
    """Bits per byte of the last tenth and CPU seconds; the other models where the seed is 0."""
    experiment = Experiment.model_validate(PYDOCS | {"training": PYDOCS["training"] | {"seed": seed}})
    model, prepared, seconds = trained(experiment, folder, last=True)  # nothing is chosen on the last tenth
    assert isinstance(model, Generator)
    found = {"seekray": evaluate(model, prepared.held_out, resamples=0).metrics["bits_per_byte"], "cpu_seconds": seconds}
    if seed == 0:
        before = _text(prepared)
        after = "\n\n".join(prepared.held_out["text"].to_pylist()).encode()
        found |= {
            "unigrams": unigrams(before, after), "8-gram Kneser-Ney": kneser_ney(before, after),
            "xz, primed": primed(xz, before, after), "bzip2, primed": primed(bz, before, after),
        }  # fmt: skip
    return found


def _text(prepared: Prepared) -> bytes:
    """The training text, its documents separated as the held-out ones are."""
    tokenizer: Any = prepared.schema.tokenizer  # type: ignore[attr-defined]
    stream = prepared.train.read(0, prepared.train.size)  # type: ignore[attr-defined]
    ends = np.flatnonzero(stream == tokenizer.end)
    return "\n\n".join(filter(None, (tokenizer.decode(part[1:].tolist()) for part in np.split(stream, ends)))).encode()


def questions(base: Path, folder: Path, epochs: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Exact match on held-out wordings, from the pre-trained and from a random start with the same shape and tokenizer.

    Both take equal steps, each at the rate that was best for it at six epochs, by the validation wording.
    """
    data = folder / "questions.jsonl"
    subprocess.run([sys.executable, ROOT / "examples" / "questions.py", data], check=True, capture_output=True)
    found = []
    for many, name, seed in itertools.product(epochs, RATES, range(seeds)):
        changes = [
            f"data.source={data}", f"model.init_from={base}", f"training.epochs={many}", f"training.lr={RATES[name]}",
            f"training.seed={seed}", "resources.workers=0",
        ]  # fmt: skip
        experiment = experiment_file.load(ROOT / "examples" / "lm-finetune-qa.yaml", changes)
        given = with_base(experiment, read_settings({"SEEKRAY_HOME": str(folder)}))
        if name == "random":  # the same tokenizer: that of the base
            text = given.data.text.model_copy(update={"tokenizer": str(base / "tokenizer.json")})  # type: ignore[union-attr]
            given = given.model_copy(
                update={
                    "data": given.data.model_copy(update={"text": text}),
                    "model": given.model.model_copy(update={"init_from": None}),
                }
            )
        model, prepared, seconds = trained(given)
        assert isinstance(model, Generator)
        metrics = evaluate(model, prepared.held_out, resamples=0).metrics
        run = {"start": name, "epochs": many, "seed": seed, "cpu_seconds": seconds, "rate": RATES[name]}
        found.append(run | {k: metrics[k] for k in ("exact_match", "loss")})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def translation(pairs: Path, seed: int, steps: int) -> dict[str, float]:
    """chrF of held-out texts: ours, copying the English, and the translation of the nearest text not held out.

    The example as it is, but for its length: so many steps.
    """
    from sacrebleu.metrics.chrf import CHRF

    changes = [f"data.source={pairs}", f"training.seed={seed}", "resources.workers=0"]
    changes += ["training.epochs=null", f"training.max_steps={steps}"]
    experiment = experiment_file.load(ROOT / "examples" / "lm-translate.yaml", changes)
    model, prepared, seconds = trained(experiment)
    assert isinstance(model, Generator)
    held = prepared.held_out
    done = evaluate(model, held, resamples=0)
    english, german = (held[n].to_pylist()[:1000] for n in ("english", "translation"))
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    seen = set(held["english"].to_pylist())
    known = [r for r in rows if r["english"] not in seen]
    nearest = [known[i]["translation"] for i in _nearest([r["english"] for r in known], english)]
    chrf = CHRF()
    return {
        "seekray": done.details["corpus_chrf"], "copying": chrf.corpus_score(english, [german]).score,
        "nearest known text": chrf.corpus_score(nearest, [german]).score, "pairs": len(rows), "cpu_seconds": seconds,
        "exact_match": done.metrics["exact_match"], "steps": steps, "held_out": len(held), "compared": len(english),
    }  # fmt: skip


def _nearest(known: list[str], asked: list[str]) -> np.ndarray[Any, Any]:
    """The known text of the largest cosine over character 1- to 4-grams."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    table = vectors.fit_transform(known)
    return np.asarray((vectors.transform(asked) @ table.T).toarray().argmax(1))


def markdown(found: dict[str, Any]) -> str:
    """The section of the page."""
    lines = ["`python -m benchmarks.quality_lm`, one thread, CPU seconds.", ""]
    if "pydocs" in found:
        runs = found["pydocs"]
        bits, seconds = ([r[k] for r in runs] for k in ("seekray", "cpu_seconds"))
        met = "met" if max(bits) <= BITS and max(seconds) <= MINUTES * 60 else "**missed**"
        lines += [
            "| English text, bits per byte of the last tenth | | |", "|---|---|---|",
            f"| seekray: 4 layers of 128, BPE 1,024 | {', '.join(f'{b:.3f}' for b in bits)} | target {BITS}, {met}; "
            f"{', '.join(f'{s:.0f}' for s in seconds)} s |",
        ]  # fmt: skip
        lines += [f"| {k} | {v:.3f} | |" for k, v in runs[0].items() if k not in ("seekray", "cpu_seconds")]
    if "questions" in found:
        lines += ["", "| 200 questions in a held-out wording, exact match | " + " | ".join(RATES) + " |", "|---|---|---|"]
        for many in sorted({r["epochs"] for r in found["questions"]}):
            of = {n: [r["exact_match"] for r in found["questions"] if (r["start"], r["epochs"]) == (n, many)] for n in RATES}
            lines.append(f"| {many} epochs | " + " | ".join(", ".join(f"{e:.3f}" for e in of[n]) for n in RATES) + " |")
    if "translation" in found:
        pairs = found["translation"]
        texts = f"{pairs['compared']} of {pairs['held_out']} held-out texts of interfaces ({pairs['pairs']} in all)"
        lines += ["", f"| English to German, a demonstration: {texts}, chrF | |", "|---|---|"]
        lines += [f"| {k} | {pairs[k]:.1f} |" for k in ("seekray", "nearest known text", "copying")]
        lines += ["", f"{pairs['steps']} steps, {pairs['cpu_seconds']:.0f} s; exact match {pairs['exact_match']:.3f}."]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["pydocs", "questions", "translation"])
    parser.add_argument("--seeds", type=int, default=1, help="of pydocs and of fine-tuning")
    parser.add_argument("--pairs", type=Path, default=Path("catalogues-de.jsonl"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of translation")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEEKRAY_HOME"] = folder
        base = Path(folder, "base")
        if {"pydocs", "questions"} & set(given.names):
            found["pydocs"] = [pydocs(seed, base if seed == 0 else None) for seed in range(given.seeds)]
            print(found["pydocs"], file=sys.stderr, flush=True)
        if "questions" in given.names:
            found["questions"] = questions(base / "bundle", Path(folder), EPOCHS, given.seeds)
        if "translation" in given.names and given.pairs.exists():
            found["translation"] = translation(given.pairs, 0, given.steps)
    print(json.dumps(found, indent=1) if given.json else markdown(found))
    if given.write:
        write_between(markdown(found), marker="quality-lm")
    missed = [r for r in found.get("pydocs", []) if r["seekray"] > BITS or r["cpu_seconds"] > MINUTES * 60]
    tuned = [r for r in found.get("questions", []) if r["start"] == "pre-trained" and r["epochs"] == EPOCHS[-1]]
    exact = [r for r in tuned if r["exact_match"] < EXACT]
    return int(bool(missed or exact))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
