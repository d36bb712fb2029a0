"""Metrics: pure functions over outputs and targets.

Every metric here is a function of sums over rows, so that one code gives the value on a table, the
values on a thousand bootstrap resamples (sums weighted by how often a row was drawn: one matrix
product) and, for large tables, on resamples of groups of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
HIGHER_IS_BETTER = frozenset(
    ("accuracy", "balanced_accuracy", "macro_f1", "precision", "recall", "roc_auc", "exact_match", "r2")
)
_LOWER = ("loss", "mae", "rmse", "error", "distance", "perplexity", "bits_per_byte")
_CHUNK = 65_536


def higher_is_better(metric: str) -> bool:
    """Which way a metric goes, by its name: one that is not known here is better when higher, unless its name says error."""
    return metric in HIGHER_IS_BETTER or not metric.endswith(_LOWER)


def quick_metrics(outputs: Tensor, targets: Tensor, task: str) -> dict[str, float]:
    """The metrics of each epoch, cheap enough for every one.

    outputs: (N, C) logits, or (N, 1) standardised values; targets: (N,) classes, (N, T) labels or (N, 1) values.
    """
    if task == "classification":
        return {"accuracy": float((outputs.argmax(1) == targets).double().mean())}
    if task == "multilabel":
        return {"accuracy": float(((outputs > 0) == (targets > 0.5)).double().mean())}
    residual = (outputs - targets).double()
    total = (targets.double() - targets.double().mean(0)).square().sum()
    return {"r2": float(1 - residual.square().sum() / total.clamp_min(1e-12)), "mae": float(residual.abs().mean())}


@dataclass(frozen=True)
class FullMetrics:
    """values: metric -> number, always finite; notes: metric -> why it is absent or covers part of the classes."""

    values: dict[str, float]
    notes: dict[str, str]


def full_metrics(outputs: Tensor, targets: Tensor, task: str, classes: Sequence[object] | None = None) -> FullMetrics:
    """All metrics of held-out rows.

    outputs: (N, C) logits, or (N, 1) values in the target's unit; targets: (N,) class numbers, (N, T)
    labels or (N, 1) values; classes: names for the notes.

    classification: accuracy; balanced_accuracy (mean recall of the classes that occur); macro_f1,
    precision and recall (means over the classes that occur or are predicted, as scikit-learn's
    `average="macro"`); roc_auc (mean over classes, one against the rest); log_loss (nats);
    calibration_error (15 equal bins of the predicted class' probability, Guo et al. 2017,
    arXiv:1706.04599). multilabel: the same, each label a two-class problem of its own, accuracy and
    log_loss being means over labels, with exact_match. regression: r2, mae, rmse.

    A metric that these rows do not define (no rows, one class only, constant values) is left out and noted.
    """
    rows = RowSums(outputs, targets, task)
    found = {name: float(value) for name, value in rows.metrics(rows.totals()).items()}
    values = {name: value for name, value in found.items() if value == value and abs(value) != float("inf")}
    return FullMetrics(values, _notes(rows, found, values, classes))


def _notes(
    rows: RowSums, found: dict[str, float], values: dict[str, float], classes: Sequence[object] | None
) -> dict[str, str]:
    if rows.size == 0:
        return dict.fromkeys(found, "no rows")
    if not rows.finite:
        return dict.fromkeys(found.keys() - values.keys(), "the model's outputs are not finite")
    notes = dict.fromkeys(found.keys() - values.keys(), "not defined for these rows")
    if rows.task == "regression":
        return dict.fromkeys(notes, "the target has the same value in all rows")
    lone = rows.constant()
    if not lone:
        return notes
    names = ", ".join(str(classes[i]) if classes else str(i) for i in lone[:10]) + ("…" if len(lone) > 10 else "")
    covered = f"over {rows.width - len(lone)} of {rows.width}"
    if rows.task == "multilabel":
        notes |= dict.fromkeys(("roc_auc", "balanced_accuracy"), f"{covered} labels; with one value only: {names}")
    elif len(lone) == rows.width:
        notes["roc_auc"] = "not defined: all rows are of one class"
    else:
        notes["roc_auc"] = f"{covered} classes; not among these rows: {names}"
    return notes


class RowSums:
    """Per-row figures whose (weighted) sums give every metric.

    `figures(start, stop)` is (rows, K); a total is the sum of rows, each times its weight;
    `metrics` takes totals (R, K) to metrics (R,), NaN where not defined.

    The area under the ROC curve is no sum over rows; under other weights it is taken to first order
    around the table at hand (the structural components of DeLong et al. 1988), and exact under equal ones.
    """

    def __init__(self, outputs: Tensor, targets: Tensor, task: str) -> None:
        self.task, self.size = task, len(outputs)
        self._outputs, self._targets = outputs.detach().double(), targets.detach()
        self.width = outputs.shape[1]
        self.finite = bool(torch.isfinite(self._outputs).all())
        if task == "regression":
            self._targets = self._targets.double().reshape(-1, 1)
            self._center = self._targets.mean() if self.size else torch.zeros((), dtype=torch.float64)
            return
        if task == "classification":
            self._scores = self._outputs.softmax(1)
            self._targets = self._targets.long()
            positive = torch.nn.functional.one_hot(self._targets, self.width).bool()
        else:
            self._scores = self._outputs.sigmoid()
            self._targets = positive = self._targets > 0.5
        self._positive = positive
        # Ranks come from the scores, not the logits: a softmax orders the rows of a class differently.
        self._components = torch.stack([_components(s, p) for s, p in zip(self._scores.T, positive.T, strict=True)], 1)
        count = positive.double().sum(0)
        self._area = (self._components * positive).sum(0) / count

    def constant(self) -> list[int]:
        """Classes or labels that no row has, or all rows have: these rows give them no ROC curve."""
        count = self._positive.sum(0)
        return [int(i) for i in ((count == 0) | (count == self.size)).nonzero().flatten()]

    def by_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """True positives, predicted and actual rows of each class or label, (C,)."""
        tp, predicted, actual = self.totals()[0, 2 : 2 + 3 * self.width].reshape(3, -1)
        return tp, predicted, actual

    def totals(self, groups: Tensor | None = None, count: int = 1) -> Tensor:
        """Sums over all rows, (1, K), or over the rows of each group, (count, K); groups: (N,) group numbers."""
        out: Tensor | None = None
        for start in range(0, max(1, self.size), _CHUNK):
            figures = self.figures(start, start + _CHUNK)
            out = figures.new_zeros(count, figures.shape[1]) if out is None else out
            index = groups[start : start + _CHUNK] if groups is not None else torch.zeros(len(figures), dtype=torch.long)
            out.index_add_(0, index, figures)
        assert out is not None
        return out

    def figures(self, start: int, stop: int) -> Tensor:
        """(rows, K) figures of the rows `start` to `stop`; the first is 1."""
        outputs, targets = self._outputs[start:stop], self._targets[start:stop]
        ones = outputs.new_ones(len(outputs), 1)
        if self.task == "regression":
            residual, centred = outputs - targets, targets - self._center
            return torch.cat([ones, residual.square(), residual.abs(), centred, centred.square()], 1)
        scores, positive = self._scores[start:stop], self._positive[start:stop]
        if self.task == "classification":
            picked = outputs.argmax(1)
            predicted = torch.nn.functional.one_hot(picked, self.width).bool()
            loss = -outputs.log_softmax(1).gather(1, targets[:, None])
            confidence = scores.gather(1, picked[:, None])
            gaps = _by_bin(confidence, (picked == targets)[:, None])
            exact = loss.new_zeros(len(loss), 0)
        else:
            predicted = outputs >= 0
            logits = torch.where(positive, outputs, -outputs)
            loss = -torch.nn.functional.logsigmoid(logits).mean(1, keepdim=True)
            gaps = _by_bin(scores, positive)
            exact = (predicted == positive).all(1, keepdim=True).double()
        components = self._components[start:stop]
        parts = [predicted & positive, predicted, positive, components * positive, components * ~positive]
        return torch.cat([ones, loss, *(p.double() for p in parts), gaps, exact], 1)

    def metrics(self, totals: Tensor) -> dict[str, Tensor]:
        """Totals (R, K) to metrics (R,)."""
        n = totals[:, 0]
        if self.task == "regression":
            squared, absolute, centred, spread = totals[:, 1:5].T
            variation = spread - centred.square() / n
            defined = variation > 1e-12 * spread
            r2 = torch.where(defined, 1 - squared / variation, torch.nan)
            return {"r2": r2, "mae": absolute / n, "rmse": (squared / n).sqrt()}
        c = self.width
        tp, predicted, actual, above, below = totals[:, 2 : 2 + 5 * c].reshape(len(n), 5, c).unbind(1)
        gaps, exact = totals[:, 2 + 5 * c : 2 + 5 * c + BINS], totals[:, 2 + 5 * c + BINS :]
        occurs = (predicted + actual) > 0
        negatives = n[:, None] - actual
        multilabel = self.task == "multilabel"
        values = {"accuracy": tp.sum(1) / n}
        recall = tp / actual  # NaN where a class does not occur
        if multilabel:
            tn = negatives - predicted + tp
            values = {"accuracy": ((tp + tn) / n[:, None]).mean(1), "exact_match": exact[:, 0] / n}
            recall_of_both = (recall + tn / negatives) / 2
        values |= {
            "balanced_accuracy": (recall_of_both if multilabel else recall).nanmean(1),
            "macro_f1": _mean_where(2 * tp / (predicted + actual), occurs),
            "precision": _mean_where((tp / predicted).nan_to_num(0.0), occurs),
            "recall": _mean_where(recall.nan_to_num(0.0), occurs),
            "roc_auc": (above / actual + below / negatives - self._area).clamp(0, 1).nanmean(1),
            "log_loss": totals[:, 1] / n,
            "calibration_error": gaps.abs().sum(1) / (n * (c if multilabel else 1)),
        }
        return values


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Means of each row over the places that count; NaN where none does."""
    return torch.where(where, values, 0.0).sum(1) / where.sum(1)


def _by_bin(confidence: Tensor, correct: Tensor) -> Tensor:
    """(N, BINS) sums over columns of confidence - correct, each in the bin of its confidence."""
    index = (confidence * BINS).long().clamp(0, BINS - 1)
    return confidence.new_zeros(len(confidence), BINS).scatter_add_(1, index, confidence - correct.double())


def _components(scores: Tensor, positive: Tensor) -> Tensor:
    """(N,) for a positive row the share of negatives ranked below it, for a negative that of positives above; ties half.

    Their mean over the positives, or over the negatives, is the area under the ROC curve
    (Mann-Whitney); NaN-free: zeros where there is nothing to compare with.
    """
    order = scores.argsort()
    ranked, flags = scores[order], positive[order].double()
    _, inverse, counts = torch.unique_consecutive(ranked, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    positives = torch.cat([flags.new_zeros(1), flags.cumsum(0)])
    through, before = positives[last], positives[last - counts]
    total, size = positives[-1], len(scores)
    negatives_below = ((last - through) + (last - counts - before)) / 2
    positives_above = total - (through + before) / 2
    share_below = negatives_below / (size - total).clamp_min(1)
    share_above = positives_above / total.clamp_min(1)
    out = torch.empty_like(flags)
    out[order] = torch.where(positive[order], share_below[inverse], share_above[inverse])
    return out


def calibration_bins(outputs: Tensor, targets: Tensor, task: str) -> list[dict[str, float]]:
    """The reliability diagram: for each bin that has rows its count, mean confidence and accuracy.

    The confidence is the predicted class' probability; multilabel: each label's probability.
    """
    outputs = outputs.double()
    if task == "classification":
        scores = outputs.softmax(1)
        confidence, correct = scores.gather(1, outputs.argmax(1)[:, None])[:, 0], outputs.argmax(1) == targets.long()
    else:
        confidence, correct = outputs.sigmoid().flatten(), (targets > 0.5).flatten()
    index = (confidence * BINS).long().clamp(0, BINS - 1)
    counts = torch.bincount(index, minlength=BINS).double()
    means = [torch.bincount(index, v.double(), minlength=BINS) / counts for v in (confidence, correct)]
    return [
        {"count": int(counts[i]), "confidence": float(means[0][i]), "accuracy": float(means[1][i])}
        for i in range(BINS)
        if counts[i]
    ]
