"""Synthetic rows beside real ones: of use, like them, and no copies. Never one number alone: each can be had by cheating."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from seekray.evaluation.result import Asked, Evaluation

if TYPE_CHECKING:
    from seekray.data.synthetic.schema import GenSchema
    from seekray.data.tables.features import Feature
    from seekray.generator import Generator

Array = np.ndarray[Any, Any]
TREES = 200
MOST_ROWS = 10_000
SPREAD = 4  # synthetic rows for a held-out one where that only lessens the noise
NO_TRAINING = "the training rows are not known here; it is measured when a run ends"


def evaluate(model: Generator, table: pa.Table, asked: Asked) -> Evaluation:
    """Utility, a detector's AUC, marginals, correlations, copies and nearest records of synthetic rows.

    table: held-out real rows. Without the training rows, half of `table` stands for them and copies cannot be measured.

    utility: accuracy (R² of a number) on held-out rows of a random forest trained on synthetic rows, over that of
    one trained on real rows. detector_auc: of a random forest that tells synthetic rows from real ones, trained
    with the training rows, on held-out rows; 0.5 is guessing. ks_distance: mean Kolmogorov-Smirnov distance of the
    numeric columns to the training rows; category_distance: mean total variation of the others.
    correlation_difference: mean absolute difference of Spearman's coefficients. copies: share of synthetic rows
    that are training rows to the last digit; copies_held_out: the same of real held-out rows.
    nearest_record_ratio: mean distance of a synthetic row to the nearest training row over that of a held-out row;
    well below 1, it copies.
    """
    schema = cast("GenSchema", model.schema)
    real, held = learned_and_held(table, asked, MOST_ROWS)
    seed = asked.seed
    made = model.generate(rows=len(real), seed=seed)
    other = model.generate(rows=SPREAD * len(held), seed=seed, first=len(real))
    metrics: dict[str, float] = {}
    notes: dict[str, str] = {}
    target = utility_target(schema, real, held)
    if target is None:
        notes["utility"] = "no column is a class or number that the others could be asked for"
    else:
        metrics |= utility(schema, target, real, made, held, seed)
    metrics["detector_auc"] = detector_auc(schema, real, made, held, other, seed)
    wide = pa.concat_tables([made, other])
    marginals = {f.name: _marginal(f, real, wide) for f in schema.features}
    floor = {f.name: _marginal(f, real, held) for f in schema.features}
    for name, kinds in (("ks_distance", ("numeric", "timestamp")), ("category_distance", ("categorical", "boolean"))):
        if columns := [f.name for f in schema.features if f.kind in kinds]:
            metrics[name] = float(np.mean([marginals[c] for c in columns]))
            metrics[f"{name}_held_out"] = float(np.mean([floor[c] for c in columns]))
    names, of_real, of_made = correlations(schema, real, wide)
    if len(names) > 1:
        metrics["correlation_difference"] = float(np.abs(of_real - of_made)[np.triu_indices(len(names), 1)].mean())
    if asked.training is None:
        notes |= dict.fromkeys(("copies", "nearest_record_ratio"), NO_TRAINING)
    else:
        metrics |= privacy(schema, real, wide, held)
    details = {
        "target": target, "marginals": marginals, "marginals_held_out": floor,
        "correlations": {"columns": names, "real": of_real.round(4).tolist(), "synthetic": of_made.round(4).tolist()},
        "histograms": {f.name: _histogram(f, real, wide) for f in schema.features[:24]},
    }  # fmt: skip
    return Evaluation(
        task=model.task, rows=len(held), rejected=0, metrics=metrics, intervals={}, notes=notes, rejections=[], groups={},
        details=details,
    )  # fmt: skip


def learned_and_held(table: pa.Table, asked: Asked, most: int) -> tuple[pa.Table, pa.Table]:
    """Rows that the model learned from (half of `table` where they are not known) and others of `table`; `most` of each."""
    real, held = asked.training, table
    if real is None:
        order = np.random.default_rng(asked.seed).permutation(len(table))
        real, held = table.take(pa.array(order[: len(order) // 2])), table.take(pa.array(order[len(order) // 2 :]))
    return real.slice(0, most), held.slice(0, most)


def column(feature: Feature, table: pa.Table) -> Array:
    """Numbers (B,) of a column: seconds, places of categories (-1 for others), NaN for missing numbers."""
    from seekray.data.parse import Rejects, numbers
    from seekray.data.synthetic import codec
    from seekray.data.times import seconds, times

    given = table.column(feature.name)
    if feature.kind == "timestamp":
        return seconds(times(given, feature.name, Rejects()))
    if feature.kind == "numeric":
        return numbers(given, feature.name, Rejects())
    return codec.codes(feature, given).astype(float)


def matrix(schema: GenSchema, table: pa.Table, without: str | None = None) -> Array:
    """(B, D) for trees: numbers as they are, NaN for missing ones, categories as one-hots."""
    from seekray.data.synthetic import codec

    parts = []
    for feature in schema.features:
        if feature.name == without:
            continue
        values = column(feature, table)
        if feature.kind in ("numeric", "timestamp"):
            parts.append(values[:, None])
        else:
            parts.append(codec.one_hot(values.astype(np.int64), codec.width(feature)))
    return np.concatenate(parts, 1) if parts else np.zeros((len(table), 0))


def utility_target(schema: GenSchema, real: pa.Table, held: pa.Table) -> str | None:
    """A class that is given, else the last class, else the last number that can be told from the others."""
    if len(schema.features) < 2:
        return None
    classes = [f for f in schema.features if f.kind in ("categorical", "boolean")]
    ordered = [f for f in classes if f.name in schema.conditions] + classes[::-1]
    for feature in ordered:
        if len(np.unique(column(feature, held))) > 1 and len(np.unique(column(feature, real))) <= max(2, len(real) // 10):
            return feature.name
    numeric = [f for f in schema.features if f.kind == "numeric" and np.isfinite(column(f, real)).all()]
    return numeric[-1].name if numeric and np.isfinite(column(numeric[-1], held)).all() else None


def utility(schema: GenSchema, target: str, real: pa.Table, made: pa.Table, held: pa.Table, seed: int) -> dict[str, float]:
    """Train on synthetic and test on real, beside train on real and test on real."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    feature = next(f for f in schema.features if f.name == target)
    kind = RandomForestRegressor if feature.kind == "numeric" else RandomForestClassifier

    def score(rows: pa.Table) -> float:
        forest = kind(TREES, random_state=seed).fit(matrix(schema, rows, target), column(feature, rows))
        return float(forest.score(matrix(schema, held, target), column(feature, held)))

    of_real, of_made = score(real), score(made)
    ratio = of_made / of_real if of_real > 0 else float("nan")
    found = {"utility": ratio, "real_score": of_real, "synthetic_score": of_made}
    return {k: v for k, v in found.items() if np.isfinite(v)}


def detector_auc(schema: GenSchema, real: pa.Table, made: pa.Table, held: pa.Table, other: pa.Table, seed: int) -> float:
    """How well a random forest tells synthetic from real rows that it was not trained on."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    forest = RandomForestClassifier(TREES, random_state=seed)
    forest.fit(np.concatenate([matrix(schema, t) for t in (real, made)]), np.repeat([0, 1], [len(real), len(made)]))
    told = forest.predict_proba(np.concatenate([matrix(schema, t) for t in (held, other)]))[:, 1]
    return float(roc_auc_score(np.repeat([0, 1], [len(held), len(other)]), told))


def _marginal(feature: Feature, real: pa.Table, made: pa.Table) -> float:
    """Kolmogorov-Smirnov distance of numbers, total variation of categories."""
    from scipy.stats import ks_2samp

    one, two = column(feature, real), column(feature, made)
    if feature.kind in ("numeric", "timestamp"):
        one, two = one[np.isfinite(one)], two[np.isfinite(two)]
        return float(ks_2samp(one, two).statistic) if len(one) and len(two) else 0.0
    places = np.union1d(one, two)
    return 0.5 * sum(abs(float((one == p).mean()) - float((two == p).mean())) for p in places)


def correlations(schema: GenSchema, real: pa.Table, made: pa.Table) -> tuple[list[str], Array, Array]:
    """Spearman's coefficients of numbers and of categories as one-hots, of both tables; constant columns are left out."""
    from scipy.stats import rankdata

    from seekray.data.synthetic import codec

    names: list[str] = []
    parts: tuple[list[Array], list[Array]] = ([], [])
    for feature in schema.features:
        values = [column(feature, t) for t in (real, made)]
        if feature.kind in ("numeric", "timestamp"):
            middle = np.nanmedian(values[0]) if np.isfinite(values[0]).any() else 0.0
            columns = [np.where(np.isfinite(v), v, middle)[:, None] for v in values]
            new = [feature.name]
        else:
            known = feature.state["values"][:8]
            columns = [codec.one_hot(v.astype(np.int64), codec.width(feature))[:, : len(known)] for v in values]
            new = [f"{feature.name}={v}" for v in known]
        for i, name in enumerate(new):
            if all(len(np.unique(c[:, i])) > 1 for c in columns):
                names.append(name)
                for part, c in zip(parts, columns, strict=True):
                    part.append(rankdata(c[:, i]))
    if not names:
        return [], np.zeros((0, 0)), np.zeros((0, 0))
    of_real, of_made = (np.atleast_2d(np.corrcoef(np.stack(p))) for p in parts)
    return names, of_real, of_made


def privacy(schema: GenSchema, real: pa.Table, made: pa.Table, held: pa.Table) -> dict[str, float]:
    """Copies, and distances to the nearest training row on the scale of normal scores."""
    from sklearn.neighbors import NearestNeighbors

    known = set(_rows(schema, real))
    found = {
        "copies": float(np.mean([row in known for row in _rows(schema, made)])),
        "copies_held_out": float(np.mean([row in known for row in _rows(schema, held)])),
    }
    one, two, three = (np.concatenate(list(schema.arrays(t).values()), 1) for t in (real, made, held))
    neighbours = NearestNeighbors(n_neighbors=1).fit(one)
    of_made, of_held = (float(neighbours.kneighbors(t)[0].mean()) for t in (two, three))
    return found | ({"nearest_record_ratio": of_made / of_held} if of_held else {})


def _rows(schema: GenSchema, table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows to the data's own resolution."""
    columns = []
    for feature in schema.features:
        values = column(feature, table)
        digits: int | None = feature.state.get("decimals")
        values = np.round(values, digits) if digits is not None else values
        columns.append(np.where(np.isnan(values), -1e300, values).tolist())
    return list(zip(*columns, strict=True))


def _histogram(feature: Feature, real: pa.Table, made: pa.Table) -> Mapping[str, Any]:
    """Shares of both in the same bins."""
    one, two = column(feature, real), column(feature, made)
    if feature.kind in ("numeric", "timestamp"):
        one, two = one[np.isfinite(one)], two[np.isfinite(two)]
        edges = np.histogram_bin_edges(one, 20) if len(one) else np.array([0.0, 1.0])
        labels: list[Any] = edges.tolist()
        counts = [np.histogram(v, edges)[0] for v in (one, two)]
    else:
        labels = [*map(str, feature.state["values"][:20])]
        counts = [np.array([(v == i).sum() for i in range(len(labels))]) for v in (one, two)]
    shares = [(c / max(1, n)).round(5).tolist() for c, n in zip(counts, (len(one), len(two)), strict=True)]
    return {"bins": labels, "real": shares[0], "synthetic": shares[1]}
