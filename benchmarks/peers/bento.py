"""BentoML: `bentoml serve bento:Bench --port PORT`."""

from __future__ import annotations

from typing import Any

import bentoml
from shared import answers, load


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})  # type: ignore[untyped-decorator]
class Bench:
    """A request's rows in, answers out."""

    def __init__(self) -> None:
        self.predictor = load()

    @bentoml.api(route="/v1/predict")  # type: ignore[untyped-decorator]
    def predict(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Predict."""
        return answers(self.predictor, rows)
