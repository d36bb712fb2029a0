"""The same rows through every door a model has: classes must be identical, numbers within a tolerance."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from seekray.data.sequences.ragged import STEPS

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.data.schema import Prediction, Schema
    from seekray.generator import Generator
    from seekray.predictor import Predictor

Rows = Sequence[Mapping[str, Any]]


class Answers(Protocol):
    """What a door gives back: columns of equal length."""

    def columns(self) -> dict[str, list[Any]]: ...


Door = Callable[[list[dict[str, Any]]], Answers]
TOLERANCE = 1e-6
TOLERANCE_ON_GPU = 1e-3  # of float32, where another kernel or card rounds otherwise
MOST_FEATURES = 40


def verify(doors: Mapping[str, Door], rows: Rows, *, reference: str = "python", tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Send rows through every door and compare with the door `reference`.

    A number agrees within `tolerance` times its own size, or `tolerance` where it is below 1 (as
    probabilities are). Returns `{passed, rows, reference, tolerance, doors}`, each door with `{door,
    rows, passed, largest_difference, mismatch}`: the largest difference in the units just said, and
    the first row and column that disagree, or the door's error, in words; None where all is equal.
    A door that fails does not keep the others from being asked; the reference raises what it raises.
    """
    given = [dict(row) for row in rows]
    expected = doors[reference](given).columns()
    report = []
    for name, door in doors.items():
        try:
            found = expected if name == reference else door(given).columns()
        except Exception as error:  # a door may fail in its own ways: that is the finding
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            report.append({"door": name, "rows": 0, "passed": False, "largest_difference": None, "mismatch": reason})
            continue
        largest, mismatch = _compare(expected, found, tolerance)
        answered = len(next(iter(found.values()), ()))
        report.append(
            {"door": name, "rows": answered, "passed": mismatch is None, "largest_difference": largest, "mismatch": mismatch}
        )
    passed = all(door["passed"] for door in report)
    return {"passed": passed, "rows": len(given), "reference": reference, "tolerance": tolerance, "doors": report}


def _compare(expected: Mapping[str, list[Any]], found: Mapping[str, list[Any]], tolerance: float) -> tuple[float, str | None]:
    """The largest difference of numbers and the first mismatch in words."""
    if list(expected) != list(found):
        return 0.0, f"columns {', '.join(found)}, expected {', '.join(expected)}"
    largest, first = 0.0, None
    for column, values in expected.items():
        if len(found[column]) != len(values):
            return largest, f"{len(found[column])} rows, expected {len(values)}"
        for row, (value, other) in enumerate(zip(values, found[column], strict=True)):
            difference, words = _difference(_plain(value), _plain(other), tolerance)
            largest = max(largest, difference)
            if words and (first is None or row < first[0]):
                first = (row, f"row {row}, column {column!r}{words}")
    return largest, first[1] if first else None


def _difference(value: Any, other: Any, tolerance: float, place: str = "") -> tuple[float, str | None]:
    """The largest difference of numbers, and the first values that disagree in words; lists are compared value by value."""
    if isinstance(value, list) and isinstance(other, list):
        if len(value) != len(other):
            return 0.0, f"{place}: {len(other)} values, expected {len(value)}"
        largest, first = 0.0, None
        for i, (v, o) in enumerate(zip(value, other, strict=True)):
            found, words = _difference(v, o, tolerance, f"{place}[{i}]")
            largest, first = max(largest, found), first or words
        return largest, first
    words = f"{place}: {other!r}, expected {value!r}"
    if isinstance(value, float) and isinstance(other, (int, float)) and not isinstance(other, bool):
        if value != value or other != other:
            return 0.0, None if value != value and other != other else words
        found = abs(value - other) / max(1.0, abs(value))
        return found, words if found > tolerance else None
    return 0.0, None if value == other and type(value) is type(other) else words


def _plain(value: Any) -> Any:
    """A class or list of labels as Python values, whatever array it comes from."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def door_of(model: Predictor | Generator) -> Door:
    """A loaded model as a door: rows to their answers, or requests to what is made."""
    from seekray.generator import Generator, json_rows

    if isinstance(model, Generator):
        return lambda requests: Made([row for request in requests for row in json_rows(model.generate(**request))])
    return lambda rows: model.predict(model.schema.columns_from_rows(rows))


def local_doors(bundle: Path | str, *, one_by_one: bool = False) -> dict[str, Door]:
    """The doors that need no server: `python`, `batch parquet`, `batch csv`, `pyfunc`, and a `copy` read anew.

    CSV cannot hold vectors, sequences or images, so the CSV door is left out for models that read them.
    one_by_one: also `one by one`, each row in a forward pass of its own (answers may differ by the
    rounding of another batch size).
    """
    from seekray.predictor import Predictor

    predictor = Predictor.load(bundle)
    schema = predictor.schema
    python = door_of(predictor)

    def pyfunc(rows: list[dict[str, Any]]) -> Prediction:
        import pandas as pd

        from seekray.tracking.pyfunc import _load_pyfunc

        return _prediction(_load_pyfunc(str(bundle)).predict(pd.DataFrame(rows)).to_dict("list"))

    def copy(rows: list[dict[str, Any]]) -> Answers:
        with tempfile.TemporaryDirectory(prefix="seekray-verify-") as folder:
            again = Predictor.load(shutil.copytree(bundle, Path(folder) / "bundle"))
        return door_of(again)(rows)

    def alone(rows: list[dict[str, Any]]) -> Prediction:
        answers = [python([row]).columns() for row in rows]
        return _prediction({name: [a[name][0] for a in answers] for name in answers[0]})

    doors: dict[str, Door] = {
        "python": python,
        "batch parquet": lambda rows: _batch(bundle, schema, rows, "parquet"),
    }
    if not {f.kind for f in schema.features} & {"vector", "image", "sequence", "audio", "audio_frames"}:
        doors["batch csv"] = lambda rows: _batch(bundle, schema, rows, "csv")
    doors |= {"pyfunc": pyfunc, "copy": copy}
    return doors | {"one by one": alone} if one_by_one else doors


@dataclass(frozen=True)
class Made:
    """Rows that a generator made, as columns."""

    rows: list[dict[str, Any]]

    def columns(self) -> dict[str, list[Any]]:
        """Each name of the first row with its values; JSON does not keep their order."""
        return {name: [row[name] for row in self.rows] for name in sorted(self.rows[0] if self.rows else {})}


def generator_doors(bundle: Path | str) -> dict[str, Door]:
    """The doors of a generator, given requests: `python`, `pyfunc`, a `copy` read anew, and `kept`, the bundle's answers."""
    from seekray.generator import Generator

    generator = Generator.load(bundle)

    def copy(requests: list[dict[str, Any]]) -> Answers:
        with tempfile.TemporaryDirectory(prefix="seekray-verify-") as folder:
            return door_of(Generator.load(shutil.copytree(bundle, Path(folder) / "bundle")))(requests)

    def pyfunc(requests: list[dict[str, Any]]) -> Made:
        import pandas as pd

        from seekray.data.values import json_value
        from seekray.tracking.pyfunc import _load_pyfunc

        rows = _load_pyfunc(str(bundle)).predict(pd.DataFrame(requests)).to_dict("records")
        return Made([{name: json_value(value) for name, value in row.items()} for row in rows])

    def kept(requests: list[dict[str, Any]]) -> Made:
        answers = dict(zip(map(str, generator.sample["requests"]), generator.sample["answers"], strict=True))
        return Made([row for request in requests for row in answers[str(request)]])

    return {"python": door_of(generator), "pyfunc": pyfunc, "copy": copy, "kept": kept}


def unlike_kept(model: Predictor | Generator) -> str | None:
    """The first answer to the bundle's own sample that is not the one kept with it, in words; None where all are alike.

    A bundle without kept answers has nothing to be unlike.
    """
    from seekray.generator import Generator, json_rows

    tolerance = TOLERANCE if model.device.type == "cpu" else TOLERANCE_ON_GPU
    pairs: list[tuple[Any, Any]] = []
    if isinstance(model, Generator):
        requests = model.sample.get("requests") or []
        found = [json_rows(model.generate(**request)) for request in requests]
        pairs = [
            (Made(kept).columns(), Made(rows).columns()) for kept, rows in zip(model.sample["answers"], found, strict=True)
        ]
    elif model.sample and model.sample_answers:
        columns = model.predict(model.schema.columns_from_rows(model.sample)).columns()
        pairs = [(dict(sorted(model.sample_answers.items())), dict(sorted(columns.items())))]
    return next((words for kept, now in pairs if (words := _compare(kept, now, tolerance)[1])), None)


def _batch(bundle: Path | str, schema: Schema, rows: list[dict[str, Any]], kind: str) -> Prediction:
    """Rows written to a file, predicted as a file, read back. Raises DataError where a row is put aside."""
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    from seekray.batch.predict import predict
    from seekray.data.options import Data
    from seekray.errors import DataError

    with tempfile.TemporaryDirectory(prefix="seekray-verify-") as folder:
        source, out = f"{folder}/rows.{kind}", f"{folder}/answers.parquet"
        table = _table(schema, rows)
        if kind == "parquet":
            pq.write_table(table, source)
        else:
            pacsv.write_csv(table, source)
        done = predict(bundle, Data(source=source, decimal="." if kind == "csv" else None), out, workers=0)
        if done["rejected"]:
            raise DataError(f"{done['rejected']} rows were put aside: {Path(out + '.rejected.jsonl').read_text()[:300]}")
        answers = pq.read_table(out).to_pydict()
    return _prediction(answers)


def _table(schema: Schema, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a file would hold them: one type a column, the columns in another order than the model's."""
    import pyarrow as pa

    arrays = {}
    for name, values in reversed(schema.columns_from_rows(rows).items()):
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            # JSON may mix numbers and texts in a column; a file has them as text.
            texts = [
                v if v is None or isinstance(v, str) else str(v).lower() if isinstance(v, bool) else str(v) for v in values
            ]
            arrays[name] = pa.array(texts)
    return pa.table(arrays)


def _prediction(columns: Mapping[str, Any]) -> Prediction:
    from seekray.data.schema import Prediction

    def starting(start: str) -> dict[str, list[Any]] | None:
        return {name[len(start) :]: list(values) for name, values in columns.items() if name.startswith(start)} or None

    return Prediction(list(columns["prediction"]), starting("probability_"), starting("quantile_"))


def rows_with_trouble(schema: Schema, sample: Rows) -> list[dict[str, Any]]:
    """Variations of rows that a model must answer alike through every door.

    Nulls (each feature in a row of its own, all at once, and a key that is not there), unseen
    categories, whole numbers among fractions and fractions among whole ones (a nullable integer
    column), large and negative numbers, texts with quotes, commas and newlines, and keys in another order.
    """
    base = [dict(row) for row in sample] or [{f.name: f.example for f in schema.features}]
    out: list[dict[str, Any]] = []

    def like(changes: Mapping[str, Any]) -> None:
        out.append(base[len(out) % len(base)] | dict(changes))

    features = schema.features[:MOST_FEATURES]
    lists = [f.name for f in schema.features if f.kind in STEPS]
    for feature in features:
        like({feature.name: None})
        if feature.name in lists and len(lists) > 1:
            continue  # of another length than the row's other lists
        for value in _odd(feature.kind, feature.example):
            like({feature.name: value})
    like(dict.fromkeys(f.name for f in schema.features))
    like({f.name: "never seen before" for f in schema.features if f.kind == "categorical"})
    out.append({k: v for k, v in base[0].items() if k != features[-1].name} if len(features) > 1 else dict(base[0]))
    out.append(dict(reversed(base[-1].items())))
    # A forecast is refused where the steps do not reach back far enough.
    history = (getattr(schema, "frame", None) or {}).get("history", 0)
    return [row for row in out if max((len(row.get(name) or ()) for name in lists), default=history) >= history]


def _odd(kind: str, example: Any) -> list[Any]:
    """Values of a feature that are right, but not what a door expects."""
    if kind == "numeric":
        return [3, -1.5, 1e12]
    if kind == "categorical":
        return ["never seen before"] if isinstance(example, str) else [-987654]
    if kind == "boolean":
        return [True, False]
    if kind in ("text", "characters"):
        return ['a "quoted", long\ntext; with | all', "naïve 文字"]
    if kind == "sequence" and example:
        return [example[:1], example * 3, []]
    if kind == "timestamp":
        return ["2026-02-28T23:59:59"]
    return []
