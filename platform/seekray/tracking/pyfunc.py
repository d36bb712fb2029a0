"""MLflow's door: `mlflow.pyfunc.load_model` and `mlflow models serve` load a bundle through this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seekray.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd


class Model:
    """What `mlflow.pyfunc` calls."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answers for a DataFrame, or a mapping of columns: `prediction` and `probability_<class>`."""
        import pandas as pd

        columns = {name: _values(model_input[name]) for name in model_input}
        rows = len(next(iter(columns.values()), []))
        for feature in self._predictor.schema.features:  # MLflow leaves out optional columns
            columns.setdefault(feature.name, [None] * rows)
        return pd.DataFrame(self._predictor.predict(columns).columns())


def _values(series: Any) -> Any:
    """pandas' own missing values and types as plain ones."""
    if hasattr(series, "to_numpy") and getattr(series.dtype, "kind", "") in "fiu" and not hasattr(series.dtype, "na_value"):
        return series.to_numpy()
    if hasattr(series, "isna"):
        missing = series.isna()
        return [None if gone else _plain(v) for v, gone in zip(series.tolist(), missing.tolist(), strict=True)]
    return series


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _load_pyfunc(path: str) -> Model:
    """Called by MLflow with the bundle's folder."""
    return Model(Predictor.load(path))
