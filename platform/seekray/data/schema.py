"""What every family's schema offers: columns to tensors, outputs to answers, and itself as JSON and files.

`FeatureSchema` is the one for rows of a table; a family whose data is of another kind brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from seekray.data.parse import Array, Rejects

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from seekray.data.tables.features import Feature


@dataclass(frozen=True)
class Prediction:
    """Answers for N rows.

    predictions: a class, a number or, for multilabel, the list of labels, for each row; for labelling the list of
    the steps' classes, for a forecast the list of the values to come (their medians).
    probabilities: class or label -> N probabilities; for labelling N lists of them; None where numbers are predicted.
    quantiles: forecast: quantile -> N lists of values; else None.
    """

    predictions: list[Any]
    probabilities: dict[str, list[Any]] | None
    quantiles: dict[str, list[list[float]]] | None = None

    def columns(self) -> dict[str, list[Any]]:
        """As the columns `prediction`, `probability_<class>` and `quantile_<q>`."""
        found = {"prediction": self.predictions}
        found |= {f"probability_{name}": values for name, values in (self.probabilities or {}).items()}
        return found | {f"quantile_{name}": values for name, values in (self.quantiles or {}).items()}


class Schema(Protocol):
    """Everything fitted on the training rows; saved in the bundle, the same object in training and serving.

    features: the columns a row is read from; targets: those it is learned from, () where nothing is
    predicted; key: columns carried through; classes: of the answers, None where they are no classes.
    num_outputs: C of outputs (B, C). dense_size: numbers that a row takes as inputs; cardinalities:
    indices of each categorical input. answer_type: of the column `prediction`.
    """

    @property
    def task(self) -> str: ...

    @property
    def features(self) -> tuple[Feature, ...]: ...

    @property
    def targets(self) -> tuple[str, ...]: ...

    @property
    def key(self) -> tuple[str, ...]: ...

    @property
    def classes(self) -> list[Any] | None: ...

    @property
    def num_outputs(self) -> int: ...

    @property
    def dense_size(self) -> int: ...

    @property
    def cardinalities(self) -> tuple[int, ...]: ...

    @property
    def answer_type(self) -> pa.DataType: ...

    def transform(self, columns: Any) -> dict[str, Tensor]:
        """Input tensors, first dimension B, of a table or a mapping of columns. Raises DataError."""

    def encode_targets(self, columns: Any, rejects: Rejects | None = None) -> Array:
        """Targets of rows, first dimension B. What cannot be read goes to `rejects`, or is a DataError."""

    def decode(self, outputs: Tensor) -> Prediction:
        """Answers from outputs (B, C)."""

    def columns_from_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns of `{"rows": [...]}`. Raises DataError for a name that is not known."""

    def only(self, *features: Feature) -> Schema:
        """The schema of these features, to find the rows that it refuses."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the files, as JSON values."""

    def files(self) -> dict[str, bytes]:
        """Files that go into the bundle beside the JSON, such as `tokenizer.json`."""
