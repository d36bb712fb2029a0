"""History and results → figures. The only file that imports matplotlib, and only when a figure is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seekray.evaluation import Evaluation

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#64748b"
MOST_CLASSES_NUMBERED = 20
MOST_FEATURES = 25
NAMES = {"lr": "learning rate", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "roc_auc": "ROC AUC", "macro_f1": "macro F1"}


def make_figure(columns: int = 1, width: float = 6.0, height: float = 4.2) -> tuple[Any, list[Any]]:
    """A figure without pyplot: no global state, no display, half the import time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#cbd5e1")
        axis.grid(True, color="#e2e8f0", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors="#334155", length=0)
    return figure, axes


def save(figure: Any, path: Path | str) -> Path:
    """Write a figure; the same bytes for the same figure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def name_of(key: str) -> str:
    """A metric as a figure names it."""
    return NAMES.get(key, key.replace("_", " "))


def curves(history: Sequence[Mapping[str, float]], path: Path | str) -> Path:
    """Loss, metrics and learning rate by epoch, from the loop's history (a dict an epoch, `epoch` and figures).

    `train_X` and `validation_X` share a panel. An empty history gives an empty figure that says so.
    """
    keys = [k for entry in history for k in entry]
    plain = dict.fromkeys(k.removeprefix("train_").removeprefix("validation_") for k in keys)
    panels = [k for k in plain if k not in ("epoch", "step", "seconds", "lr")][:4] + [k for k in ("lr",) if k in plain]
    figure, axes = make_figure(max(1, len(panels)), width=4.6, height=3.6)
    if not panels:
        axes[0].text(0.5, 0.5, "no epoch was finished", ha="center", va="center", transform=axes[0].transAxes, color=GREY)
    for axis, panel in zip(axes, panels, strict=False):
        for key, label, colour in (
            (f"train_{panel}", "train", ORANGE),
            (f"validation_{panel}", "validation", BLUE),
            (panel, None, GREY),
        ):
            points = [(e["epoch"], e[key]) for e in history if e.get(key) is not None]
            if points:
                marker = "o" if len(points) < 3 else None
                axis.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.8, marker=marker)
        axis.set_title(name_of(panel), loc="left", fontsize=11)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False)
    return save(figure, path)


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path | str) -> Path:
    """Counts by actual class (rows) and predicted class (columns), coloured by the share of the row."""
    import numpy as np

    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(12.0, max(4.2, 0.5 * len(classes) + 1.8))
    figure, (axis,) = make_figure(width=size + 0.8, height=size)
    axis.grid(False)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= MOST_CLASSES_NUMBERED:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else "#0f172a"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    shown = range(0, len(classes), max(1, len(classes) // 40 + 1) if len(classes) > 40 else 1)
    labels = [_short(str(classes[i])) for i in shown]
    slanted = max(map(len, labels), default=0) > 3
    axis.set_xticks(
        list(shown), labels, rotation=45 if slanted else 0, ha="right" if slanted else "center", rotation_mode="anchor"
    )
    axis.set_yticks(list(shown), labels)
    axis.set_xlabel("predicted")
    axis.set_ylabel("actual")
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the actual class").outline.set_visible(False)
    return save(figure, path)


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def residuals(targets: Sequence[float], predictions: Sequence[float], path: Path | str) -> Path:
    """Prediction against target, and the residuals' spread, in the target's unit."""
    import numpy as np

    actual, predicted = np.asarray(targets, float), np.asarray(predictions, float)
    figure, (left, right) = make_figure(2, width=5, height=4.2)
    if len(actual):
        both = np.concatenate([actual, predicted])
        ends = [both.min(), both.max()]
        left.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
        left.scatter(actual, predicted, s=14, alpha=max(0.15, min(0.7, 200 / len(actual))), color=BLUE, linewidths=0)
        right.hist(predicted - actual, bins=min(40, max(5, int(len(actual) ** 0.5))), color=BLUE, alpha=0.85)
        right.axvline(0, color=GREY, linewidth=1, linestyle="--")
    left.set_xlabel("target")
    left.set_ylabel("prediction")
    right.set_xlabel("prediction - target")
    right.set_ylabel("rows")
    return save(figure, path)


def importances(found: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Permutation importances with their spread over repeats, the largest at the top."""
    shown = list(found)[:MOST_FEATURES][::-1]
    figure, (axis,) = make_figure(width=6.4, height=max(2.2, 0.3 * len(shown) + 1.1))
    axis.barh(
        [_short(str(f["feature"]), 28) for f in shown],
        [f["mean"] for f in shown],
        xerr=[f["std"] for f in shown],
        color=BLUE,
        error_kw={"ecolor": GREY, "elinewidth": 1},
    )
    axis.grid(False, axis="y")
    axis.axvline(0, color=GREY, linewidth=1)
    metric = name_of(str(shown[0]["metric"])) if shown else "the metric"
    rest = len(found) - len(shown)
    axis.set_xlabel(f"fall of {metric} when shuffled" + (f" ({rest} smaller ones not shown)" if rest > 0 else ""))
    return save(figure, path)


def calibration(bins: Sequence[Mapping[str, float]], path: Path | str, error: float | None = None) -> Path:
    """The reliability diagram: accuracy by predicted probability, with the rows of each bin below it."""
    figure, (axis,) = make_figure(width=5.2, height=4.6)
    confidence, accuracy = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    most = max((b["count"] for b in bins), default=1)
    axis.bar(confidence, [0.25 * b["count"] / most for b in bins], width=0.04, color="#dbeafe", label="rows (relative)")
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfect")
    axis.plot(confidence, accuracy, color=BLUE, marker="o", markersize=4, linewidth=1.6, label="model")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="predicted probability", ylabel="share that is right")
    if error is not None:
        axis.set_title(f"calibration error {error:.3f}", loc="left", fontsize=11)
    axis.legend(frameon=False, loc="upper left")
    return save(figure, path)


def compare_runs(found: Mapping[str, Any], path: Path | str) -> Path:
    """Two runs side by side: a loss by step, and the metrics in which they differ.

    found: `{a, b, metrics: {name: {a, b}}, history: {a: {metric: [(step, value)]}, b: …}}`, as `runs compare` has it.
    """
    figure, (left, right) = make_figure(2, width=5.4, height=4.4)
    sides = {"a": (str(found["a"]), BLUE), "b": (str(found["b"]), ORANGE)}
    histories = found.get("history") or {}
    kept = [set(histories.get(side) or {}) for side in sides]
    key = next((k for k in ("validation_loss", "train_loss", "loss") if any(k in keys for keys in kept)), "validation_loss")
    for side, (name, colour) in sides.items():
        points = (histories.get(side) or {}).get(key) or []
        if points:
            left.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, label=_short(name, 40))
    left.set_title(name_of(key), loc="left", fontsize=11)
    left.set_xlabel("step")
    shown = [m for m, pair in found["metrics"].items() if all(isinstance(pair.get(s), (int, float)) for s in sides)]
    # One axis holds what is of one size: shares and small losses, else whatever there is.
    shown = ([m for m in shown if max(abs(found["metrics"][m][s]) for s in sides) <= 1.5] or shown)[:10]
    for i, (side, (name, colour)) in enumerate(sides.items()):
        places = [row + 0.4 * i for row in range(len(shown))]
        values = [found["metrics"][m][side] for m in shown]
        bars = right.barh(places, values, height=0.36, color=colour, label=_short(name, 40))
        right.bar_label(bars, fmt="%.3g", padding=2, fontsize=8, color="#334155")
    right.set_yticks([row + 0.2 for row in range(len(shown))], [name_of(m) for m in shown])
    right.invert_yaxis()
    right.margins(x=0.14)
    right.grid(False, axis="y")
    right.set_title("metrics that differ" if shown else "no metric differs", loc="left", fontsize=11)
    handles, labels = (right if shown else left).get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return save(figure, path)


def marginals(histograms: Mapping[str, Mapping[str, Any]], path: Path | str) -> Path:
    """Each column's shares, real and synthetic, in the same bins."""
    shown = list(histograms.items())[:MOST_FEATURES]
    columns = min(4, max(1, len(shown)))
    lines = -(-max(1, len(shown)) // columns)
    figure, _ = make_figure(0, width=1, height=2.0 * lines)
    figure.set_size_inches(3.0 * columns, 2.0 * lines)
    for number, (name, found) in enumerate(shown):
        axis = figure.add_subplot(lines, columns, number + 1)
        axis.spines[["top", "right"]].set_visible(False)
        places = range(len(found["real"]))
        axis.bar(places, found["real"], width=0.9, color="#cbd5e1", label="real")
        axis.step(places, found["synthetic"], where="mid", color=BLUE, linewidth=1.6, label="synthetic")
        axis.set_title(_short(name, 26), loc="left", fontsize=9)
        axis.set_xticks([])
        axis.tick_params(labelsize=7, length=0)
    if shown:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return save(figure, path)


def correlations(found: Mapping[str, Any], path: Path | str) -> Path:
    """Spearman's coefficients of real and of synthetic rows, side by side."""
    names = [_short(str(n), 16) for n in found["columns"]]
    figure, axes = make_figure(2, width=5.6, height=5.2)
    for axis, part in zip(axes, ("real", "synthetic"), strict=True):
        axis.grid(False)
        image = axis.imshow(found[part], cmap="RdBu", vmin=-1, vmax=1)
        axis.set_title(part, loc="left", fontsize=11)
        if len(names) <= MOST_FEATURES:
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            axis.set_yticks(range(len(names)), names if part == "real" else [""] * len(names), fontsize=7)
        else:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.colorbar(image, ax=axes, shrink=0.7, label="Spearman's coefficient").outline.set_visible(False)
    return save(figure, path)


def forecast(details: Mapping[str, Any], path: Path | str) -> Path:
    """Error by step ahead beside the baselines, and a few windows: past, truth, median and the outer quantiles."""
    examples = list(details["examples"])[:2]
    figure, axes = make_figure(1 + len(examples), width=4.8, height=3.8)
    colours = {"model": BLUE, "persistence": GREY, "seasonal": "#a3a3a3", "ewma": "#16a34a", "ridge": ORANGE}
    for name, errors in details["by_step"].items():
        axes[0].plot(range(1, len(errors) + 1), errors, color=colours[name], label=name, linewidth=1.8)
    axes[0].set(xlabel="steps ahead", ylabel="mean absolute error")
    axes[0].legend(frameon=False)
    for axis, example in zip(axes[1:], examples, strict=True):
        past, truth, quantiles = example.get("past", []), example["truth"], example["quantiles"]
        ahead = range(1, len(truth) + 1)
        axis.plot(range(1 - len(past), 1), [float("nan") if v is None else v for v in past], color=GREY, linewidth=1.2)
        axis.plot(ahead, truth, color=GREY, linewidth=1.2, linestyle="--", label="truth")
        low, *_, high = list(quantiles)
        if low != high:
            axis.fill_between(ahead, quantiles[low], quantiles[high], color="#dbeafe", label=f"{low} to {high}")
        axis.plot(ahead, quantiles["0.5"], color=BLUE, linewidth=1.8, label="median")
        axis.set_xlabel("steps from the origin")
        axis.legend(frameon=False)
    return save(figure, path)


def result(evaluation: Evaluation, folder: Path | str) -> list[Path]:
    """The figures of an evaluation that it has the numbers of; returns their paths."""
    folder = Path(folder)
    if evaluation.task == "forecast":
        return [forecast(evaluation.details, folder / "forecast.png")]
    if evaluation.residuals is not None:
        shown = evaluation.residuals
        return [residuals(shown["target"], shown["prediction"], folder / "residuals.png")]
    error = evaluation.metrics.get("calibration_error")
    made = []
    if evaluation.details.get("histograms"):
        made.append(marginals(evaluation.details["histograms"], folder / "marginals.png"))
    if len(evaluation.details.get("correlations", {}).get("columns", ())) > 1:
        made.append(correlations(evaluation.details["correlations"], folder / "correlations.png"))
    made += [calibration(evaluation.calibration, folder / "calibration.png", error)] if evaluation.calibration else []
    if evaluation.confusion is not None:
        classes = [str(c["class"]) for c in evaluation.classes]
        made.append(confusion_matrix(evaluation.confusion, classes, folder / "confusion_matrix.png"))
    return made
