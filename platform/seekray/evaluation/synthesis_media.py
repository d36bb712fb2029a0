"""Made images and texts beside real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from seekray.evaluation.result import Asked, Evaluation
from seekray.evaluation.synthesis import NO_TRAINING, Array, column, learned_and_held

if TYPE_CHECKING:
    from seekray.data.synthetic.schema import GenSchema
    from seekray.generator import Generator

COMPARED = 500  # images, balanced over the classes, of the Fréchet distance: it shrinks with their number
MOST = 5000
FEATURES = 64


def evaluate(model: Generator, table: pa.Table, asked: Asked) -> Evaluation:
    """Images: agreement, Fréchet distance, diversity, a classifier trained on made ones. Texts: see `texts`.

    table: held-out data; without the training rows half of it stands for them.
    """
    schema = cast("GenSchema", model.schema)
    real, held = learned_and_held(table, asked, MOST)
    seed = asked.seed
    made = model.generate(rows=max(len(real), COMPARED), seed=seed)
    measure = images if schema.task == "images" else texts
    metrics, notes = measure(schema, real, made, held, seed)
    if asked.training is None:
        notes |= {"copies": NO_TRAINING}
        metrics = {k: v for k, v in metrics.items() if not k.startswith("copies")}
    return Evaluation(
        task=model.task, rows=len(held), rejected=0, metrics=metrics, intervals={}, notes=notes, rejections=[], groups={},
        details={"samples": _samples(schema, made)},
    )  # fmt: skip


def _samples(schema: GenSchema, made: pa.Table) -> list[str]:
    return made.column(schema.subject.name).to_pylist()[:20] if schema.task == "texts" else []


def pixels(schema: GenSchema, table: pa.Table) -> Array:
    """(B, C * H * W) in -1..1."""
    from seekray.data.synthetic import free_form

    return free_form.encode_images(schema.subject, table.column(schema.subject.name))


def images(
    schema: GenSchema, real: pa.Table, made: pa.Table, held: pa.Table, seed: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Figures of made images.

    agreement: share whose class, of a classifier trained on real images, is the one asked for. frechet_distance
    (Heusel et al., arXiv:1706.08500): of that classifier's hidden features, 500 balanced made images against 500
    real ones; frechet_real: real against other real ones. diversity: mean distance within a class over that of real
    images, the least diverse class as diversity_least. trained_on_made: accuracy on held-out images of a classifier
    trained on made ones; trained_on_real beside it.
    """
    one, two, three = (pixels(schema, t) for t in (real, made, held))
    classes = [f for f in schema.given.features if f.kind in ("categorical", "boolean")]
    labels = [column(classes[0], t).astype(int) if classes else np.zeros(len(t), int) for t in (real, made, held)]
    metrics: dict[str, float] = {}
    notes: dict[str, str] = {}
    if classes and len(np.unique(labels[0])) > 1:
        by_real, by_made = _classifier(one, labels[0], seed), _classifier(two, labels[1], seed)
        metrics["agreement"] = float((by_real.predict(two) == labels[1]).mean())
        metrics["trained_on_made"] = float((by_made.predict(three) == labels[2]).mean())
        metrics["trained_on_real"] = float((by_real.predict(three) == labels[2]).mean())

        def features(values: Array) -> Array:
            return np.asarray(np.maximum(values @ by_real.coefs_[0] + by_real.intercepts_[0], 0))
    else:
        notes |= dict.fromkeys(("agreement", "trained_on_made"), "no class is in model.condition")
        from sklearn.decomposition import PCA

        features = PCA(min(FEATURES, *one.shape), random_state=seed).fit(one).transform
    everything, all_labels = np.concatenate([one, three]), np.concatenate([labels[0], labels[2]])
    first, second = _balanced(all_labels, seed)
    chosen, _ = _balanced(labels[1], seed)
    scale = float(np.sqrt(features(everything).var(0).sum()))
    metrics["frechet_distance"] = frechet(features(two[chosen]) / scale, features(everything[first]) / scale)
    metrics["frechet_real"] = frechet(features(everything[second]) / scale, features(everything[first]) / scale)
    ratios = []
    for label in np.unique(labels[0]):
        parts = [values[of == label][:300] for values, of in ((one, labels[0]), (two, labels[1]))]
        if min(map(len, parts)) > 1 and _spread(parts[0]):
            ratios.append(_spread(parts[1]) / _spread(parts[0]))
    if ratios:
        metrics |= {"diversity": float(np.mean(ratios)), "diversity_least": float(min(ratios))}
    known = {row.tobytes() for row in one}
    metrics["copies"] = float(np.mean([row.tobytes() in known for row in two]))
    metrics["copies_held_out"] = float(np.mean([row.tobytes() in known for row in three]))
    return metrics, notes


def _classifier(values: Array, labels: Array, seed: int) -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLPClassifier((FEATURES,), max_iter=60, random_state=seed).fit(values, labels)


def _balanced(labels: Array, seed: int) -> tuple[Array, Array]:
    """Two sets of rows, as many of each class in both, 500 in all where there are so many; disjoint."""
    rng = np.random.default_rng(seed)
    present = np.unique(labels)
    sets: tuple[list[Array], list[Array]] = ([], [])
    for label in present:
        found = rng.permutation(np.flatnonzero(labels == label))
        count = min(COMPARED // len(present), len(found) // 2)
        sets[0].append(found[:count])
        sets[1].append(found[count : 2 * count])
    return np.concatenate(sets[0]), np.concatenate(sets[1])


def frechet(one: Array, two: Array) -> float:
    """Fréchet distance of the normal distributions that fit (N, D) and (M, D)."""
    from scipy.linalg import eigvals

    means = ((one.mean(0) - two.mean(0)) ** 2).sum()
    left, right = np.cov(one.T), np.cov(two.T)
    # The trace of the product's square root is the sum of the roots of its eigenvalues.
    root = np.sqrt(np.maximum(eigvals(left @ right).real, 0)).sum()
    return float(means + np.trace(left) + np.trace(right) - 2 * root)


def _spread(values: Array) -> float:
    from scipy.spatial.distance import pdist

    return float(pdist(values).mean())


def texts(
    schema: GenSchema, real: pa.Table, made: pa.Table, held: pa.Table, seed: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Figures of made texts.

    bigram_distance: Jensen-Shannon distance of the pairs of characters to those of training texts, and of held-out
    texts beside it. length_distance: Kolmogorov-Smirnov. detector_auc: of logistic regression on 1- to 3-grams that
    tells made from real texts. distinct: share of different ones; copies: share that are training texts.
    """
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import ks_2samp
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    one, two, three = ([t or "" for t in table.column(schema.subject.name).to_pylist()] for table in (real, made, held))
    pairs = CountVectorizer(analyzer="char", ngram_range=(2, 2), lowercase=False).fit([*one, *two, *three])
    shares = [np.asarray(pairs.transform(t).sum(0)).ravel() + 1e-9 for t in (one, two, three)]
    grams = HashingVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, n_features=2**14)
    half = len(two) // 2
    detector = LogisticRegression(C=10, max_iter=300, random_state=seed)
    detector.fit(grams.transform([*one, *two[:half]]), np.repeat([0, 1], [len(one), half]))
    told = detector.predict_proba(grams.transform([*three, *two[half:]]))[:, 1]
    known = set(one)
    return {
        "bigram_distance": float(jensenshannon(shares[0], shares[1])),
        "bigram_distance_held_out": float(jensenshannon(shares[0], shares[2])),
        "length_distance": float(ks_2samp([*map(len, one)], [*map(len, two)]).statistic),
        "detector_auc": float(roc_auc_score(np.repeat([0, 1], [len(three), len(two) - half]), told)),
        "distinct": len(set(two)) / len(two),
        "copies": float(np.mean([t in known for t in two])),
        "copies_held_out": float(np.mean([t in known for t in three])),
    }, {}
