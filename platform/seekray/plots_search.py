"""The figures of a search: values by trial, parallel coordinates, which fields mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seekray.plots import BLUE, GREY, MOST_FEATURES, ORANGE, make_figure, name_of, save


def history(trials: Sequence[Mapping[str, Any]], metric: str, higher: bool, path: Path | str) -> Path:
    """A search: the value of each trial by its number, by what became of it, and the best so far."""
    figure, (axis,) = make_figure(width=7.2, height=4.2)
    scored = sorted((t for t in trials if t["value"] is not None), key=lambda t: int(t["number"]))
    for status, colour, marker in (("finished", BLUE, "o"), ("stopped", GREY, "x"), ("running", ORANGE, ".")):
        found = [(t["number"], t["value"]) for t in scored if t["status"] == status]
        if found:
            axis.scatter(*zip(*found, strict=True), color=colour, marker=marker, s=24, label=f"{status} ({len(found)})")
    best: list[float] = []
    for trial in scored:
        best.append(trial["value"] if not best else (max if higher else min)(best[-1], trial["value"]))
    if scored:
        axis.step([t["number"] for t in scored], best, where="post", color=ORANGE, linewidth=1.6, label="best so far")
    failed = [t["number"] for t in trials if t["status"] == "failed"]
    if failed:
        label = f"failed ({len(failed)})"
        axis.plot(failed, [0.01] * len(failed), "v", color="#dc2626", transform=axis.get_xaxis_transform(), label=label)
    axis.set(xlabel="trial", ylabel=f"validation {name_of(metric)}")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    return save(figure, path)


def front(
    trials: Sequence[Mapping[str, Any]],
    goals: Sequence[tuple[str, bool]],
    numbers: Sequence[int],
    best: int,
    path: Path | str,
) -> Path:
    """Two metrics of each trial; those that none beats in all metrics are joined, the chosen one is ringed.

    goals: names, and whether more is better.
    """
    (first, _), (second, _) = goals
    figure, (axis,) = make_figure(width=6.4, height=4.4)
    places = {t["number"]: (t["others"][second], t["value"]) for t in trials if t["value"] is not None and t.get("others")}
    axis.scatter(*zip(*places.values(), strict=True), color=GREY, s=18, label="trials")
    joined = sorted(places[n] for n in numbers)
    axis.plot(*zip(*joined, strict=True), "o-", color=BLUE, markersize=5, linewidth=1.2, label="none beats these")
    axis.scatter(*places[best], s=120, facecolors="none", edgecolors=ORANGE, linewidths=2, label=f"chosen: trial {best}")
    unit = {"latency": "latency, ms a row"}
    axis.set(xlabel=unit.get(second, name_of(second)), ylabel=f"validation {name_of(first)}")
    if min(x for x, _ in places.values()) > 0:
        axis.set_xscale("log")
    axis.legend(frameon=False)
    return save(figure, path)


def parallel(
    trials: Sequence[Mapping[str, Any]], logarithmic: Sequence[str], metric: str, higher: bool, path: Path | str
) -> Path:
    """Parallel coordinates: a line a trial, through its values and its result; the better, the darker, the best in orange.

    logarithmic: fields whose axis is. Values that are no numbers, or lists, stand in the order of their texts; a field that a
    trial did not have is at the foot.
    """
    scored = sorted((t for t in trials if t["value"] is not None), key=lambda t: float(t["value"]), reverse=not higher)
    keys = list(dict.fromkeys(k for t in scored for k in t["values"]))
    figure, (axis,) = make_figure(width=max(6.0, 1.7 * (len(keys) + 1)), height=4.4)
    axis.grid(False, axis="y")
    axes = [(key, [t["values"].get(key) for t in scored], key in logarithmic) for key in keys]
    axes.append((name_of(metric), [t["value"] for t in scored], False))
    places = [_heights(values, log) for _, values, log in axes]
    for i in range(len(scored)):
        best = i == len(scored) - 1
        shade = 0.12 + 0.6 * i / max(1, len(scored) - 1)
        heights = [column[0][i] for column in places]
        axis.plot(
            range(len(axes)), heights, color=ORANGE if best else BLUE, alpha=1 if best else shade, linewidth=2 if best else 1
        )
    for number, (_, ticks) in enumerate(places):
        axis.axvline(number, color=GREY, linewidth=0.8)
        for height, text in ticks:
            axis.text(number + 0.03, height, text, fontsize=7, color="#334155", va="center")
    axis.set_xticks(range(len(axes)), [name for name, _, _ in axes], rotation=20, ha="right", fontsize=8)
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(axes) - 0.6)
    return save(figure, path)


def _heights(values: Sequence[Any], logarithmic: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values stand on an axis from 0 to 1, and what is written beside it; a missing one stands below."""
    import math

    there = [v for v in values if v is not None]
    if there and all(isinstance(v, int | float) and not isinstance(v, bool) for v in there):
        shown = {v: math.log(v) if logarithmic else float(v) for v in there}
        low, high = min(shown.values()), max(shown.values())
        heights = {v: (x - low) / (high - low) if high > low else 0.5 for v, x in shown.items()}
        ticks = [(heights[v], f"{v:.3g}") for v in dict.fromkeys((min(there), max(there)))]
        return [-0.08 if v is None else heights[v] for v in values], ticks
    names = sorted({str(v) for v in there})
    order = {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}
    return [-0.08 if v is None else order[str(v)] for v in values], [(y, n[:16]) for n, y in order.items()]


def importances(found: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Shares of the values' variance with their deviation over bootstrap samples of the trials, the largest at the top."""
    shown = list(found)[:MOST_FEATURES][::-1]
    figure, (axis,) = make_figure(width=6.4, height=max(2.2, 0.35 * len(shown) + 1.1))
    axis.barh(
        [f["field"] for f in shown], [f["mean"] for f in shown], xerr=[f["std"] for f in shown],
        color=BLUE, error_kw={"ecolor": GREY, "elinewidth": 1},
    )  # fmt: skip
    axis.grid(False, axis="y")
    axis.set_xlim(left=0)
    axis.set_xlabel("share of the trials' variance")
    return save(figure, path)
