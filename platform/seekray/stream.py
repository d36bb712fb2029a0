"""A recurrent model that is fed step by step: the state of each series is carried from call to call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from seekray.batch.output import PartResult, encode, json_lines, open_output
from seekray.batch.parts import bad_rows
from seekray.data.options import Data
from seekray.data.parse import Rejects, as_array, category, is_text, numbers, shown
from seekray.data.schema import Prediction
from seekray.data.sequences.framing import Frame
from seekray.data.sources import open_source
from seekray.data.tables.features import FeatureSchema
from seekray.data.times import times
from seekray.errors import DataError, UserError
from seekray.predictor import Predictor

State = list[tuple[Tensor, ...]]


class Stream:
    """Answers after each new step, as the whole sequence up to it would have.

    Rows hold only the steps that are new, one or more of each, and the states of their series are kept here, on the
    CPU: `dumps` and `loads` take them from one process to another.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Raises UserError where a model cannot be fed so: it reads backwards, or its answer needs all steps at once."""
        self.predictor = predictor
        reason = getattr(predictor.family, "not_streamable", lambda config, schema: "its family keeps no state")
        if why := reason(predictor.info["model"], predictor.schema):
            raise UserError(f"model {predictor.name!r} cannot be fed step by step: {why}")
        self._states: dict[str, State] = {}
        # A row holds the new steps alone, however far a forecast looks back.
        self._schema = (
            replace(predictor.schema, frame=None) if isinstance(predictor.schema, FeatureSchema) else predictor.schema
        )

    def __len__(self) -> int:
        return len(self._states)

    def forget(self, key: str) -> None:
        """Begin this series anew."""
        self._states.pop(key, None)

    def predict(self, columns: Any, keys: Sequence[Any]) -> Prediction:
        """Answers for rows of new steps; `keys` name each row's series, a key once. Raises DataError."""
        names = [str(category(key)) for key in keys]
        if len(set(names)) < len(names):
            raise DataError("a series has two rows in one call; give its steps in one row, or one row after another")
        inputs = self._schema.transform(columns)
        if len(names) != len(inputs["length"]):
            raise DataError(f"{len(names)} keys for {len(inputs['length'])} rows")
        fresh = [i for i, name in enumerate(names) if name not in self._states]
        outputs, after = self.predictor.forward_on(inputs, self._stacked(names) if len(fresh) < len(names) else None)
        for i, name in enumerate(names):
            self._states[name] = [tuple(t[:, i : i + 1].clone() for t in layer) for layer in after]
        return self.predictor.decode(outputs)

    def _stacked(self, names: Sequence[str]) -> State:
        """The states of series side by side; those that are new begin with zeros."""
        like = next(self._states[n] for n in names if n in self._states)
        zeros = [tuple(torch.zeros_like(t) for t in layer) for layer in like]
        found = [self._states.get(name, zeros) for name in names]
        return [
            tuple(torch.cat(parts, dim=1) for parts in zip(*(state[i] for state in found), strict=True))
            for i in range(len(like))
        ]

    def dumps(self) -> bytes:
        """All states, as safetensors that name the model."""
        tensors: dict[str, Tensor] = {}
        names = sorted(self._states)
        for i, layer in enumerate(self._stacked(names) if names else []):
            tensors |= {f"{i}.{j}": t.contiguous() for j, t in enumerate(layer)}
        data: bytes = save(tensors, {"bundle": self.predictor.hash, "keys": json.dumps(names)})
        return data

    def loads(self, data: bytes) -> Stream:
        """Go on from `dumps`. Raises UserError for the state of another model, or what is no state."""
        try:
            tensors = load(data)
            # safetensors reads metadata from files alone; they stand in its header, after the header's length.
            about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            names = json.loads(about["keys"])
        except Exception as error:
            raise UserError(f"the state is not one that a stream wrote: {str(error).splitlines()[0]}") from error
        if about.get("bundle") != self.predictor.hash:
            raise UserError("the state is of another model or version; begin without it")
        layers = 1 + max((int(n.split(".")[0]) for n in tensors), default=-1)
        for i, name in enumerate(names):
            self._states[name] = [
                tuple(tensors[f"{k}.{j}"][:, i : i + 1].clone() for j in range(sum(n.startswith(f"{k}.") for n in tensors)))
                for k in range(layers)
            ]
        return self


def predict_steps(stream: Stream, table: pa.Table) -> pa.Table:
    """A long table, a row a step, answered row by row as if each had just come; the rows of a time go together.

    Columns: the series, where there are several, the time, and the answers. Raises DataError, UserError.
    """
    schema, frame = stream.predictor.schema, _frame(stream)
    order = [(frame.time, "ascending")]
    rows = table.sort_by(order).to_pylist()
    out: list[dict[str, Any]] = []
    start = 0
    while start < len(rows):
        stop, seen = start, set()
        while stop < len(rows) and rows[stop].get(frame.id or "") not in seen:
            seen.add(rows[stop].get(frame.id or ""))
            stop += 1
            if frame.id is None:
                break
        part = rows[start:stop]
        keys = [row[frame.id] if frame.id else "" for row in part]
        columns = _as_steps(schema, {f.name: [row.get(f.name) for row in part] for f in schema.features})
        answers = stream.predict(columns, keys).columns()
        if frame.task == "labelling":
            answers = {name: [value[-1] for value in values] for name, values in answers.items()}
        for i, row in enumerate(part):
            named: Mapping[str, Any] = {frame.id: row[frame.id]} if frame.id else {}
            out.append({**named, frame.time: row[frame.time], **{name: values[i] for name, values in answers.items()}})
        start = stop
    return pa.Table.from_pylist(out)


def _frame(stream: Stream) -> Frame:
    """How the model's long table is read. Raises UserError where its steps cannot come from one alone."""
    given = getattr(stream.predictor.schema, "frame", None)
    if given is None:
        raise UserError("the model was not trained on a long table (data.sequence); feed it with Stream.predict")
    frame = Frame.from_json(given)
    if frame.future:
        raise UserError(f"the model wants {', '.join(frame.future)} of the steps to come; feed it with Stream.predict")
    return frame


def _as_steps(schema: Any, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Rows of one step each, from the values of a long table."""
    return {f.name: [[v] for v in columns[f.name]] if f.kind == "sequence" else columns[f.name] for f in schema.features}


def read_steps(stream: Stream, table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """A long table whose steps are numbers, and why some of its rows are no steps: those may touch no state."""
    schema, frame = stream._schema, _frame(stream)
    reasons: dict[int, str] = {}
    for feature in schema.features:
        if feature.kind == "sequence" and is_text(table.column(feature.name).type):  # a text among numbers, in a CSV
            rejects = Rejects(strict=False)
            found = numbers(as_array(table.column(feature.name)), feature.name, rejects)
            table = table.set_column(
                table.schema.get_field_index(feature.name), feature.name, pa.array(found, from_pandas=True)
            )
            reasons |= {
                int(r["row"]): f"column {feature.name!r}: {r['reason']}, got {shown(r['value'])}" for r in rejects.found
            }
    columns = _as_steps(schema, {f.name: table.column(f.name).to_pylist() for f in schema.features})
    reasons = bad_rows(schema, pa.table(columns)) | reasons
    rejects = Rejects(strict=False)
    missing = np.isnat(times(as_array(table.column(frame.time)), frame.time, rejects))
    reasons |= {int(row): f"column {frame.time!r} has no time" for row in np.flatnonzero(missing)}
    reasons |= {int(r["row"]): f"column {frame.time!r}: {r['reason']}" for r in rejects.found}
    if frame.id is not None:
        reasons |= {i: f"column {frame.id!r} is missing" for i, v in enumerate(table.column(frame.id).to_pylist()) if v is None}
    return table, reasons


def predict_file(bundle: Path, data: Data, out: str, states: Path) -> dict[str, Any]:
    """`predict_steps` of a file into a file, from where the file of states left off: `{rows, rejected, out, states}`.

    Steps that cannot be read are put aside as in any prediction, and their series goes on without them.
    """
    stream = Stream(Predictor.load(bundle))
    if states.exists():
        stream.loads(states.read_bytes())
    source = open_source(data.model_copy(update={"on_bad_row": "skip"}))
    table = source.table()
    read, reasons = read_steps(stream, table)
    row_numbers = np.setdiff1d(np.arange(len(table) + len(source.malformed)), [m["row"] for m in source.malformed])
    rejects = [{"row": m["row"], "reason": m["reason"], "values": m["value"]} for m in source.malformed]
    rejects += [
        {"row": int(row_numbers[i]), "reason": why, "values": table.slice(i, 1).to_pylist()[0]} for i, why in reasons.items()
    ]
    answers = predict_steps(stream, read.take(pa.array(np.setdiff1d(np.arange(len(table)), list(reasons)))))
    output = open_output(out, answers.schema, {"format": 1, "states": str(states), "part_rows": len(answers)})
    lines = json_lines(sorted(rejects, key=lambda r: r["row"])) if rejects else b""
    output.write(PartResult(0, len(answers), len(rejects), encode(answers, output.encoding, len(rejects)), lines))
    output.finish()
    states.write_bytes(stream.dumps())
    return {"rows": len(answers), "rejected": len(rejects), "out": out, "states": str(states)}
