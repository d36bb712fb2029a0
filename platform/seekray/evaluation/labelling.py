"""A label for each step: metrics over steps, intervals over sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from seekray.batch.parts import forward_rows
from seekray.data.columns import check_columns
from seekray.data.parse import Rejects
from seekray.data.sequences.ragged import Ragged
from seekray.errors import DataError
from seekray.evaluation.result import Asked, Evaluation
from seekray.evaluation.rows import SHOWN_REJECTIONS, _classes, _confusion, _intervals, _labels
from seekray.metrics import RowSums, calibration_bins, full_metrics

if TYPE_CHECKING:
    from seekray.predictor import Predictor


def evaluate(predictor: Predictor, table: pa.Table, asked: Asked) -> Evaluation:
    """Metrics over all labelled steps; a bootstrap draws whole sequences, whose steps are not independent.

    The most frequent class of these steps stands beside. Raises DataError where no sequence can be used.
    """
    schema = predictor.schema
    check_columns([*(f.name for f in schema.features), *schema.targets, *asked.by], table.column_names)
    done = forward_rows(predictor, table)
    reasons = dict(done.reasons)
    rejects = Rejects(strict=False)
    targets = schema.encode_targets(table, rejects)
    assert isinstance(targets, Ragged)
    reasons |= {r["row"]: f"target {r['column']!r}: {r['reason']}" for r in rejects.found}
    outputs: list[Tensor] = []
    labels: list[Tensor] = []
    owners: list[Tensor] = []
    for place, row in enumerate(done.index.tolist()):
        own = done.outputs[place]
        own = own[~own[:, 0].isnan()]
        label = torch.from_numpy(targets.values[targets.offsets[row] : targets.offsets[row + 1]])
        if len(label) != len(own):
            reasons.setdefault(row, f"{len(label)} labels for {len(own)} steps")
        elif row not in reasons:
            known = label >= 0
            outputs.append(own[known])
            labels.append(label[known])
            owners.append(torch.full((int(known.sum()),), len(owners)))
    if not outputs or not sum(map(len, outputs)):
        raise DataError(f"no sequence can be evaluated: {next(iter(reasons.values()), 'the table has no rows')}")
    logits, truth, owner = torch.cat(outputs).double(), torch.cat(labels), torch.cat(owners)
    names = [str(c) for c in schema.classes or []]
    found = full_metrics(logits, truth, "classification", names)
    sums = RowSums(logits, truth, "classification")
    draws = {}
    if asked.resamples:
        figures = sums.totals(owner, len(outputs))
        rng = np.random.default_rng(asked.seed)
        weights = rng.multinomial(len(outputs), np.full(len(outputs), 1 / len(outputs)), size=asked.resamples)
        draws = sums.metrics(torch.from_numpy(weights).double() @ figures)
    most = float(torch.bincount(truth).max() / len(truth))
    verdict = []
    if found.values["accuracy"] <= most:
        verdict = [f"always saying the most frequent class is right in {most:.3f} of the steps, no less than this model"]
    groups = {}
    for name in asked.by:
        values = _labels(table.column(name).take(pa.array(done.index)))
        kept = [values[i] for i, row in enumerate(done.index.tolist()) if row not in reasons]
        lines = []
        for value in sorted(set(kept)):
            member = torch.tensor([v == value for v in kept])[owner]
            metrics = full_metrics(logits[member], truth[member], "classification", names).values
            lines.append({"value": str(value), "rows": kept.count(value), "metrics": metrics})
        groups[name] = lines
    return Evaluation(
        task=schema.task, rows=len(outputs), rejected=len(table) - len(outputs), metrics=found.values,
        intervals=_intervals(draws, found.values), notes=found.notes,
        rejections=[{"row": row, "reason": reasons[row]} for row in sorted(reasons)[:SHOWN_REJECTIONS]],
        groups=groups, classes=_classes(sums, names), confusion=_confusion(logits, truth, len(names)),
        calibration=calibration_bins(logits, truth, "classification"),
        details={"steps": len(truth), "baselines": {"most_frequent": most}, "verdict": verdict},
    )  # fmt: skip
