"""What a model takes and gives, as OpenAPI and as a page; with the model's own feature names.

The page is one file of our own: the usual viewers come from a content delivery network, which a
machine without internet cannot reach and which sees who looks.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seekray.data.parse import FALSE, TRUE
from seekray_serve import operations
from seekray_serve.operations import ARROW, BYTES, NAME, json_of, posted, ref, typed_object

if TYPE_CHECKING:
    from seekray.loaded import LoadedModel
    from seekray.predictor import Predictor

_TYPES: dict[str, dict[str, Any]] = {
    "numeric": {"type": ["number", "null"]},
    "categorical": {"type": ["string", "number", "boolean", "null"]},
    "boolean": {"enum": [True, False, None, *sorted(TRUE | FALSE), 0, 1, ""], "description": "words in any case"},
    "timestamp": {"type": ["string", "number", "null"], "description": "ISO 8601, 31.12.2025, or seconds since 1970"},
    "text": {"type": ["string", "null"]},
    "image": {"type": "string", "description": "an encoded image (PNG, JPEG), base64"},
    "audio": {"type": "string", "description": "an encoded sound (WAV, FLAC), base64"},
    "audio_frames": {"type": "string", "description": "an encoded sound (WAV, FLAC), base64"},
    "vector": {"type": ["array", "null"], "items": {"type": ["number", "boolean", "null"]}},
    "sequence": {
        "type": ["array", "null"],
        "items": {"type": ["number", "boolean", "array", "null"], "items": {"type": ["number", "boolean", "null"]}},
        "description": "steps in their order: numbers, or lists of a number a channel",
    },
    "characters": {"type": ["string", "null"]},
}


def example_row(predictor: Predictor) -> dict[str, Any]:
    """A row that the model can answer: held out at training, else made of the features' examples."""
    if predictor.sample:
        return dict(predictor.sample[0])
    return {feature.name: feature.example for feature in predictor.schema.features}


def describe(predictor: Predictor) -> dict[str, Any]:
    """What the catalogue says of a model."""
    return {
        "name": predictor.name,
        "version": predictor.version,
        "task": predictor.task,
        "features": [
            {"name": feature.name, "kind": feature.kind, **({"size": feature.size} if feature.size else {})}
            for feature in predictor.schema.features
        ],
        "classes": predictor.schema.classes,
        "endpoint": "/v1/predict",
        "example": {"rows": [example_row(predictor)]},
    }


def listed(name: str) -> dict[str, Any]:
    """A model in the form that OpenAI's clients list."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "seekray"}


def document(predictor: Predictor, paths: Sequence[tuple[str, str]], prefix: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document; `paths` are the (method, path) that the application answers."""
    features = {}
    for feature in predictor.schema.features:
        schema = dict(_TYPES.get(feature.kind, {}))
        if feature.size and feature.kind == "vector":
            schema |= {"minItems": feature.size, "maxItems": feature.size}
        if feature.kind == "numeric" and feature.state.get("flags"):
            schema = {"type": ["number", "boolean", "null"]}
        features[feature.name] = schema
    names = list(features)
    classes = predictor.schema.classes
    value: dict[str, Any] = {"type": "number"} if predictor.task == "regression" else {"enum": classes}
    if predictor.task == "forecast":
        value = {"type": "number"}
    if predictor.task in ("multilabel", "labelling", "forecast"):
        value = {"type": "array", "items": value}
    # All of the same length, which a schema cannot say.
    columns = {name: {"type": "array", "minItems": 1, "items": features[name]} for name in names}
    # A key may come along, as it does in a file.
    keys: dict[str, Any] = {name: {} for name in getattr(predictor.schema, "key", ()) if name not in features}
    listed_keys: dict[str, Any] = {name: {"type": "array"} for name in keys}
    given = {
        "rows": {"type": "array", "minItems": 1, "items": ref("Row")},
        "columns": typed_object(columns | listed_keys, listed_keys, additionalProperties=False),
    }
    series = {"keys": {"type": ["array", "null"]}, "state": NAME}
    schemas = {
        "Row": typed_object(features | keys, keys, additionalProperties=False),
        "Request": {"oneOf": [typed_object({form: given[form]}, additionalProperties=False) for form in given]},
        "Steps": {"oneOf": [typed_object({form: given[form]} | series, series, additionalProperties=False) for form in given]},
        "Form": {
            "type": "object",
            "description": "a part for each feature, files as they are, others as JSON; parts that come again are rows",
            "properties": {name: {"type": "string"} for name in (*names, *keys)},
            "required": names,
            "additionalProperties": False,
        },
        "Answer": typed_object(
            {
                "predictions": {"type": "array", "items": value},
                # Of a row's classes, or of each of its steps.
                "probabilities": {"type": ["array", "null"], "items": {"type": ["object", "array"]}},
                "quantiles": {"type": "array", "items": {"type": "object"}},
                "state": {"type": "string"},
                "model": {"type": "string"},
                "version": {"type": ["string", "null"]},
            },
            ("quantiles", "state"),
        ),
    }
    table: dict[str, Any] = {ARROW: {"schema": BYTES}}
    files = {"multipart/form-data": {"schema": ref("Form")}}
    takes = {**json_of(ref("Request"), {"rows": [example_row(predictor)]}), **files, **table}
    own = {
        ("POST", "/v1/predict"): posted(
            "/v1/predict", f"Predict with {predictor.name}", takes, {**json_of(ref("Answer")), **table}
        ),
        ("POST", "/v1/stream"): posted(
            "/v1/stream", f"New steps of series for {predictor.name}", json_of(ref("Steps")), json_of(ref("Answer"))
        ),
    }
    return whole_document(predictor, operations.documented(paths, own), schemas, prefix)


def whole_document(model: LoadedModel, paths: dict[str, Any], schemas: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The document of a model whose operations and schemas are these."""
    return {
        "openapi": "3.1.0",
        "info": {"title": model.name, "version": str(model.version or "0")},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {"schemas": {**operations.SCHEMAS, **schemas}},
    }


def page(predictor: Predictor, prefix: str = "") -> bytes:
    """The documentation page: features, the request to try, and the same as a curl line."""
    example = {"rows": [example_row(predictor)]}
    features = [(f.name, f.kind, json.dumps(f.example)) for f in predictor.schema.features]
    also = f'<a href="{html.escape(prefix, quote=True)}/v2">Open Inference Protocol</a>'
    return whole_page(predictor, "/v1/predict", example, ("Features", "name", "kind", "example"), features, prefix, also)


def whole_page(
    model: LoadedModel,
    endpoint: str,
    example: dict[str, Any],
    names: tuple[str, str, str, str],
    rows: Sequence[tuple[str, str, str]],
    prefix: str,
    also: str = "",
) -> bytes:
    """A page with a request to try, and under it a table with a title and three columns."""
    lines = "".join(
        f"<tr><td><code>{html.escape(a)}</code><td>{html.escape(b)}<td><code>{html.escape(c)}</code>" for a, b, c in rows
    )
    title, first, second, third = (html.escape(name) for name in names)
    return (
        _PAGE.replace("{{title}}", html.escape(f"{model.name} {model.version or ''}".strip()))
        .replace("{{task}}", html.escape(model.task))
        .replace("{{also}}", also)
        .replace("{{path}}", html.escape(prefix + endpoint, quote=True))
        .replace("{{table}}", f"<h2>{title}</h2><table><tr><th>{first}<th>{second}<th>{third}{lines}</table>")
        .replace("{{prefix}}", html.escape(prefix, quote=True))
        .replace("{{example}}", html.escape(json.dumps(example, indent=1)))
        .encode()
    )


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
textarea{width:100%;box-sizing:border-box;height:14rem;font:13px monospace}pre{background:#8882;padding:1rem;
overflow:auto;white-space:pre-wrap}td,th{text-align:left;padding:.1rem 1rem .1rem 0}:root{color-scheme:light dark}"""

_PAGE = (
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{title}}</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>"""
    + STYLE
    + """</style>
<h1>{{title}}</h1><p>{{task}} · <a href="{{prefix}}/openapi.json">OpenAPI</a> {{also}}</p>
<h2>POST <code>{{path}}</code></h2>
<textarea id="body" spellcheck="false" aria-label="request">{{example}}</textarea>
<p><button id="send">Send</button> <button id="curl">Show as curl</button></p><pre id="answer" aria-live="polite"></pre>
{{table}}
<script>
const body = document.getElementById("body"), answer = document.getElementById("answer");
const url = location.origin + "{{path}}";
document.getElementById("send").onclick = async () => {
  const r = await fetch(url, {method: "POST", headers: {"content-type": "application/json"}, body: body.value});
  const text = await r.text();
  try { answer.textContent = r.status + "\\n" + JSON.stringify(JSON.parse(text), null, 1); }
  catch { answer.textContent = r.status + "\\n" + text; }
};
document.getElementById("curl").onclick = () => { answer.textContent =
  "curl -s " + url + " -H 'content-type: application/json' -d '" + body.value.replace(/\\s*\\n\\s*/g, " ")
  .replaceAll("'", "'\\\\''") + "'"; };
</script></html>"""
)
