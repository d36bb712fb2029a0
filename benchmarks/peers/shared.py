"""What every server of the benchmark does with a request's rows."""

from __future__ import annotations

import os
from typing import Any

BUNDLE = "SEEKRAY_BENCH_BUNDLE"


def load(path: str | None = None) -> Any:
    """The predictor, on one thread."""
    import torch

    from seekray.predictor import Predictor

    torch.set_num_threads(1)
    return Predictor.load(path or os.environ[BUNDLE], name="bench", version="1")


def answers(predictor: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of a request's JSON to the body of the answer."""
    found = predictor.predict({feature.name: [row[feature.name] for row in rows] for feature in predictor.schema.features})
    columns = found.probabilities
    named = columns and [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {"predictions": found.predictions, "probabilities": named, "model": "bench", "version": "1"}
