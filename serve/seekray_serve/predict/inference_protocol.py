"""Open Inference Protocol v2, with the binary tensor extension; over gRPC see `inference_service`.

A tensor a feature goes in; `prediction`, and for classifiers `probability`, come out.
Specification: https://github.com/kserve/open-inference-protocol and, for raw tensors after the
JSON, Triton's binary data extension (`Inference-Header-Content-Length`).

The protocol has no nulls. A missing value is NaN in a floating tensor, or a row number in the
request parameter `nulls`: `{"colour": [0, 3]}` (an object, or that object as a string). Sequences of
different lengths are no tensor: a row's steps are a BYTES value, its JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from seekray.errors import DataError
from seekray_serve.predict.rows import Answer
from seekray_serve.predict.tensors import DTYPES, Array, mapping, to_bytes, values_of

if TYPE_CHECKING:
    from seekray.predictor import Predictor

LENGTH_HEADER = b"inference-header-content-length"
# Their answers are lists of different lengths: each row's columns are one BYTES value, their JSON.
SEQUENCES = ("labelling", "forecast")
_NUMBERS = {"numeric": "FP64", "vector": "FP64", "boolean": "BOOL"}


class Wanted:
    """What the request asks of its answer: which outputs, and which of them as raw bytes."""

    def __init__(self, request: Mapping[str, Any], known: Sequence[str]) -> None:
        self.id = request.get("id")
        parameters = mapping(request.get("parameters"), "parameters")
        binary = bool(parameters.get("binary_data_output", False))
        outputs = request.get("outputs") or [{"name": name} for name in known]
        if not isinstance(outputs, list):
            raise DataError('"outputs" must be a list', field="outputs")
        self.binary: dict[str, bool] = {}
        for output in outputs:
            name = mapping(output, "outputs").get("name")
            if not isinstance(name, str) or name not in known:
                raise DataError(f"the model has no output {name!r}; it has {', '.join(known)}", field=str(name))
            own = mapping(output.get("parameters"), "parameters")
            self.binary[name] = bool(own.get("binary_data", binary))


class InferenceProtocol:
    """Reads and writes the protocol for one model's features and classes."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._features = {feature.name: feature for feature in predictor.schema.features}
        self._classes = list(predictor.schema.classes or [])
        self.outputs = ["prediction"] if predictor.task == "regression" else ["prediction", "probability"]
        if predictor.task in SEQUENCES:
            self.outputs = ["steps"]

    def metadata(self) -> dict[str, Any]:
        """The answer to `GET /v2/models/{model}`."""
        inputs = [
            {
                "name": name,
                "datatype": self._input_type(feature),
                "shape": [-1, feature.size] if feature.kind == "vector" else [-1],
            }
            for name, feature in self._features.items()
        ]
        many = len(self._classes)
        if self._predictor.task in SEQUENCES:
            return self._about(inputs, [{"name": "steps", "datatype": "BYTES", "shape": [-1]}])
        shape = [-1, many] if self._predictor.task == "multilabel" else [-1]
        outputs = [{"name": "prediction", "datatype": self._output_type(), "shape": shape}]
        if "probability" in self.outputs:
            outputs.append({"name": "probability", "datatype": "FP64", "shape": [-1, many]})
        return self._about(inputs, outputs)

    def _about(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "name": self._predictor.name,
            "versions": [str(self._predictor.version or "1")],
            "platform": "seekray_pytorch",
            "inputs": inputs,
            "outputs": outputs,
        }

    def _input_type(self, feature: Any) -> str:
        if feature.kind in _NUMBERS:
            return _NUMBERS[feature.kind]
        example = feature.example
        if isinstance(example, bool):
            return "BOOL"
        if isinstance(example, int):
            return "INT64"
        return "FP64" if isinstance(example, float) else "BYTES"

    def _output_type(self) -> str:
        if self._predictor.task == "regression":
            return "FP64"
        if self._predictor.task == "multilabel":
            return "BOOL"
        for kind, name in ((bool, "BOOL"), (int, "INT64"), (int | float, "FP64")):
            if all(isinstance(value, kind) for value in self._classes):
                return name
        return "BYTES"

    def read(self, body: bytes, header_length: bytes | None) -> tuple[dict[str, Any], int, Wanted]:
        """Columns, their number of rows and what is wanted, of an HTTP body. Raises DataError."""
        size = len(body)
        if header_length is not None:
            if not header_length.isdigit() or int(header_length) > len(body):
                raise DataError(
                    f"Inference-Header-Content-Length must be between 0 and {len(body)}",
                    field="Inference-Header-Content-Length",
                )
            size = int(header_length)
        try:
            request = orjson.loads(body[:size])
        except orjson.JSONDecodeError as error:
            raise DataError(f"the request's JSON part is not JSON: {error}") from error
        return self.read_request(request, memoryview(body)[size:])

    def read_request(self, request: object, raw: memoryview) -> tuple[dict[str, Any], int, Wanted]:
        """The same of a request whose raw tensors, one after another, are `raw`. Raises DataError."""
        inputs = request.get("inputs") if isinstance(request, dict) else None
        if not isinstance(request, dict) or not isinstance(inputs, list) or not inputs:
            raise DataError('the request must be an object with a list "inputs"', field="inputs")
        wanted = Wanted(request, self.outputs)
        columns: dict[str, Any] = {}
        rows = -1
        for tensor in inputs:
            name = mapping(tensor, "inputs").get("name")
            if not isinstance(name, str) or name not in self._features:
                raise DataError(f"the model has no input {name!r}", field=str(name))
            if name in columns:
                raise DataError(f"input {name!r} is given twice", field=name)
            values, raw = values_of(tensor, raw)
            count = self._count(name, tensor["shape"])
            if rows not in (-1, count):
                raise DataError(f"input {name!r} has {count} rows, others have {rows}", field=name)
            rows = count
            columns[name] = self._column(name, values, count)
        if len(raw):
            raise DataError(f"{len(raw)} bytes are left after the last input")
        if missing := [name for name in self._features if name not in columns]:
            raise DataError(f"input {missing[0]!r} is missing", field=missing[0])
        if rows < 1:
            raise DataError("the inputs have no rows", field="inputs")
        _apply_nulls(columns, rows, mapping(request.get("parameters"), "parameters").get("nulls"))
        return columns, rows, wanted

    def _count(self, name: str, shape: list[int]) -> int:
        feature = self._features[name]
        expected = [feature.size] if feature.kind == "vector" else []
        if feature.kind == "sequence" and shape[1:] not in ([], [1]):
            raise _no_json_list(name)
        if shape[1:] != expected and not (not expected and shape[1:] == [1]):
            form = ["rows", *expected]
            raise DataError(f"input {name!r} has shape {shape}, expected {form}", field=name)
        return shape[0]

    def _column(self, name: str, values: Array | list[Any], rows: int) -> Any:
        kind = self._features[name].kind
        if kind == "sequence" and not isinstance(values, list):
            raise _no_json_list(name)
        if kind == "sequence":
            return [_json_list(name, value) for value in values]
        if kind == "vector":
            return np.asarray(values, dtype=np.float64).reshape(rows, -1).tolist()
        if isinstance(values, list):
            return values
        if kind == "numeric" and values.dtype != np.bool_:
            return values.astype(np.float64)
        # What JSON would have brought: the same text for the same category, NaN for a missing one.
        plain = values.tolist()
        if values.dtype.kind == "f":
            return [None if math.isnan(value) else value for value in plain]
        return plain

    def write(self, answer: Answer, wanted: Wanted) -> tuple[bytes, int | None]:
        """The response body, and the length of its JSON part where raw tensors follow it."""
        outputs: list[dict[str, Any]] = []
        tail: list[bytes] = []
        for name, binary in wanted.binary.items():
            values, datatype = self.output(name, answer)
            output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
            if binary:
                tail.append(to_bytes(values, datatype))
                output["parameters"] = {"binary_data_size": len(tail[-1])}
            else:
                output["data"] = values.ravel().tolist()
            outputs.append(output)
        head: dict[str, Any] = {
            "model_name": self._predictor.name,
            "model_version": str(self._predictor.version or "1"),
            "outputs": outputs,
        }
        if wanted.id is not None:
            head["id"] = wanted.id
        text = orjson.dumps(head)
        if not tail:
            return text, None
        return b"".join([text, *tail]), len(text)

    def output(self, name: str, answer: Answer) -> tuple[Array, str]:
        """The tensor of one of `outputs`, and its datatype."""
        if name == "steps":
            rows = answer.columns()
            lines = [orjson.dumps({k: v[i] for k, v in rows.items()}).decode() for i in range(len(answer.predictions))]
            return np.array(lines, dtype=object), "BYTES"
        if name == "probability":
            columns = answer.probability_columns() or {}
            return np.array(list(columns.values()), dtype="<f8").T, "FP64"
        datatype = self._output_type()
        if self._predictor.task == "multilabel":
            flags = [[label in row for label in self._classes] for row in answer.predictions]
            return np.array(flags, dtype="?"), datatype
        if datatype == "BYTES":
            return np.array([str(value) for value in answer.predictions], dtype=object), datatype
        return np.array(answer.predictions, dtype=DTYPES[datatype]), datatype


def _no_json_list(name: str) -> DataError:
    return DataError(f"input {name!r} takes BYTES of shape [rows], the JSON of each row's list of steps", field=name)


def _json_list(name: str, text: object) -> Any:
    """A row's steps: sequences of different lengths are no tensor, so each travels as JSON; "" is a missing list."""
    if not isinstance(text, str):
        raise _no_json_list(name)
    try:
        return orjson.loads(text) if text else None
    except orjson.JSONDecodeError as error:
        raise DataError(f"input {name!r} is not JSON: {error}", field=name) from error


def _apply_nulls(columns: dict[str, Any], rows: int, nulls: object) -> None:
    if nulls is None:
        return
    if isinstance(nulls, str):
        try:
            nulls = orjson.loads(nulls)
        except orjson.JSONDecodeError as error:
            raise DataError(f"the parameter nulls is not JSON: {error}", field="nulls") from error
    for name, numbers in mapping(nulls, "nulls").items():
        if name not in columns or not isinstance(numbers, list):
            raise DataError(f"nulls must map an input to row numbers; got {name!r}", field="nulls")
        column = list(columns[name])
        for number in numbers:
            if type(number) is not int or not 0 <= number < rows:
                raise DataError(f"nulls of {name!r} has no row {number!r}", field="nulls")
            column[number] = None
        columns[name] = column
