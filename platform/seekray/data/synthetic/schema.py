"""What a generator knows of its columns: how they become numbers, and how what it makes becomes a table again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from seekray.data.columns import as_columns, check_columns, missing_column
from seekray.data.options import Data, FeatureOptions
from seekray.data.parse import Array, Rejects, is_arrow
from seekray.data.schema import Prediction
from seekray.data.synthetic import codec, free_form
from seekray.data.synthetic.conditions import Conditions
from seekray.data.tables.features import Feature
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1


@dataclass(frozen=True)
class GenSchema:
    """Columns of a generator, fitted on the training rows.

    task: rows, images or texts. conditions: names of the columns that are given to the networks; the
    others are made. joint: how the conditions occur together. keys: column -> {type, next}: unique in what
    is made. rows: training rows.
    """

    features: tuple[Feature, ...]
    task: str = "rows"
    conditions: tuple[str, ...] = ()
    joint: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: int = 0
    given: Conditions = field(init=False, repr=False, compare=False)
    made: tuple[Feature, ...] = field(init=False, repr=False, compare=False)
    targets = ()
    classes = None

    def __post_init__(self) -> None:
        by_name = {f.name: f for f in self.features}
        given = Conditions(tuple(by_name[n] for n in self.conditions if n in by_name), self.joint)
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "made", tuple(f for f in self.features if f.name not in self.conditions))

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that tell rows apart."""
        return tuple(self.keys)

    @property
    def spans(self) -> list[codec.Span]:
        """Of the columns that are made, where they are columns of a table."""
        return [span for f in self.made for span in codec.spans(f)] if self.task == "rows" else []

    @property
    def subject(self) -> Feature:
        """The image or text that is made."""
        return self.made[0]

    @property
    def num_outputs(self) -> int:
        """Numbers of what is made; of a text, its length."""
        if self.task == "rows":
            return sum(size for _, size in self.spans)
        state = self.subject.state
        return int(state["length"] if self.task == "texts" else state["size"][0] * state["size"][1] * state["channels"])

    @property
    def dense_size(self) -> int:
        """Numbers of the conditions and of what is made."""
        return self.given.width + self.num_outputs

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """None: categories are among the dense numbers."""
        return ()

    @property
    def answer_type(self) -> pa.DataType:
        """Nothing is predicted."""
        return pa.null()

    def arrays(self, columns: Any) -> dict[str, Array]:
        """{"condition": float32 (B, C), "content": float32 (B, W), of texts int64 (B, L)} of training rows."""
        found = as_columns(columns)
        try:
            if self.task == "images":
                content = free_form.encode_images(self.subject, found[self.subject.name])
            elif self.task == "texts":
                content = free_form.encode_texts(self.subject, found[self.subject.name])
            else:
                content = np.concatenate([codec.encode(f, found[f.name]) for f in self.made], 1)
            return {"condition": self.given.encode(found, len(content)), "content": content}
        except KeyError as error:
            raise missing_column(error.args[0], list(found)) from None

    def transform(self, columns: Any) -> dict[str, Tensor]:
        """`arrays` as tensors."""
        from torch import from_numpy

        return {name: from_numpy(array) for name, array in self.arrays(columns).items()}

    def encode_targets(self, columns: Any, rejects: Rejects | None = None) -> Array:
        """There are none."""
        raise DataError("a generator has no targets")

    def decode(self, outputs: Tensor) -> Prediction:
        """A generator makes tables, it does not answer rows."""
        raise DataError("a generator predicts nothing; see `seekray generate`")

    def table(self, content: Array, condition: Array, first: int) -> pa.Table:
        """What was made as a table: keys, then the columns in their order. first: number of the first row."""
        columns = {name: _keys(state, first, len(content)) for name, state in self.keys.items()}
        arrays = dict(zip(self.conditions, self.given.decode(condition), strict=True))
        if self.task == "images":
            arrays[self.subject.name] = free_form.decode_images(self.subject, content)
        elif self.task == "texts":
            arrays[self.subject.name] = free_form.decode_texts(self.subject, content)
        else:
            start = 0
            for feature in self.made:
                size = codec.width(feature)
                arrays[feature.name] = codec.decode(feature, content[:, start : start + size])
                start += size
        return pa.table(columns | {f.name: arrays[f.name] for f in self.features})

    def columns_from_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns of `{"rows": [...]}`."""
        return {f.name: [row.get(f.name) for row in rows] for f in self.features}

    def only(self, *features: Feature) -> GenSchema:
        """The schema of these features."""
        return replace(self, features=features, conditions=(), joint={})

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        features = [{f.name: getattr(feature, f.name) for f in fields(feature)} for feature in self.features]
        return {"format": FORMAT, "targets": []} | own | {"features": features}

    def files(self) -> dict[str, bytes]:
        """None: everything is in the JSON."""
        return {}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GenSchema:
        """The schema of `to_json`. Raises DataError for another format."""
        given = dict(value)
        if (found := given.pop("format", None)) != FORMAT:
            raise DataError(f"the generator's schema has format {found}, this seekray reads {FORMAT}")
        del given["targets"]
        given["conditions"] = tuple(given["conditions"])
        return cls(**given | {"features": tuple(Feature(**f) for f in given["features"])})


def _keys(state: Mapping[str, Any], first: int, count: int) -> pa.Array:
    """Unique values, of the row's number alone: whole numbers go on after the training rows', texts are made."""
    numbers = np.arange(first, first + count)
    if state["next"] is None:
        return pa.array([f"synthetic-{n}" for n in numbers.tolist()])
    return pa.array(numbers + state["next"], codec.ARROW.get(state["type"], pa.int64()))


def fitter(conditions: Sequence[str]) -> Any:
    """`fit` of `prepare`, for a generator that is given these columns."""

    def fit(
        columns: Mapping[str, Any], kinds: Mapping[str, str], data: Data, task: str, table: Any
    ) -> tuple[GenSchema, list[str]]:
        warnings: list[str] = []
        features = []
        for name, kind in kinds.items():
            options = (data.features or {}).get(name) or FeatureOptions()
            feature, notes = _fit(name, kind, columns[name], table[name], options, task, name in conditions)
            features.append(feature)
            warnings += [f"feature {name!r} {note}" for note in notes]
        check_columns(conditions, list(kinds), field="model.condition")
        made = [f for f in features if f.name not in conditions]
        if task != "rows" and [f.kind for f in made] != [task[:-1]]:
            raise DataError(
                f"task {task} makes one {task[:-1]} column, the data has {', '.join(f'{f.name} ({f.kind})' for f in made)}; "
                "name it in data.features, and others that it depends on in model.condition too",
                field="data.features",
            )
        if not made:
            raise DataError("all columns are in model.condition; none is left to make", field="model.condition")
        given = Conditions(tuple(f for n in conditions for f in features if f.name == n), {})
        schema = GenSchema(
            features=tuple(features), task=task, conditions=tuple(conditions), joint=given.fit(columns),
            keys={name: _key_state(table[name]) for name in data.key}, rows=len(table[features[0].name]),
        )  # fmt: skip
        return schema, warnings

    return fit


def _fit(
    name: str, kind: str, column: Any, raw: Any, options: FeatureOptions, task: str, given: bool
) -> tuple[Feature, list[str]]:
    if kind in codec.KINDS:
        return codec.fit(name, kind, column, raw.type if is_arrow(raw) else None, options)
    if kind == "image" and task == "images" and not given:
        return free_form.fit_image(name, column, options), []
    if kind == "text" and task == "texts" and not given:
        return free_form.fit_text(name, column)
    raise DataError(
        f"column {name!r} is of kind {kind}, which gen with task {task} neither makes nor is given; "
        "leave it out with data.exclude, or set its kind in data.features",
        field=name,
    )


def _key_state(column: Any) -> dict[str, Any]:
    import pyarrow.compute as pc

    if not pa.types.is_integer(column.type):
        return {"type": str(column.type), "next": None}
    return {"type": str(column.type), "next": int(pc.max(column).as_py() or 0) + 1}
