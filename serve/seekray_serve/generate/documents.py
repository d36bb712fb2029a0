"""What a generative model takes and gives, for the catalogue, as OpenAPI and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seekray_serve import operations
from seekray_serve.generate import text_docs
from seekray_serve.openapi import whole_document, whole_page
from seekray_serve.operations import ARROW, BYTES, NAME, OBJECT, TEXT, json_of, listed, or_null, posted, typed_object

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
    asked = generator.family.Request.model_json_schema()
    if "completions" in endpoint:
        own = text_docs.operations(generator.name, getattr(generator.schema, "vocab_size", 1), asked["properties"], example)
    else:
        columns = dict.fromkeys(column.name for column in generator.schema.features)
        asked["properties"]["where"] |= {"properties": {name: {} for name in columns}, "additionalProperties": False}
        own = _made(generator.name, asked, example)
    return whole_document(generator, operations.documented(paths, own), {}, prefix)


def page(generator: Generator, endpoint: str, example: dict[str, Any], prefix: str = "") -> bytes:
    """The documentation page: the request to try, and what may be asked for."""
    fields = generator.family.Request.model_fields
    rows = [
        (name, field.description or "", "" if field.is_required() else repr(field.default)) for name, field in fields.items()
    ]
    return whole_page(generator, endpoint, example, ("Request", "name", "what it is", "default"), rows, prefix)


def _made(name: str, asked: dict[str, Any], example: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The operations of a generator of rows or images."""
    rows = typed_object({"rows": listed(OBJECT), "model": TEXT, "version": NAME})
    others: dict[str, Any] = {"text/csv": {"schema": TEXT}, ARROW: {"schema": BYTES}}
    image = typed_object({"created": {"type": "integer"}, "data": listed(typed_object({"b64_json": TEXT}))})
    words = {
        "model": {"const": name},
        "prompt": or_null(TEXT),
        "n": or_null({"type": "integer", "minimum": 1}),
        "size": or_null(TEXT),
        "response_format": or_null({"const": "b64_json"}),
        "seed": or_null({"type": "integer", "minimum": 0}),
        "user": {},
    }
    prompt = typed_object(words, words, additionalProperties=False)
    made, openai = "/v1/generate", "/v1/images/generations"
    return {
        ("POST", made): posted(made, f"Generate with {name}", json_of(asked, example), {**json_of(rows), **others}),
        ("POST", openai): posted(openai, "OpenAI's images", json_of(prompt), json_of(image)),
    }
