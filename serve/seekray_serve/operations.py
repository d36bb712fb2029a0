"""What each path takes and answers, as OpenAPI's operations; the applications' documents are made of these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]
Operations = dict[str, dict[str, Any]]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
YES: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
NAME: Schema = {"type": ["string", "null"]}
NOTHING: Schema = {"type": "null"}
ARROW = "application/vnd.apache.arrow.stream"
BYTES: Schema = {"type": "string", "format": "binary"}


# One of a stream's; `data` is as JSON, and of the last event of a stream that ended well `[DONE]`.
EVENT: Schema = {"type": "object", "properties": {"data": TEXT}, "required": ["data"]}
EVENTS = {"text/event-stream": {"schema": EVENT}}


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def typed_object(properties: Schema, optional: Iterable[str] = (), **more: Any) -> Schema:
    """An object that has all of these, but for the optional ones."""
    return {"type": "object", "properties": properties, "required": [n for n in properties if n not in set(optional)], **more}


def listed(items: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **more}


def or_null(schema: Schema) -> Schema:
    """What may be left out by null too, as OpenAI's clients do."""
    return {"anyOf": [schema, NOTHING]}


_ERROR = {"code": TEXT, "message": TEXT, "field": NAME}
# The house's form, OpenAI's, and the text that Open Inference Protocol's clients expect.
SCHEMAS: Mapping[str, Schema] = {
    "Error": typed_object({"error": typed_object(_ERROR)}),
    "OpenAIError": typed_object({"error": typed_object({"message": TEXT, "type": TEXT, "param": NAME, "code": NAME})}),
    "ProtocolError": typed_object({"error": TEXT, "code": TEXT, "field": NAME}),
    "Model": typed_object({
        "name": TEXT, "version": NAME, "task": TEXT, "features": listed(typed_object({"name": TEXT, "kind": TEXT})),
        "classes": {"type": ["array", "null"]}, "endpoint": TEXT, "example": OBJECT,
    }),
    "Listed": typed_object({"id": TEXT, "object": {"const": "model"}, "created": WHOLE, "owned_by": TEXT}),
    "Models": typed_object({"object": {"const": "list"}, "data": listed(ref("Listed"))}),
    "Tensor": typed_object({
        "name": TEXT, "datatype": TEXT, "shape": listed({"type": "integer", "minimum": -1}), "data": {"type": "array"},
    }, ("data",)),
    "Metadata": typed_object({
        "name": TEXT, "versions": listed(TEXT), "platform": TEXT,
        "inputs": listed(ref("Tensor")), "outputs": listed(ref("Tensor")),
    }),
    "Tensors": typed_object({
        "model_name": TEXT, "model_version": NAME, "id": TEXT, "outputs": listed(ref("Tensor")), "parameters": OBJECT,
    }, ("id", "model_version", "parameters")),
    "Infer": typed_object({
        "id": TEXT, "inputs": listed(ref("Tensor"), minItems=1),
        "outputs": listed(typed_object({"name": TEXT})), "parameters": OBJECT,
    }, ("id", "outputs", "parameters")),
}  # fmt: skip

_OK = typed_object({"status": {"const": "ok"}})

_ANSWERS: tuple[tuple[str, str, str, Schema], ...] = (
    ("GET", "/healthz", "whether it answers", _OK),
    ("GET", "/openapi.json", "this document", OBJECT),
    ("GET", "/v1/model", "the model", ref("Model")),
    ("GET", "/v1/models", "the models", ref("Models")),
    ("GET", "/v1/models/[^/]+", "a model", ref("Listed")),
    ("GET", "/v1/status", "what replicas say of themselves", OBJECT),
    ("GET", "/v2", "the server", typed_object({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)})),
    ("GET", "/v2/health/live", "whether it lives", typed_object({"live": YES})),
    ("GET", "/v2/health/ready", "whether it is ready", typed_object({"ready": YES})),
    ("GET", "/v2/models/.+/ready", "whether the model is ready", typed_object({"name": TEXT, "ready": YES})),
    ("GET", "/v2/models/.+", "the model's tensors", ref("Metadata")),
    ("POST", "/v2/repository/index", "the models", listed(typed_object({"name": TEXT, "version": NAME, "state": TEXT}))),
)
# What answers a text that is no page.
_TEXTS = {
    "/page.js": "text/javascript; charset=utf-8",
    "/page.css": "text/css; charset=utf-8",
    "/metrics": "text/plain; version=0.0.4; charset=utf-8",
}


def json_of(schema: Schema, example: Any = None) -> dict[str, Any]:
    """JSON of a schema."""
    return {"application/json": {"schema": schema, **({} if example is None else {"example": example})}}


def refusals(path: str) -> dict[str, Any]:
    """What a path answers to a request that is wrong, or that it cannot do now."""
    form = "Error"
    if "/v2" in path:
        form = "ProtocolError"
    elif path.endswith(("/completions", "/embeddings", "/images/generations")):
        form = "OpenAIError"
    content = json_of(ref(form))
    return {
        "4XX": {"description": "the request is wrong", "content": content},
        "429": {"description": "too many requests wait; see Retry-After", "content": content},
        "503": {"description": "what would answer is not there; try again", "content": content},
    }


def posted(path: str, summary: str, takes: dict[str, Any], gives: dict[str, Any]) -> dict[str, Any]:
    """An operation with a body: media types it takes, and media types of its answer."""
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": takes},
        "responses": {"200": {"description": "done", "content": gives}, **refusals(path)},
    }


def documented(paths: Iterable[tuple[str, str]], own: Mapping[tuple[str, str], dict[str, Any]]) -> Operations:
    """Every (method, path): as the application says itself, else as all of them answer."""
    found: Operations = {}
    for method, path in paths:
        found.setdefault(path, {})[method.lower()] = own.get((method, path)) or _shared(method, path)
    return found


def _shared(method: str, path: str) -> dict[str, Any]:
    if method == "POST" and path.endswith("/infer"):
        binary = {"application/octet-stream": {"schema": BYTES}}
        return posted(
            path, "Tensors in, tensors out", {**json_of(ref("Infer")), **binary}, {**json_of(ref("Tensors")), **binary}
        )
    for verb, pattern, summary, schema in _ANSWERS:
        if verb == method and re.fullmatch(pattern, path):
            answer = {"description": summary, "content": json_of(schema)}
            return {"summary": summary, "responses": {"200": answer, **refusals(path)}}
    kind = _TEXTS.get(path, "text/html; charset=utf-8")
    page = {"description": "a text", "content": {kind: {"schema": TEXT}}}
    return {"summary": "a text", "responses": {"200": page, **refusals(path)}}
