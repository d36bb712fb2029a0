"""OpenAI's interface as OpenAPI: what a model of texts takes and answers. Null is the same as leaving out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seekray_serve.generate.openai_api import MOST_TEXTS, NEUTRAL, PASSED_OVER
from seekray_serve.operations import (
    EVENTS,
    NAME,
    NOTHING,
    OBJECT,
    TEXT,
    WHOLE,
    YES,
    Schema,
    json_of,
    listed,
    or_null,
    posted,
    typed_object,
)

_USAGE = typed_object({"prompt_tokens": WHOLE, "completion_tokens": WHOLE, "total_tokens": WHOLE})
_HEAD = {"id": TEXT, "object": TEXT, "created": WHOLE, "model": TEXT, "version": NAME}
_SOME: Schema = {"type": "string", "minLength": 1}
_SCHEMA = typed_object({"schema": OBJECT})  # its name, which OpenAI asks for, is not read
_FORMAT: Schema = {"anyOf": [
    typed_object({"type": {"enum": ["text", "json_object"]}}),
    typed_object({"type": {"const": "json_schema"}, "json_schema": _SCHEMA}),
]}  # fmt: skip


def operations(
    name: str, vocabulary: int, asked: Mapping[str, Schema], example: dict[str, Any], most: int
) -> dict[tuple[str, str], dict[str, Any]]:
    """The operations of the model `name` with so many tokens; `asked` are the properties of the family's own request.

    most: texts of a request.
    """
    same = (
        "temperature", "top_p", "top_k", "min_p", "min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "truncate", "seed",
    )  # fmt: skip
    ids = listed({"type": "integer", "minimum": 0, "maximum": vocabulary - 1}, minItems=1)
    prompt: Schema = {"anyOf": [TEXT, listed(TEXT, minItems=1, maxItems=most), ids, listed(ids, minItems=1, maxItems=most)]}
    bias = {"type": "number", "minimum": -100, "maximum": 100}
    shared = {key: _plain(asked[key]) for key in same if key in asked} | {
        "model": {"const": name},
        "n": {"type": "integer", "minimum": 1, "maximum": min(most, MOST_TEXTS)},
        "stop": {"anyOf": [_SOME, listed(_SOME)]},
        "logit_bias": {"type": "object", "patternProperties": {"^[0-9]+$": bias}, "additionalProperties": False},
        "response_format": _FORMAT,
        "stream": YES,
        "stream_options": OBJECT,
        **{key: {"enum": [*values]} for key, values in NEUTRAL.items()},
        **{key: {} for key in sorted(PASSED_OVER)},
    }
    least: Schema = {"type": "integer", "minimum": 1}
    likeliest: Schema = {"type": "integer", "minimum": 0, "maximum": 100}
    part = typed_object({"type": {"const": "text"}, "text": TEXT}, ("type",))
    message = typed_object({"role": TEXT, "content": {"anyOf": [TEXT, listed(part)]}})
    texts = shared | {
        "prompt": prompt,
        "echo": YES,
        "best_of": {"type": "integer", "minimum": 1, "maximum": min(most, MOST_TEXTS)},
        "max_tokens": least,
        "logprobs": likeliest,
    }
    chats = shared | {
        "messages": listed(message, minItems=1), "max_tokens": least, "max_completion_tokens": least,
        "logprobs": YES, "top_logprobs": likeliest,
    }  # fmt: skip
    text = typed_object({"index": WHOLE, "text": TEXT, "finish_reason": TEXT, "logprobs": {"type": ["object", "null"]}})
    said = typed_object({"role": TEXT, "content": TEXT, "refusal": NAME})
    chat = typed_object({"index": WHOLE, "message": said, "finish_reason": TEXT, "logprobs": {"type": ["object", "null"]}})
    vector = typed_object({"object": TEXT, "index": WHOLE, "embedding": {"type": ["array", "string"]}})
    input_ = {"input": prompt, "model": {"const": name}, "encoding_format": {"enum": ["float", "base64"]}, "user": {}}
    found = {
        "/v1/completions": (_request(texts, "prompt"), {**_HEAD, "choices": listed(text), "usage": _USAGE}, example),
        "/v1/chat/completions": (_request(chats, "messages"), {**_HEAD, "choices": listed(chat), "usage": _USAGE}, None),
        "/v1/embeddings": (_request(input_, "input"), {"object": TEXT, "data": listed(vector), "usage": OBJECT}, None),
    }
    return {
        ("POST", path): posted(
            path, f"OpenAI's {path}", json_of(takes, shown), json_of(typed_object(gives)) | ({} if "emb" in path else EVENTS)
        )
        for path, (takes, gives, shown) in found.items()
    }


def _request(properties: dict[str, Schema], needed: str) -> Schema:
    takes = {key: schema if key == needed or not schema else or_null(schema) for key, schema in properties.items()}
    return typed_object(takes, properties.keys() - {needed}, additionalProperties=NOTHING)


def _plain(schema: Schema) -> Schema:
    """A family's property as it is asked for, without the title and the default that pydantic writes."""
    return {key: value for key, value in schema.items() if key not in ("title", "default")}
