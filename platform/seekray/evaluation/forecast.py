"""A forecast in a rolling-origin backtest, beside what it must beat on the same windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seekray.batch.parts import forward_rows
from seekray.data.columns import check_columns
from seekray.data.parse import Rejects
from seekray.data.sequences.baselines import ewma, persistence, ridge, seasonal
from seekray.data.sequences.ragged import Ragged, sequences
from seekray.data.tables.features import FeatureSchema
from seekray.errors import DataError
from seekray.evaluation.result import Asked, Evaluation
from seekray.evaluation.rows import SHOWN_REJECTIONS, _labels

if TYPE_CHECKING:
    from seekray.predictor import Predictor

SPANS = 5  # of the backtest, in the order of time
EXAMPLES = 4
WORDS = {
    "persistence": "repeating the last value", "seasonal": "repeating the last season",
    "ewma": "an exponentially weighted moving average", "ridge": "ridge regression",
}  # fmt: skip
CHUNK = 4096


def evaluate(predictor: Predictor, table: pa.Table, asked: Asked) -> Evaluation:
    """Errors of the medians over all windows of a table, each with its origin, in the target's unit.

    Windows overlap, so intervals come from drawing blocks of as many windows in a row as a window has steps.
    `relative_mae` is that of persistence on the same windows. `details` has the errors by step ahead and by span of
    time, the baselines and, in `verdict`, what a reader needs to hear. Raises DataError where no window can be used.
    """
    schema = predictor.schema
    assert isinstance(schema, FeatureSchema)
    check_columns([*(f.name for f in schema.features), *schema.targets, *asked.by], table.column_names)
    rejects = Rejects(strict=False)
    ahead = sequences(table.column(schema.targets[0]), 1, schema.targets[0], rejects)
    reasons = {r["row"]: r["reason"] for r in rejects.found}
    usable = (ahead.lengths == schema.horizon) & np.isfinite(_means(ahead))
    reasons |= {int(r): f"the target has not {schema.horizon} values" for r in np.flatnonzero(~usable) if int(r) not in reasons}
    good = np.flatnonzero(usable)
    done = forward_rows(predictor, table.take(pa.array(good)))
    reasons |= {int(good[row]): reason for row, reason in done.reasons.items()}
    good = good[done.index]
    if not len(good):
        raise DataError(f"no window can be evaluated: {next(iter(reasons.values()), 'the table has none')}")
    kept = table.take(pa.array(good))
    truth = ahead[good].values.reshape(-1, schema.horizon)
    answer = predictor.decode(done.outputs)
    models = {"model": np.array(answer.predictions)} | _baselines(predictor, schema, kept)
    errors = {name: np.abs(values - truth) for name, values in models.items()}
    metrics = {"mae": float(errors["model"].mean()), "rmse": float(np.sqrt((errors["model"] ** 2).mean()))}
    metrics |= _quantile_metrics(answer.quantiles or {}, truth)
    metrics |= {f"mae_{name}": float(e.mean()) for name, e in errors.items() if name != "model"}
    if metrics.get("mae_persistence"):
        metrics["relative_mae"] = metrics["mae"] / metrics["mae_persistence"]
    order = _order(kept, schema)
    block = _length(kept, schema) + schema.horizon
    return Evaluation(
        task=schema.task, rows=len(good), rejected=len(table) - len(good), metrics=metrics,
        intervals=_intervals({k: e[order].mean(1) for k, e in errors.items()}, block, asked.resamples, asked.seed), notes={},
        rejections=[{"row": row, "reason": reasons[row]} for row in sorted(reasons)[:SHOWN_REJECTIONS]],
        groups={name: _groups(kept.column(name), errors) for name in asked.by},
        details={
            "verdict": _verdict(errors),
            "by_step": {name: e.mean(0).tolist() for name, e in errors.items()},
            "spans": _spans(kept, schema, {k: e[order].mean(1) for k, e in errors.items()}, order),
            "examples": _examples(kept, schema, truth, answer.quantiles or {}, order),
        },
    )  # fmt: skip


def _means(ragged: Ragged) -> Any:
    """Mean of each row's values, NaN where one is missing or there are none."""
    lengths = ragged.lengths
    owner = np.repeat(np.arange(len(ragged)), lengths)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(owner, weights=ragged.values[:, 0], minlength=len(ragged)) / lengths


def _past(kept: pa.Table, schema: FeatureSchema) -> Ragged | None:
    """The history of the target itself."""
    name = str(schema.frame["target"]) if schema.frame else ""
    return sequences(kept.column(name), 1, name, Rejects()) if name in kept.column_names else None


def _length(kept: pa.Table, schema: FeatureSchema) -> int:
    past = _past(kept, schema)
    return int(past.lengths.max()) if past is not None else 1


def _baselines(predictor: Predictor, schema: FeatureSchema, kept: pa.Table) -> dict[str, Any]:
    """What else could be said of the same windows, (N, H) each, in the target's unit."""
    found: dict[str, Any] = {}
    past = _past(kept, schema)
    if past is not None and schema.frame is not None:
        found["persistence"] = persistence(past.values[past.offsets[1:] - 1, 0], schema.horizon)
        season = schema.frame.get("season")
        if past.lengths.min() == past.lengths.max():
            history = past.values.reshape(len(past), -1)
            if season and (ago := seasonal(history, schema.horizon, season)) is not None:
                found["seasonal"] = ago
            if schema.ewma is not None:
                found["ewma"] = persistence(ewma(history, schema.ewma), schema.horizon)
    if schema.ridge is not None:
        parts = []
        for start in range(0, len(kept), CHUNK):
            inputs = predictor.prepare(kept.slice(start, CHUNK))
            if inputs["sequence"].shape[1] != schema.ridge["steps"]:
                return found
            parts.append(ridge(schema.ridge, inputs["sequence"].numpy(), inputs["dense"].numpy()))
        found["ridge"] = np.concatenate(parts) * schema.target_std + schema.target_mean
    return found


def _quantile_metrics(quantiles: dict[str, Any], truth: Any) -> dict[str, float]:
    """Pinball loss over all quantiles, and how often the truth lies between the outermost."""
    if len(quantiles) < 2:
        return {}
    lists = [(float(q), np.array(v)) for q, v in quantiles.items()]
    loss = np.mean([np.maximum(q * (truth - v), (q - 1) * (truth - v)).mean() for q, v in lists])
    inside = (truth >= lists[0][1]) & (truth <= lists[-1][1])
    return {"pinball": float(loss), f"coverage_{lists[-1][0] - lists[0][0]:.2g}": float(inside.mean())}


def _order(kept: pa.Table, schema: FeatureSchema) -> Any:
    """Windows in the order of their origins."""
    if schema.frame is None or schema.frame["time"] not in kept.column_names:
        return np.arange(len(kept))
    keys = [(schema.frame["time"], "ascending")]
    return pc.sort_indices(kept, sort_keys=keys).to_numpy()


def _intervals(errors: dict[str, Any], block: int, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """Of the mean error and of its ratio to persistence, from draws of blocks of windows that lie side by side."""
    size = len(errors["model"])
    groups = np.arange(size) // block
    count = int(groups[-1]) + 1
    if not resamples or count < 2:
        return {}
    sums = {name: np.bincount(groups, weights=e) for name, e in errors.items()}
    sizes = np.bincount(groups)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    draws = {"mae": weights @ sums["model"] / (weights @ sizes)}
    if "persistence" in sums and (weights @ sums["persistence"]).all():
        draws["relative_mae"] = (weights @ sums["model"]) / (weights @ sums["persistence"])
    return {k: (float(np.quantile(v, 0.025)), float(np.quantile(v, 0.975))) for k, v in draws.items()}


def _verdict(errors: dict[str, Any]) -> list[str]:
    """Which baseline wins, in plain words; else by how much the model beats the best of them."""
    mine = float(errors["model"].mean())
    others = {name: float(e.mean()) for name, e in errors.items() if name != "model"}
    if not others:
        return []
    best = min(others, key=lambda name: others[name])
    if others[best] <= mine:
        return [
            f"{WORDS[best]} has a mean absolute error of {others[best]:.4g} on the same windows, this model {mine:.4g}: "
            "the baseline wins, use it instead of the model"
        ]
    return [
        f"the model's mean absolute error of {mine:.4g} is {1 - mine / others[best]:.1%} below that of {WORDS[best]} "
        f"({others[best]:.4g}), the best baseline on the same windows"
    ]


def _spans(kept: pa.Table, schema: FeatureSchema, errors: dict[str, Any], order: Any) -> list[dict[str, Any]]:
    """The backtest cut into spans of time, each with everyone's error."""
    column = kept.column(schema.frame["time"]) if schema.frame and schema.frame["time"] in kept.column_names else None
    out = []
    for part in np.array_split(np.arange(len(order)), min(SPANS, len(order))):
        line: dict[str, Any] = {"windows": len(part)} | {f"mae_{k}": float(e[part].mean()) for k, e in errors.items()}
        if column is not None:
            line |= {k: str(column[int(order[i])].as_py()) for k, i in (("first", part[0]), ("last", part[-1]))}
        out.append(line)
    return out


def _examples(kept: pa.Table, schema: FeatureSchema, truth: Any, quantiles: dict[str, Any], order: Any) -> list[dict[str, Any]]:
    """A few windows, evenly spaced in time: the past of the target, the truth and the quantiles."""
    past = _past(kept, schema)
    out = []
    for place in np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(int):
        row = int(order[place])
        line: dict[str, Any] = {"truth": truth[row].tolist(), "quantiles": {q: v[row] for q, v in quantiles.items()}}
        if past is not None:
            values = past.values[past.offsets[row] : past.offsets[row + 1], 0]
            line["past"] = [v if np.isfinite(v) else None for v in values.tolist()]
        out.append(line)
    return out


def _groups(column: Any, errors: dict[str, Any]) -> list[dict[str, Any]]:
    labels = _labels(column)
    lines = []
    for value in np.unique(labels):
        member = labels == value
        metrics = {("mae" if k == "model" else f"mae_{k}"): float(e[member].mean()) for k, e in errors.items()}
        lines.append({"value": str(value), "rows": int(member.sum()), "metrics": metrics})
    return lines
