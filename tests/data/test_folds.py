"""Cross-validation's folds: every row outside the test is in the validation exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from seekray.data.options import Split
from seekray.data.split import TEST, VALIDATION, assign
from seekray.errors import DataError


@pytest.mark.parametrize("kind", ["random", "stratified", "group"])
def test_each_row_is_validation_once(kind: str) -> None:
    labels = np.sort(np.random.default_rng(0).integers(0, 23 if kind == "group" else 3, 200))
    by = {"by": "g"} if kind == "group" else {}
    named = {"keys": labels} if kind == "group" else {"strata": labels}
    folds = [assign(Split(kind=kind, fold=(i, 4), **by), 200, **named) for i in range(4)]  # type: ignore[arg-type]
    tests = [f == TEST for f in folds]
    assert all((t == tests[0]).all() for t in tests)
    times = sum((f == VALIDATION).astype(int) for f in folds)
    assert (times[~tests[0]] == 1).all()
    assert (times[tests[0]] == 0).all()
    sizes = [int((f == VALIDATION).sum()) for f in folds]
    assert max(sizes) - min(sizes) <= (12 if kind == "group" else 1)
    for fold in folds:
        inside = set(labels[fold == VALIDATION])
        if kind == "group":
            assert not inside & set(labels[fold != VALIDATION])
        if kind == "stratified":
            shares = [np.mean(labels[fold == VALIDATION] == c) - np.mean(labels == c) for c in range(3)]
            assert max(map(abs, shares)) < 0.03


def test_folds_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="0 <= i < k"):
        Split(fold=(4, 4))
    with pytest.raises(ValidationError, match="random, stratified or group"):
        Split(kind="time", by="t", fold=(0, 2))
    with pytest.raises(DataError, match="3 groups outside the test are no 9 parts"):
        assign(Split(kind="group", by="g", test=0, fold=(0, 9)), 30, keys=np.arange(30) % 3)
