"""Quality of `rec`'s shipped experiments on their own splits, 3 seeds, beside what each must beat.

    python -m benchmarks.quality_rec [vowels glucose ...] [--seeds 3] [--json]

Each experiment is `examples/NAME.yaml` as it is shipped, with `training.seed` 0, 1, 2; one torch thread, in this process.
Forecasts stand beside persistence, seasonal naive, EWMA and ridge on the same windows; `relative` is the mean absolute error
over that of persistence, over all steps ahead and at the steps named. Languages stand beside a linear model (TF-IDF of
character 1- to 4-grams and a linear support vector machine) on the same rows. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.in_process import trained
from seekray import experiment_file
from seekray.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[1]
# Name -> what is asked: (figure, at least or at most, value).
TARGETS: dict[str, list[tuple[str, str, float]]] = {
    "vowels": [("accuracy", "≥", 0.975)],
    "digit-rows": [("accuracy", "≥", 0.97)],
    "languages": [("accuracy", "≥", 0.86)],
    "language-ngrams": [("accuracy", "≥", 0.935)],
    "glucose": [("relative at 6", "≤", 0.75), ("relative at 12", "≤", 0.81)],
    "sunspots": [("relative", "≤", 0.80), ("relative at 12", "≤", 0.80)],
    "stocks": [("relative", "≤", 1.0)],
}


def one(name: str, seed: int) -> tuple[dict[str, float], float, list[str]]:
    """Figures of the held-out rows, CPU seconds of the training, and what the evaluation says in words."""
    experiment = experiment_file.load(ROOT / "examples" / f"{name}.yaml", [f"training.seed={seed}", "resources.workers=0"])
    predictor, prepared, seconds = trained(experiment)
    found = evaluate(predictor, prepared.held_out, resamples=0)
    figures = dict(found.metrics)
    if steps := found.details.get("by_step"):
        for who, label in (("model", "relative"), ("ridge", "ridge"), ("ewma", "ewma"), ("seasonal", "seasonal")):
            if who in steps:
                figures[label] = sum(steps[who]) / sum(steps["persistence"])
                figures |= {
                    f"{label} at {i + 1}": e / p for i, (e, p) in enumerate(zip(steps[who], steps["persistence"], strict=True))
                }
    elif name == "languages":
        figures["linear"] = _linear(prepared, experiment)
    return figures, seconds, found.details.get("verdict", [])


def _linear(prepared: Any, experiment: Any) -> float:
    """Accuracy of a linear model on the same rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    from seekray.data.sources import open_source

    table = open_source(experiment.data).table().to_pandas()
    held = prepared.held_out.to_pandas()
    train = table[~table["message"].isin(set(held["message"]))]
    bag = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    model = LinearSVC().fit(bag.fit_transform(train["text"]), train["language"])
    return float((model.predict(bag.transform(held["text"])) == held["language"]).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    lines, everything = [], {}
    for name in given.names:
        runs = [one(name, seed) for seed in range(given.seeds)]
        seconds = statistics.fmean(r[1] for r in runs)
        everything[name] = {"seconds": seconds, "figures": [r[0] for r in runs], "verdicts": [r[2] for r in runs]}
        for figure, sign, wanted in TARGETS[name]:
            values = [r[0][figure] for r in runs]
            mean = statistics.fmean(values)
            met = mean >= wanted if sign == "≥" else mean <= wanted
            at = figure.removeprefix("relative")
            beside = ", ".join(f"{k} {runs[0][0][k + at]:.3f}" for k in ("ridge", "ewma", "seasonal") if k + at in runs[0][0])
            beside = beside or (f"linear {runs[0][0]['linear']:.3f}" if "linear" in runs[0][0] else "")
            spread = statistics.pstdev(values)
            cells = [name, figure, f"{sign} {wanted:g}", f"{mean:.4f} ± {spread:.4f}", beside, f"{seconds:.0f} s"]
            lines.append(f"| {' | '.join([*cells, 'yes' if met else 'no'])} |")
        if not given.json:
            print("\n".join(lines[-len(TARGETS[name]) :]), *runs[0][2], sep="\n", flush=True)
    if given.json:
        print(json.dumps(everything, indent=1))
        return
    print("\n| experiment | figure | asked | mean of the seeds | beside | CPU | met |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
