"""Synthetic data beside real data: the shipped generators on several splits, and what their rows bring a classifier.

    python -m benchmarks.quality_gen [breast-cancer-gen penguins-gen ...] [--splits 5] [--augment] [--write] [--json]

Each is `examples/NAME.yaml` as shipped, trained in this process on one torch thread; rows are split anew for each of
the splits, digits and towns are trained with another seed each time. The figures are those of `seekray evaluate`
(`seekray.evaluation.synthesis` says what each is), the mean over the splits. `--augment` trains `examples/NAME.yaml` of
the family net on the same training rows, alone and with as many synthetic rows again. `--write` puts the section into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.in_process import fit, model_of
from seekray import bundle as bundles
from seekray import experiment_file
from seekray.augment import augmented
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.evaluation import evaluate
from seekray.generator import Generator
from seekray.settings import settings
from seekray.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
# Figure -> (bound, True where it is a lower one). The Fréchet distance is bounded by that of real images among themselves,
# twice, as 0.40 is twice 0.20: its own scale is that of the classifier's features.
TARGETS: dict[str, dict[str, tuple[float, bool]]] = {
    "breast-cancer-gen": {
        "utility": (0.95, True), "detector_auc": (0.65, False), "ks_distance": (0.08, False), "cpu": (60, False),
    },
    "penguins-gen": {"utility": (0.95, True), "detector_auc": (0.70, False)},
    "digits-gen": {
        "agreement": (0.97, True), "frechet_ratio": (2.0, False), "diversity": (0.85, True), "trained_on_made": (0.87, True),
        "cpu": (120, False),
    },
    "towns-gen": {},
}  # fmt: skip
AUGMENTED = ("breast-cancer", "wine", "digits")


def one(name: str, number: int, folder: Path, changes: Sequence[str] = ()) -> dict[str, float]:
    """The figures of one split (of rows) or one seed (of images and texts)."""
    experiment = experiment_file.load(ROOT / "examples" / f"{name}.yaml", ["resources.workers=0", *changes])
    which = f"data.split.seed={number}" if experiment.task == "rows" else f"training.seed={number}"
    experiment = experiment_file.load(ROOT / "examples" / f"{name}.yaml", ["resources.workers=0", which, *changes])
    prepared = experiment.prepare()
    last, cpu = fit(experiment, prepared, folder)
    found = evaluate(model_of(experiment, prepared, last), prepared.held_out, training=prepared.training_rows)
    metrics = dict(found.metrics) | {"cpu": cpu}
    if "frechet_real" in metrics:
        metrics["frechet_ratio"] = metrics["frechet_distance"] / metrics["frechet_real"]
    return metrics


def with_synthetic(name: str, number: int, folder: Path) -> dict[str, float]:
    """Accuracy of the family net on the test rows: trained on real rows, and on these and as many synthetic ones."""
    net = experiment_file.load(ROOT / "examples" / f"{name}.yaml", ["resources.workers=0", f"data.split.seed={number}"])
    prepared = net.prepare()
    source = {"digits": "digits-rows"}.get(name, name)
    given = experiment_file.load(ROOT / "examples" / "breast-cancer-gen.yaml").as_json()
    target = net.data.targets[0]
    given |= {"name": f"{source}-gen", "resources": {"workers": 0}}
    features: dict[str, Any] = {f.name: {} for f in prepared.schema.features}
    features[target] = {"kind": "categorical"}
    given["data"] = net.as_json()["data"] | {"target": None, "features": features}
    given["data"]["split"] = {"kind": "column", "by": PART}
    given["model"]["condition"] = [target]
    rows = len(prepared.train)
    given["training"]["epochs"] = max(30, 400_000 // rows)
    _with_parts(net, prepared, given, folder)
    generator = Experiment.model_validate(given)
    theirs = generator.prepare()
    last, _ = fit(generator, theirs, folder / "generator")
    made = model_of(generator, theirs, last)
    info = {"name": generator.name, "family": "gen", "task": "rows", "model": generator.as_json()["model"]}
    info |= {"fingerprint": theirs.fingerprint, "metrics": {}}
    assert isinstance(made, Generator)
    bundles.write(Storage(str(folder)), "bundle", info, theirs.schema, last.group("best"), {})
    scores = {}
    for which, count in (("real", 0), ("half", rows // 2), ("same", rows), ("four", 4 * rows)):
        changed = net
        if count:
            data = net.data.model_dump() | {"augment": {"model": str(folder / "bundle"), "rows": count}}
            changed = Experiment.model_validate(net.as_json() | {"data": data})
        of = []
        for seed in range(3):
            seeded = Experiment.model_validate(changed.as_json() | {"training": changed.as_json()["training"] | {"seed": seed}})
            ready = augmented(seeded.prepare(), seeded, settings())
            trained, _ = fit(seeded, ready, folder / f"{which}-{seed}")
            answers = model_of(seeded, ready, trained).predict(ready.held_out).predictions
            of.append(float(np.mean([a == b for a, b in zip(answers, ready.held_out[target].to_pylist(), strict=True)])))
        scores[which] = float(np.mean(of))
    return scores


PART = "__part__"


def _with_parts(net: Experiment, prepared: Prepared, given: dict[str, Any], folder: Path) -> None:
    """The table in a file, with a column of the parts that the classifier's split makes of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from seekray.data.sources import open_source

    table = open_source(net.data).table()
    parts = np.full(len(table), "test", object)
    parts[prepared.train.rows] = "train"  # type: ignore[attr-defined]
    parts[prepared.validation.rows] = "validation"  # type: ignore[attr-defined]
    pq.write_table(table.append_column(PART, pa.array(parts.tolist())), folder / "table.parquet")
    given["data"]["source"] = str(folder / "table.parquet")


def mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {key: float(np.mean([f[key] for f in found if key in f])) for key in found[0]}


def markdown(results: Mapping[str, Sequence[Mapping[str, float]]], gains: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        "`python -m benchmarks.quality_gen --augment`: `examples/NAME.yaml` as shipped, the mean (the worst split or seed).",
        "", "| model | figure | mean (worst) | target | |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in results.items():
        averages, targets = mean(found), TARGETS[name]
        for key, value in averages.items():
            bound, lower = targets.get(key, (None, True))
            worst = (min if lower else max)(f[key] for f in found)
            met = "" if bound is None else "met" if (value >= bound if lower else value <= bound) else "**missed**"
            shown = f"{value:.3f}" if bound is None else f"{value:.3f} ({worst:.3f})"
            text = "" if bound is None else f"{'≥' if lower else '≤'} {bound:g}"
            lines.append(f"| {name} ({len(found)}) | {key} | {shown} | {text} | {met} |")
    if gains:
        lines += [
            "", "Real rows alone, and with synthetic rows (`data.augment`): accuracy of `examples/NAME.yaml` on the test rows.",
            "", "| table | splits | real alone | + half as many | + as many | + four times |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, found in gains.items():
            averages = mean(found)
            shown = " | ".join(f"{averages[key]:.4f}" for key in ("real", "half", "same", "four"))
            lines.append(f"| {name} | {len(found)} | {shown} |")
    return "\n".join(lines)


def write(section: str, page: Path = PAGE) -> None:
    """Between the markers of the page."""
    text = page.read_text()
    if "<!-- gen -->" not in text:
        sys.exit(f"{page} has no <!-- gen --> and <!-- /gen -->")
    page.write_text(
        re.sub(r"<!-- gen -->.*<!-- /gen -->", lambda _: f"<!-- gen -->\n{section}\n<!-- /gen -->", text, flags=re.S)
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TARGETS))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, float]]] = {}
    gains: dict[str, list[dict[str, float]]] = {}
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        for name in (n for n in given.names if n in TARGETS):
            count = given.splits if name in ("breast-cancer-gen", "penguins-gen") else min(3, given.splits)
            for number in range(count):
                results.setdefault(name, []).append(one(name, number, Path(folder) / f"{name}-{number}", given.changes))
                print(name, number, {k: round(v, 3) for k, v in results[name][-1].items()}, file=sys.stderr, flush=True)
        for name in AUGMENTED if given.augment and given.names == list(TARGETS) else [n for n in given.names if n in AUGMENTED]:
            for number in range(min(3, given.splits)):
                place = Path(folder) / f"{name}-augment-{number}"
                place.mkdir()
                gains.setdefault(name, []).append(with_synthetic(name, number, place))
                print(name, number, gains[name][-1], file=sys.stderr, flush=True)
    section = markdown(results, gains)
    print(json.dumps({"results": results, "gains": gains}, indent=1) if given.json else section)
    if given.write:
        write(section)


if __name__ == "__main__":
    main()
