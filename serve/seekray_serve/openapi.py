"""What a model takes and gives, as OpenAPI and as a page; with the model's own feature names.

The page is one file of our own: the usual viewers come from a content delivery network, which a
machine without internet cannot reach and which sees who looks.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seekray.predictor import Predictor

_TYPES: dict[str, dict[str, Any]] = {
    "numeric": {"type": ["number", "null"]},
    "categorical": {"type": ["string", "number", "boolean", "null"]},
    "boolean": {"type": ["boolean", "null"]},
    "timestamp": {"type": ["string", "null"], "description": "ISO 8601"},
    "text": {"type": ["string", "null"]},
    "image": {"type": "string", "description": "an encoded image (PNG, JPEG), base64"},
    "audio": {"type": "string", "description": "an encoded sound (WAV, FLAC), base64"},
    "audio_frames": {"type": "string", "description": "an encoded sound (WAV, FLAC), base64"},
    "vector": {"type": "array", "items": {"type": "number"}},
    "sequence": {
        "type": ["array", "null"],
        "items": {"type": ["number", "array", "null"], "items": {"type": ["number", "null"]}},
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
        "example": {"rows": [example_row(predictor)]},
    }


def document(predictor: Predictor, paths: Sequence[tuple[str, str]], prefix: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document; `paths` are the (method, path) that the application answers."""
    features = {}
    for feature in predictor.schema.features:
        schema = dict(_TYPES.get(feature.kind, {}))
        if feature.size and feature.kind == "vector":
            schema |= {"minItems": feature.size, "maxItems": feature.size}
        features[feature.name] = schema
    names = list(features)
    classes = predictor.schema.classes
    value: dict[str, Any] = {"type": "number"} if predictor.task == "regression" else {"enum": classes}
    if predictor.task == "forecast":
        value = {"type": "number"}
    if predictor.task in ("multilabel", "labelling", "forecast"):
        value = {"type": "array", "items": value}
    schemas = {
        "Row": {"type": "object", "properties": features, "required": names, "additionalProperties": False},
        "Request": {
            "oneOf": [
                _object({"rows": {"type": "array", "minItems": 1, "items": _ref("Row")}}),
                _object({"columns": _object({name: {"type": "array", "items": features[name]} for name in names})}),
            ]
        },
        "Answer": _object(
            {
                "predictions": {"type": "array", "items": value},
                "probabilities": {
                    "type": ["array", "null"],
                    "items": {"type": "object", "additionalProperties": {"type": "number"}},
                },
                "model": {"type": "string"},
                "version": {"type": ["string", "null"]},
            }
        ),
        "Error": _object(
            {
                "error": _object(
                    {
                        "code": {"type": "string"},
                        "message": {"type": "string"},
                        "field": {"type": ["string", "null"]},
                    }
                )
            }
        ),
    }
    documented: dict[str, Any] = {}
    for method, path in paths:
        operation: dict[str, Any] = {"responses": {"200": {"description": "done"}}}
        if (method, path) == ("POST", "/v1/predict"):
            example = {"rows": [example_row(predictor)]}
            operation = {
                "summary": f"Predict with {predictor.name}",
                "requestBody": {"required": True, "content": _content("Request", example)},
                "responses": {
                    "200": {"description": "an answer for each row", "content": _content("Answer")},
                    "4XX": {"description": "the request is wrong", "content": _content("Error")},
                    "429": {"description": "too many requests wait; see Retry-After", "content": _content("Error")},
                },
            }
        documented.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": predictor.name, "version": str(predictor.version or "0")},
        "servers": [{"url": prefix or "/"}],
        "paths": documented,
        "components": {"schemas": schemas},
    }


def page(predictor: Predictor, prefix: str = "") -> bytes:
    """The documentation page: features, the request to try, and the same as a curl line."""
    example = json.dumps({"rows": [example_row(predictor)]}, indent=1)
    rows = "".join(
        f"<tr><td><code>{html.escape(feature.name)}</code><td>{html.escape(feature.kind)}"
        f"<td><code>{html.escape(json.dumps(feature.example))}</code>"
        for feature in predictor.schema.features
    )
    title = html.escape(f"{predictor.name} {predictor.version or ''}".strip())
    return (
        _PAGE.replace("{{title}}", title)
        .replace("{{task}}", html.escape(predictor.task))
        .replace("{{rows}}", rows)
        .replace("{{prefix}}", html.escape(prefix, quote=True))
        .replace("{{example}}", html.escape(example))
        .encode()
    )


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _content(name: str, example: Any = None) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": _ref(name)}
    if example is not None:
        media["example"] = example
    return {"application/json": media}


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
textarea{width:100%;box-sizing:border-box;height:14rem;font:13px monospace}pre{background:#8882;padding:1rem;
overflow:auto;white-space:pre-wrap}td,th{text-align:left;padding:.1rem 1rem .1rem 0}:root{color-scheme:light dark}"""

_PAGE = (
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{title}}</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>"""
    + STYLE
    + """</style>
<h1>{{title}}</h1><p>{{task}} · <a href="{{prefix}}/openapi.json">OpenAPI</a> ·
<a href="{{prefix}}/v2">Open Inference Protocol</a></p>
<h2>POST <code>{{prefix}}/v1/predict</code></h2>
<textarea id="body" spellcheck="false" aria-label="request">{{example}}</textarea>
<p><button id="send">Send</button> <button id="curl">Show as curl</button></p><pre id="answer" aria-live="polite"></pre>
<h2>Features</h2><table><tr><th>name<th>kind<th>example{{rows}}</table>
<script>
const body = document.getElementById("body"), answer = document.getElementById("answer");
const url = location.origin + "{{prefix}}/v1/predict";
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
