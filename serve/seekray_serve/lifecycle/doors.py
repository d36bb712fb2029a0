"""An endpoint's doors as functions from rows to answers, or from requests to what was made, for `seekray verify`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from seekray.data.schema import Prediction
from seekray.errors import ClusterError
from seekray.verify import Made

Rows = Sequence[Mapping[str, Any]]
CHUNK = 1000


def endpoint_doors(url: str, name: str) -> dict[str, Callable[[Rows], Prediction]]:
    """Doors of the model `name` served at `url` (its own address, such as http://127.0.0.1:8000/digits)."""
    return {
        "rest": lambda rows: _joined(_rest(url, name, rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)),
        "open inference protocol": lambda rows: _joined(
            _protocol(url, name, rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)
        ),
    }


def generation_doors(url: str, name: str) -> dict[str, Callable[[Rows], Made]]:
    """Doors of the generator `name` served at `url`, given requests as its bundle keeps them."""

    def made(ask: Callable[[str, str, Mapping[str, Any]], list[dict[str, Any]]]) -> Callable[[Rows], Made]:
        return lambda requests: Made([row for request in requests for row in ask(url, name, request)])

    if "/v1/completions" in _ask(f"{url}/openapi.json")["paths"]:
        return {"completions": made(_completion), "streamed completions": made(_streamed)}
    return {"rest": made(lambda url, _, request: list(_ask(f"{url}/v1/generate", request)["rows"])), "arrow": made(_arrow)}


def _arrow(url: str, name: str, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    import pyarrow as pa

    from seekray.generator import json_rows

    with _open(f"{url}/v1/generate", request, "application/vnd.apache.arrow.stream") as answer:
        return json_rows(pa.ipc.open_stream(answer.read()).read_all())


def _completion(url: str, name: str, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for prompt, body in _prompts(name, request):
        answer = _ask(f"{url}/v1/completions", body)
        found += [_text(prompt, choice["text"], choice, answer["usage"]) for choice in answer["choices"]]
    return found


def _streamed(url: str, name: str, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for prompt, body in _prompts(name, request):
        with _open(f"{url}/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}) as answer:
            lines = [line.removeprefix("data: ") for line in answer.read().decode().split("\n\n") if line]
        *parts, last = [json.loads(line) for line in lines if line != "[DONE]"]
        choices = [choice for part in parts for choice in part["choices"]]
        found.append(_text(prompt, "".join(choice["text"] for choice in choices), choices[-1], last["usage"]))
    return found


def _prompts(name: str, request: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    given = {key: value for key, value in request.items() if key != "prompts"}
    for prompt in request["prompts"]:
        yield prompt, {"model": name, "prompt": prompt, **given}


def _text(prompt: str, text: str, choice: Mapping[str, Any], usage: Mapping[str, int]) -> dict[str, Any]:
    """A row as the generator makes it."""
    return {
        "prompt": prompt, "sample": choice["index"], "text": text, "finish_reason": choice["finish_reason"],
        "prompt_tokens": usage["prompt_tokens"], "tokens": usage["completion_tokens"],
    }  # fmt: skip


def _joined(parts: Any) -> Prediction:
    predictions: list[Any] = []
    probabilities: dict[str, list[Any]] = {}
    quantiles: dict[str, list[Any]] = {}
    for part in parts:
        predictions += part.predictions
        for whole, found in ((probabilities, part.probabilities), (quantiles, part.quantiles)):
            for key, values in (found or {}).items():
                whole.setdefault(key, []).extend(values)
    return Prediction(predictions, probabilities or None, quantiles or None)


def _ask(url: str, body: Any = None) -> Any:
    with _open(url, body) as answer:
        return json.load(answer)


def _open(url: str, body: Any = None, accept: str = "*/*") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", "Accept": accept})
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)
    except urllib.error.HTTPError as error:
        raise ClusterError(f"{url} answered {error.code}: {error.read().decode(errors='replace')[:300]}") from error
    except OSError as error:
        raise ClusterError(f"{url} does not answer: {error}") from error


def _rest(url: str, name: str, rows: Rows) -> Prediction:
    names = [spec["name"] for spec in _ask(f"{url}/v2/models/{name}")["inputs"]]
    answer = _ask(f"{url}/v1/predict", {"rows": [{n: row.get(n) for n in names} for row in rows]})
    columns = [
        {key: [row[key] for row in per_row] for key in per_row[0]} if (per_row := answer.get(name)) else None
        for name in ("probabilities", "quantiles")
    ]
    return Prediction(answer["predictions"], *columns)


def _protocol(url: str, name: str, rows: Rows) -> Prediction:
    about = _ask(f"{url}/v2/models/{name}")
    inputs, nulls = [], {}
    for spec in about["inputs"]:
        values = [row.get(spec["name"]) for row in rows]
        if missing := [i for i, v in enumerate(values) if v is None]:
            nulls[spec["name"]] = missing
        kind, width = _datatype(values, spec["datatype"]), spec["shape"][1:]
        filler: Any = {"BYTES": "", "BOOL": False, "INT64": 0}.get(kind, 0.0)
        filled = [([filler] * width[0] if width else filler) if v is None else _as(kind, v) for v in values]
        flat = [x for v in filled for x in v] if width else filled
        inputs.append({"name": spec["name"], "datatype": kind, "shape": [len(rows), *width], "data": flat})
    answer = _ask(f"{url}/v2/models/{name}/infer", {"inputs": inputs, "parameters": {"nulls": nulls}})
    outputs = {o["name"]: o for o in answer["outputs"]}
    if "steps" in outputs:  # sequences: a row's answer as JSON
        found = [json.loads(text) for text in outputs["steps"]["data"]]
        named = {key: [row[key] for row in found] for key in found[0]}
        start = {kind: {k.removeprefix(f"{kind}_"): v for k, v in named.items() if k.startswith(f"{kind}_")} or None
                 for kind in ("probability", "quantile")}  # fmt: skip
        return Prediction(named["prediction"], start["probability"], start["quantile"])
    predictions = outputs["prediction"]["data"]
    if "probability" not in outputs:
        return Prediction(predictions, None)
    flat = outputs["probability"]["data"]
    many = outputs["probability"]["shape"][1]
    names = _ask(f"{url.rsplit('/', 1)[0]}/v1/models/{name}")["classes"]
    columns = {str(names[i]): flat[i::many] for i in range(many)}
    if outputs["prediction"]["shape"][1:]:  # multilabel: a flag a label
        rows_of = [predictions[i : i + many] for i in range(0, len(predictions), many)]
        predictions = [[str(n) for n, on in zip(names, row, strict=True) if on] for row in rows_of]
    return Prediction(predictions, columns)


def _datatype(values: Sequence[Any], declared: str) -> str:
    """What the values are, where the declared type cannot hold them: a category may be a text in one row."""
    if any(isinstance(v, str) for v in values):
        return "BYTES"
    if declared in ("INT64", "BOOL") and any(isinstance(v, float) and not v.is_integer() for v in values):
        return "FP64"
    return declared


def _as(kind: str, value: Any) -> Any:
    if kind == "BYTES" and isinstance(value, list):
        return json.dumps(value)
    if kind == "BYTES" and not isinstance(value, str):
        return ("true" if value else "false") if isinstance(value, bool) else str(value)
    return int(value) if kind == "INT64" else value
