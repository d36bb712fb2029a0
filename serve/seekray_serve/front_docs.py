"""The front door as OpenAPI: its own paths, and those that it passes on, whose bodies the models' own documents describe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from seekray_serve import operations
from seekray_serve.http import OPENAI_PATHS
from seekray_serve.operations import ARROW, BYTES, EVENTS, OBJECT, TEXT, json_of, posted, ref, typed_object

_NAMED = typed_object({"model": TEXT}, description="what the model's own document says, and its name")
_PASSED_ON = ("predict", "stream", "generate")


def document(paths: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The OpenAPI 3.1 document; `paths` are the (method, path) of the front door itself."""
    own = {("POST", path): posted(path, f"OpenAI's {path}", json_of(_NAMED), json_of(OBJECT) | EVENTS) for path in OPENAI_PATHS}
    found = operations.documented(paths, own)
    table: dict[str, Any] = {ARROW: {"schema": BYTES}, "text/csv": {"schema": TEXT}}
    for verb in _PASSED_ON:
        path = f"/v1/models/{{model}}/{verb}"
        found[path] = _with_name(posted(path, f"The model's own {verb}", json_of(OBJECT), json_of(OBJECT) | table), "post")
    described = {"200": {"description": "the model", "content": json_of(ref("Listed"))}, **operations.refusals("/v1")}
    found["/v1/models/{model}"] = _with_name({"summary": "A model", "responses": described}, "get")
    passed = operations.documented(
        [("GET", "/v2/models/{model}"), ("GET", "/v2/models/{model}/ready"), ("POST", "/v2/models/{model}/infer")], {}
    )
    found |= {path: {"parameters": [_name()], **methods} for path, methods in passed.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "seekray", "version": "1"},
        "servers": [{"url": "/"}],
        "paths": found,
        "components": {"schemas": dict(operations.SCHEMAS)},
    }


def _name() -> dict[str, Any]:
    return {"name": "model", "in": "path", "required": True, "schema": TEXT}


def _with_name(operation: dict[str, Any], method: str) -> dict[str, Any]:
    return {"parameters": [_name()], method: operation}
