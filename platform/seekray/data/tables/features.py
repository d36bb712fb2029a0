"""What is learned about the columns, and the one code that turns columns into tensors.

`fitting.fit` sees training rows only. The `FeatureSchema` it gives is saved in the bundle as JSON, and its
`transform` runs in training, batch prediction and every endpoint replica.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from seekray.data.blocks import STRICT, Block, BooleanBlock, CategoricalBlock, NumericBlock, TimestampBlock, VectorBlock
from seekray.data.columns import Columns, as_columns, missing_column
from seekray.data.media import ImageBlock, TextBlock
from seekray.data.parse import Array, Rejects
from seekray.data.schema import Prediction
from seekray.data.sequences.ragged import RAGGED, Ragged, SequenceBlock, pad
from seekray.data.sequences.sound import SoundBlock, sounds
from seekray.data.tables.targets import decode_ahead, decode_steps, encode_targets
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


FORMAT = 1
# Their order is the order of the columns of `dense`.
DENSE_BLOCKS: dict[str, type[Any]] = {
    "numeric": NumericBlock,
    "boolean": BooleanBlock,
    "timestamp": TimestampBlock,
    "vector": VectorBlock,
    "text": TextBlock,
    "image": ImageBlock,
    "audio": SoundBlock,
}


@dataclass(frozen=True)
class Feature:
    """One column the model reads.

    kind: see `options.Kind`. size: a vector's length, a sequence's channels.
    example: a JSON value of the training rows. state: what was fitted, as JSON.
    """

    name: str
    kind: str
    example: Any = None
    size: int | None = None
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureSchema:
    """Everything fitted on the training rows.

    task: classification, regression, multilabel, labelling, forecast or rows. classes: their JSON values in the order of
    the outputs (multilabel: the target columns). class_counts: training rows of each (multilabel:
    positive ones). target_mean, target_std: of a regression's training rows. rows: training rows.
    key: columns carried through. horizon, quantiles: of a forecast. frame: how a long table becomes rows, see `framing`.
    ridge, ewma: the linear baseline of a forecast and the decay of the averaging one, see `baselines`.
    """

    features: tuple[Feature, ...]
    task: str = "rows"
    targets: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    classes: list[Any] | None = None
    class_counts: list[int] | None = None
    target_mean: float = 0.0
    target_std: float = 1.0
    rows: int = 0
    horizon: int = 0
    quantiles: tuple[float, ...] = (0.5,)
    frame: Mapping[str, Any] | None = None
    ridge: Mapping[str, Any] | None = None
    ewma: float | None = None
    _blocks: list[Block] = field(init=False, repr=False, compare=False)
    _categorical: CategoricalBlock = field(init=False, repr=False, compare=False)
    _sequences: SequenceBlock | None = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = (*DENSE_BLOCKS, "categorical", "sequence", "audio_frames", "characters")
        by_kind = {kind: [f for f in self.features if f.kind == kind] for kind in kinds}
        blocks: list[Block] = [DENSE_BLOCKS[kind](by_kind[kind]) for kind in DENSE_BLOCKS if by_kind[kind]]
        object.__setattr__(self, "_blocks", blocks)
        object.__setattr__(self, "_categorical", CategoricalBlock(by_kind["categorical"]))
        ragged = (by_kind["sequence"] + by_kind["audio_frames"], by_kind["characters"])
        object.__setattr__(self, "_sequences", SequenceBlock(*ragged) if any(ragged) else None)
        object.__setattr__(self, "_names", tuple(f.name for f in self.features))

    @property
    def dense_size(self) -> int:
        """D of `inputs["dense"]`."""
        return sum(block.width for block in self._blocks)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of indices of each column of `inputs["categorical"]`, 0 (missing) and 1 (other) included."""
        return self._categorical.cardinalities

    @property
    def channels(self) -> int:
        """C of `inputs["sequence"]`, 0 where there is none."""
        return self._sequences.channels if self._sequences else 0

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Number of indices of each column of `inputs["symbols"]`, 0 (unknown) included."""
        return self._sequences.vocabulary if self._sequences else ()

    @property
    def pictures(self) -> tuple[tuple[int, tuple[int, int, int]], ...]:
        """Pictures within `inputs["dense"]`: where each begins, and its height, width and channels."""
        found, start = [], 0
        for block in self._blocks:
            inside = start
            for shape in getattr(block, "shapes", ()):
                found.append((inside, shape))
                inside += math.prod(shape)
            start += block.width
        return tuple(found)

    @property
    def num_outputs(self) -> int:
        """Classes, targets of multilabel, 1 for regression, values to come times quantiles; else the size of a row."""
        if self.task == "regression":
            return 1
        if self.task == "forecast":
            return self.horizon * len(self.quantiles)
        return len(self.classes) if self.classes else self.dense_size

    def arrays(self, columns: Any) -> dict[str, Array]:
        """`transform` as NumPy arrays; sequences are flat (S, …), with `offsets` (B+1,)."""
        given = as_columns(columns)
        try:
            rows = self._count(given)
            dense = [block.transform(given, rows) for block in self._blocks]
            categorical = self._categorical.transform(given, rows)
            ragged = self._sequences.transform(self._frames(given), rows) if self._sequences else {}
        except KeyError as error:
            raise missing_column(error.args[0], list(given)) from None
        self._check_history(ragged)
        if len(dense) == 1:
            return {"dense": dense[0], "categorical": categorical} | ragged
        joined = np.concatenate(dense, axis=1) if dense else np.zeros((rows, 0), dtype=np.float32)
        return {"dense": joined, "categorical": categorical} | ragged

    def _check_history(self, ragged: Mapping[str, Array]) -> None:
        """A forecast from fewer steps than it was trained on is a guess. Raises DataError."""
        history = (self.frame or {}).get("history", 0)
        if ragged and history and (short := np.flatnonzero(np.diff(ragged["offsets"]) < history)).size:
            name = next(f.name for f in self.features if f.kind == "sequence")
            raise DataError(
                f"column {name!r}, row {short[0]}: fewer steps than the {history} that the forecast looks back on", field=name
            )

    def _frames(self, columns: Columns) -> Columns:
        """The columns with the sounds of `audio_frames` as their frames."""
        heard = {
            f.name: sounds(columns[f.name], f.name, f.state["sound"], STRICT) for f in self.features if f.kind == "audio_frames"
        }
        return {**columns, **{name: Ragged(r.values.astype(np.float64), r.offsets) for name, r in heard.items()}}

    def transform(self, columns: Any) -> dict[str, Tensor]:
        """{"dense": float32 (B, D), "categorical": int64 (B, K)} of a table or a mapping of columns.

        With sequences also "length" int64 (B,) and, padded with zeros, "sequence" float32 (B, T, C) and "symbols"
        int64 (B, T, K).

        Columns may come in any order, and others beside them. Raises DataError with the column, the
        row number and the value for what cannot be read, and where a column is missing.
        """
        from torch import from_numpy

        tensors = {name: from_numpy(array) for name, array in self.arrays(columns).items()}
        if (offsets := tensors.pop("offsets", None)) is None:
            return tensors
        starts, lengths = offsets[:-1], offsets.diff()
        padded = {name: pad(tensors[name], starts, lengths) for name in RAGGED if name in tensors}
        return tensors | padded | {"length": lengths}

    def _count(self, columns: Columns) -> int:
        found = [columns[name] for name in self._names]
        lengths = set(map(len, found))
        if len(lengths) == 1:
            return lengths.pop()
        first = len(found[0]) if found else 0
        name, other = next((n, len(c)) for n, c in zip(self._names, found, strict=True) if len(c) != first)
        raise DataError(f"column {self._names[0]!r} has {first} values, column {name!r} has {other}", field=name)

    @property
    def answer_type(self) -> pa.DataType:
        """A class, a list of labels or of numbers, or a number."""
        kind = pa.array(self.classes or [0.0]).type
        return pa.list_(kind) if self.task in ("multilabel", "labelling", "forecast") else kind

    @property
    def anchor(self) -> int | None:
        """The channel that holds the past of what is forecast, None where none does."""
        start = 0
        for feature in self.features:
            if self.frame and feature.name == self.frame["target"]:
                return start
            if feature.kind == "sequence":
                start += len(feature.state["mean"]) + sum(feature.state["missing"])
        return None

    def only(self, *features: Feature) -> FeatureSchema:
        """The schema of these features."""
        return replace(self, features=features)

    def encode_targets(self, columns: Any, rejects: Rejects | None = None) -> Any:
        """Targets of rows: int64 (B,) class numbers, float32 (B, 1) standardised, or float32 (B, T) of 0 and 1.

        Of labelling Ragged int64 class numbers, of a forecast float32 (B, horizon) standardised.
        A missing class, or one that training did not know, is -1; a missing number or label is NaN.
        A value of the wrong type goes to `rejects`; without, it is a DataError with the row.
        """
        return encode_targets(self, as_columns(columns), Rejects() if rejects is None else rejects)

    def decode(self, outputs: Tensor) -> Prediction:
        """Answers from outputs (B, C): logits, or standardised values (B, 1) of a regression.

        Of labelling logits (B, T, C), NaN beyond a row's length; of a forecast values (B, horizon * quantiles).
        """
        outputs = outputs.double()
        if self.task == "labelling":
            return decode_steps(outputs, self.classes or [])
        if self.task == "forecast":
            return decode_ahead(outputs * self.target_std + self.target_mean, self.quantiles)
        if self.task == "regression":
            return Prediction((outputs[:, 0] * self.target_std + self.target_mean).tolist(), None)
        classes = self.classes or []
        names = [str(c) for c in classes]
        if self.task == "classification":
            probabilities = outputs.softmax(1)
            answers = [classes[i] for i in outputs.argmax(1).tolist()]
        else:
            probabilities = outputs.sigmoid()
            on = (probabilities >= 0.5).tolist()
            answers = [[n for n, flag in zip(names, row, strict=True) if flag] for row in on]
        return Prediction(answers, dict(zip(names, probabilities.T.tolist(), strict=True)))

    def columns_from_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns of `{"rows": [...]}`; a name not in a row is a missing value.

        Raises DataError for a name that is neither a feature nor a key, with the nearest.
        """
        known = {*self._names, *self.key}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise DataError(f"row {number} is {type(row).__name__}, expected an object of columns", field="rows")
            if not row.keys() <= known:
                name = next(str(n) for n in row if n not in known)
                near = difflib.get_close_matches(name, self._names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DataError(f"row {number} has {name!r}, which the model does not know{hint}", field=name)
        return {name: [row.get(name) for row in rows] for name in self._names}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; floats keep every bit."""
        features = [{f.name: getattr(feature, f.name) for f in fields(feature)} for feature in self.features]
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"format": FORMAT} | own | {"features": features}

    def files(self) -> dict[str, bytes]:
        """None: everything is in the JSON."""
        return {}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeatureSchema:
        """The schema of `to_json`. Raises DataError for another format."""
        given = dict(value)
        if (found := given.pop("format", None)) != FORMAT:
            raise DataError(f"the feature schema has format {found}, this seekray reads {FORMAT}")
        for name in {"targets", "key", "quantiles"} & given.keys():
            given[name] = tuple(given[name])
        return cls(**given | {"features": tuple(Feature(**f) for f in given["features"])})
