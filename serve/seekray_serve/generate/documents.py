"""What a generative model takes and gives, for the catalogue, as OpenAPI and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seekray_serve.openapi import WRONG, content, typed_object, whole_document, whole_page

if TYPE_CHECKING:
    from seekray.generator import Generator


def describe(generator: Generator, endpoint: str, example: dict[str, Any]) -> dict[str, Any]:
    """What the catalogue says of a model."""
    return {
        "name": generator.name,
        "version": generator.version,
        "task": generator.task,
        "features": [{"name": feature.name, "kind": feature.kind} for feature in generator.schema.features],
        "classes": None,
        "endpoint": endpoint,
        "example": example,
        # What may be asked for beside the example: columns of a condition, and whether it reads messages.
        "conditions": list(getattr(generator.schema, "conditions", None) or []),
        "chat": getattr(generator.schema, "chat_template", None) is not None,
    }


def document(
    generator: Generator, endpoint: str, example: dict[str, Any], paths: Sequence[tuple[str, str]], prefix: str = ""
) -> dict[str, Any]:
    """The OpenAPI 3.1 document; `paths` are the (method, path) that the application answers."""
    schemas = {"Answer": _TEXTS if "completions" in endpoint else _ROWS}
    documented: dict[str, Any] = {}
    for method, path in paths:
        operation: dict[str, Any] = {"responses": {"200": {"description": "done"}}}
        if (method, path) == ("POST", endpoint):
            operation = {
                "summary": f"Generate with {generator.name}",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _request(generator), "example": example}},
                },
                "responses": {"200": {"description": "what was made", "content": content("Answer")}, **WRONG},
            }
        documented.setdefault(path, {})[method.lower()] = operation
    return whole_document(generator, documented, schemas, prefix)


def page(generator: Generator, endpoint: str, example: dict[str, Any], prefix: str = "") -> bytes:
    """The documentation page: the request to try, and what may be asked for."""
    fields = generator.family.Request.model_fields
    rows = [
        (name, field.description or "", "" if field.is_required() else repr(field.default)) for name, field in fields.items()
    ]
    return whole_page(generator, endpoint, example, ("Request", "name", "what it is", "default"), rows, prefix)


def _request(generator: Generator) -> dict[str, Any]:
    """The family's own request; that of texts is asked for in OpenAI's words, `prompt` instead of `prompts`."""
    return {"type": "object", "properties": {name: {} for name in (*generator.fields, "prompt", "model", "stream")}}


_TEXTS = typed_object({
    "id": {"type": "string"},
    "object": {"type": "string"},
    "model": {"type": "string"},
    "choices": {"type": "array", "items": {"type": "object"}},
    "usage": {"type": "object"},
})  # fmt: skip
_ROWS = typed_object({
    "rows": {"type": "array", "items": {"type": "object"}},
    "model": {"type": "string"},
    "version": {"type": ["string", "null"]},
})  # fmt: skip
