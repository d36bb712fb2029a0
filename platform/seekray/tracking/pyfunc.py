"""MLflow's door: `mlflow.pyfunc.load_model` and `mlflow models serve` load a bundle through this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from seekray.generator import Generator
    from seekray.predictor import Predictor


class Model:
    """What `mlflow.pyfunc` calls."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answers for a DataFrame, a mapping of columns or a list of rows: `prediction` and `probability_<class>`.

        A column that is not there is a missing value in every row. Raises DataError.
        """
        import pandas as pd

        table = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(_table(model_input))
        columns = {str(name): _values(table[name]) for name in table}
        rows = len(table)
        for feature in self.predictor.schema.features:
            columns.setdefault(feature.name, [None] * rows)
        return pd.DataFrame(self.predictor.predict(columns).columns(), index=table.index)


class GeneratorModel:
    """What `mlflow.pyfunc` calls of a generator: each row is a request, a missing value a field that is not given."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """What is made, request after request. Columns: the fields of the family's `Request`. Raises UserError."""
        import pandas as pd

        table = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(_table(model_input))
        columns = {str(name): _values(table[name].astype(object)) for name in table}
        requests = [{n: v[i] for n, v in columns.items() if v[i] is not None} for i in range(len(table))]
        made = [row for request in requests for row in self.generator.generate(**request).to_pylist()]
        return pd.DataFrame(made, dtype=object).infer_objects()  # whole numbers stay whole beside missing ones


def _table(given: Any) -> Any:
    """What MLflow hands on for `inputs` and `instances`: arrays of several dimensions as lists of rows."""
    if not isinstance(given, Mapping):
        return given
    return {k: v.tolist() if getattr(v, "ndim", 1) > 1 else v for k, v in given.items()}


def _values(series: Any) -> Any:
    """A column as a NumPy array of numbers or a list with None, free of pandas' own types."""
    if isinstance(series.dtype.kind, str) and series.dtype.kind in "fiu" and not hasattr(series.dtype, "na_value"):
        return series.to_numpy()
    missing = series.isna().tolist()
    return [None if gone else _plain(value) for value, gone in zip(series.tolist(), missing, strict=True)]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _load_pyfunc(path: str) -> Model | GeneratorModel:
    """Called by MLflow with the bundle's folder."""
    from seekray.generator import Generator, load_model

    model = load_model(path)
    return GeneratorModel(model) if isinstance(model, Generator) else Model(model)
