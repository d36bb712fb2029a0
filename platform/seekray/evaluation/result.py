"""What is asked of an evaluation, and what it found, as an object, as JSON and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """How a model is measured, see `evaluate`; each task's evaluator takes of it what means something there."""

    by: Sequence[str]
    resamples: int
    seed: int
    training: pa.Table | None


@dataclass(frozen=True)
class Evaluation:
    """A model on held-out data.

    metrics: name -> value, only those that the rows define; notes: why others are absent or partial.
    intervals: name -> (low, high), 95 % percentile bootstrap.
    rows, rejected: rows that count and rows that could not be used; rejections: the first of them,
        `{row, reason}` with the row's number in the table.
    groups: column -> [{value, rows, metrics}].
    classes: [{class, rows, precision, recall, f1}], the first as `label` for multilabel; empty for regression.
    confusion: C lists of C counts, a list an actual class, in the order of `classes`; None unless classification.
    calibration: the reliability diagram's bins; residuals: {target: [...], prediction: [...]}, regression only.
    details: what else its task reports, as JSON, `verdict` being sentences for people; plots are drawn of those that
        `plots.result` knows.
    outputs, targets, row_numbers: of the rows that count, for `compare` and plots; not in the JSON.
    """

    task: str
    rows: int
    rejected: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    notes: dict[str, str]
    rejections: list[dict[str, Any]]
    groups: dict[str, list[dict[str, Any]]]
    classes: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    calibration: list[dict[str, float]] = field(default_factory=list)
    residuals: dict[str, list[float]] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    outputs: Tensor | None = field(default=None, repr=False)
    targets: Tensor | None = field(default=None, repr=False)
    row_numbers: Tensor | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows; a metric that is not defined is null with a note."""
        absent = {name: None for name in self.notes if name not in self.metrics}
        return {
            "task": self.task,
            "rows": self.rows,
            "rejected": self.rejected,
            "metrics": self.metrics | absent,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "notes": self.notes,
            "rejections": self.rejections,
            "groups": self.groups,
            "classes": self.classes,
            "confusion": self.confusion,
            "calibration": self.calibration,
            "residuals": self.residuals,
            "details": self.details,
        }


def as_text(found: Mapping[str, Any]) -> str:
    """`as_json`, with an optional `comparison`, as lines for a terminal."""
    lines = [f"{found['rows']} rows" + (f", {found['rejected']} could not be used" if found["rejected"] else "")]
    width = max([20, *(len(name) + 2 for name in found["metrics"])])
    for name, value in found["metrics"].items():
        low_high = found["intervals"].get(name)
        span = f"  [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""
        note = f"  ({found['notes'][name]})" if name in found["notes"] else ""
        lines.append(f"  {name:{width}}" + (f"{value:<10.4g}" if value is not None else f"{'-':10}") + span + note)
    lines += [str(sentence) for sentence in found.get("details", {}).get("verdict", [])]
    lines += [f"  row {r['row']}: {r['reason']}" for r in found["rejections"][:5]]
    for column, groups in found["groups"].items():
        lines.append(f"by {column}")
        for group in groups:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in list(group["metrics"].items())[:4])
            lines.append(f"  {group['value']:20}{group['rows']:>8} rows  {shown}")
    if comparison := found.get("comparison"):
        lines.append(f"{comparison['a']} - {comparison['b']} (95 % interval of the paired difference)")
        for name, entry in comparison["metrics"].items():
            low, high = entry["interval"] or (math.nan, math.nan)
            better = f"  {comparison[entry['better']]} is better" if entry["better"] else ""
            lines.append(f"  {name:{width}}{entry['difference']:+.4g}  [{low:+.4g}, {high:+.4g}]{better}")
    return "\n".join(lines)
