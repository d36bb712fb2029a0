"""What a generative model takes and gives, for the catalogue, as OpenAPI and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from seekray_serve import operations
from seekray_serve.generate import text_docs
from seekray_serve.openapi import whole_document, whole_page
from seekray_serve.operations import ARROW, BYTES, NAME, NOTHING, OBJECT, TEXT, json_of, listed, posted, typed_object

if TYPE_CHECKING:
    from seekray.generator import Generator

IMAGES = "/v1/images/generations"


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
    generator: Generator,
    endpoint: str,
    example: dict[str, Any],
    paths: Sequence[tuple[str, str]],
    most: int,
    prefix: str = "",
) -> dict[str, Any]:
    """The OpenAPI 3.1 document; `paths` are the (method, path) that the application answers.

    most: rows or texts of a request.
    """
    asked, schema = generator.family.Request.model_json_schema(), cast("Any", generator.schema)
    if "completions" in endpoint:
        own = text_docs.operations(
            generator.name, getattr(generator.schema, "vocab_size", 1), asked["properties"], example, most
        )
    else:
        columns = dict.fromkeys(column.name for column in generator.schema.features)
        asked["properties"]["where"] |= {"properties": {name: {} for name in columns}, "additionalProperties": False}
        asked["properties"]["rows"]["maximum"] = most
        own = {("POST", endpoint): _rows(endpoint, generator.name, asked, example)}
        if generator.task == "images":
            high, wide = schema.subject.state["size"]
            own["POST", IMAGES] = _images(generator.name, f"{wide}x{high}", most)
    return whole_document(generator, operations.documented(paths, own), {}, prefix)


def page(generator: Generator, endpoint: str, example: dict[str, Any], prefix: str = "") -> bytes:
    """The documentation page: the request to try, and what may be asked for."""
    fields = generator.family.Request.model_fields
    rows = [
        (name, field.description or "", "" if field.is_required() else repr(field.default)) for name, field in fields.items()
    ]
    return whole_page(generator, endpoint, example, ("Request", "name", "what it is", "default"), rows, prefix)


def _rows(path: str, name: str, asked: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """Rows by our own interface."""
    rows = typed_object({"rows": listed(OBJECT), "model": TEXT, "version": NAME})
    others: dict[str, Any] = {"text/csv": {"schema": TEXT}, ARROW: {"schema": BYTES}}
    return posted(path, f"Generate with {name}", json_of(asked, example), {**json_of(rows), **others})


def _images(name: str, size: str, most: int) -> dict[str, Any]:
    """Images by OpenAI's. Null is the same as leaving out."""
    takes = {
        "model": {"enum": [name, None]},
        "prompt": NAME,
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": most},
        "size": {"enum": ["auto", size, None]},
        "response_format": {"enum": ["b64_json", None]},
        "seed": {"type": ["integer", "null"], "minimum": 0},
        "user": {},
    }
    data = listed(typed_object({"b64_json": TEXT}))
    gives = typed_object({"created": {"type": "integer"}, "data": data, "model": TEXT, "version": NAME})
    return posted(IMAGES, "OpenAI's images", json_of(typed_object(takes, takes, additionalProperties=NOTHING)), json_of(gives))
