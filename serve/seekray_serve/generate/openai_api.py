"""OpenAI's requests (completions, chat, embeddings, images) as those of a generator. Knows no Ray."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seekray_serve.http import RequestError

DEFAULT_TOKENS = 16  # of a completion, as OpenAI's
MOST_TEXTS = 128  # of each prompt, as OpenAI's
# What a generator knows by the same name; those that OpenAI does not have are extensions, as in other servers.
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "truncate", "n", "seed",
)  # fmt: skip
# What changes nothing of the answer.
PASSED_OVER = frozenset((
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
))  # fmt: skip
# What is there in OpenAI's interface and not here; these values ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "modalities": (["text"],), "reasoning_effort": (), "audio": (), "prediction": (),
    "verbosity": (), "web_search_options": (),
}  # fmt: skip
_OWN = frozenset((
    "model", "prompt", "messages", "stream", "stream_options", "stop", "logprobs", "max_tokens", "logit_bias",
    "response_format",
))  # fmt: skip
_CHAT_OWN = frozenset(("top_logprobs", "max_completion_tokens"))
_TEXT_OWN = frozenset(("echo", "best_of"))


@dataclass(frozen=True)
class Asked:
    """A request. request: what a generator is asked for, the prompts of a chat being still `messages`.

    usage: of a stream, in a last event. echo: the prompt before its text. kept: of the texts of a prompt, the likeliest so
    many; None: all. logprobs: to be told, which they need not be where they are only to choose by.
    """

    chat: bool
    request: dict[str, Any]
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    stream: bool = False
    usage: bool = False
    echo: bool = False
    kept: int | None = None
    logprobs: bool = False


def read(body: object, name: str, *, chat: bool) -> Asked:
    """A body that was sent to the model `name`. Raises RequestError, which names the parameter."""
    given = _named(body, name)
    _check_names(given, chat)
    request = {key: given[key] for key in _SAME if key in given}
    request.setdefault("seed", secrets.randbits(31))
    n = request.get("n", 1)
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST_TEXTS:
        raise _wrong("n", n, f"expected 1 to {MOST_TEXTS}")
    if "logit_bias" in given:
        request["logit_bias"] = _biases(given["logit_bias"])
    schema = _json_schema(given.get("response_format", {"type": "text"}))
    if schema is not None:
        request["json_schema"] = schema
    if "stop" in given:
        request["stop"] = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    stream, options = given.get("stream", False), given.get("stream_options", {})
    if not isinstance(stream, bool):
        raise _wrong("stream", stream, "expected true or false")
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, "expected an object")
    messages: list[Mapping[str, Any]] = []
    if chat:
        messages = _messages(given.get("messages"))
        limit = given.get("max_completion_tokens", given.get("max_tokens"))
        if limit is not None:
            request["max_tokens"] = limit
        if not isinstance(given.get("logprobs", False), bool):
            raise _wrong("logprobs", given["logprobs"], "expected true or false")
        if given.get("logprobs", False):
            request["logprobs"] = given.get("top_logprobs", 0)
        elif "top_logprobs" in given:
            raise _wrong("top_logprobs", given["top_logprobs"], "expected logprobs to be true with it")
    else:
        request["prompts"] = _prompts(given.get("prompt"))
        request["max_tokens"] = given.get("max_tokens", DEFAULT_TOKENS)
        if "logprobs" in given:
            request["logprobs"] = given["logprobs"]
    told = request.get("logprobs") is not None
    echo, kept = _echo(given, told), _best_of(given, request, stream)
    return Asked(chat, request, messages, stream, stream and bool(options.get("include_usage")), echo, kept, told)


def _echo(given: Mapping[str, Any], logprobs: bool) -> bool:
    echo = given.get("echo", False)
    if not isinstance(echo, bool):
        raise _wrong("echo", echo, "expected true or false")
    if echo and logprobs:
        raise _wrong("echo", echo, "log-probabilities of the prompt are not told: leave logprobs out with it")
    return echo


def _best_of(given: Mapping[str, Any], request: dict[str, Any], stream: bool) -> int | None:
    """Ask for `best_of` texts of each prompt; how many of them are kept."""
    most, n = given.get("best_of"), int(request.get("n", 1))
    if most is None or most == n:
        return None
    if not isinstance(most, int) or isinstance(most, bool) or not n <= most <= MOST_TEXTS:
        raise _wrong("best_of", most, f"expected n ({n}) to {MOST_TEXTS}")
    if stream:
        raise _wrong("best_of", most, "which texts are the best is known at their ends: not with stream")
    request["n"] = most
    request.setdefault("logprobs", 0)
    return n


def _biases(given: object) -> dict[int, float]:
    """`{"token id": bias}`."""
    if not isinstance(given, dict):
        raise _wrong("logit_bias", given, "expected an object of token ids and numbers")
    for token, bias in given.items():
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not (number and -100 <= bias <= 100 and token.isascii() and token.isdigit()):
            raise _wrong("logit_bias", {token: bias}, "expected a token's id and a number from -100 to 100")
    return {int(token): float(bias) for token, bias in given.items()}


def _json_schema(form: object) -> dict[str, Any] | None:
    """The schema of a `response_format`; None for free text."""
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = form.get("json_schema") if isinstance(form, dict) else None
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        expected = "expected {type: text}, {type: json_object} or {type: json_schema, json_schema: {name, schema}}"
        raise _wrong("response_format", form, expected)
    return schema


def read_images(body: object, name: str, conditions: Sequence[str], size: str, most: int) -> dict[str, Any]:
    """A body for `/v1/images/generations` as a request of rows. Raises RequestError, which names the parameter.

    The prompt says the conditions: the value of the only one, `column=value, column=value` of several, or nothing.
    """
    given = _named(body, name)
    for key in given.keys() - {"model", "prompt", "n", "size", "response_format", "seed", "user"}:
        raise RequestError(400, "unsupported_parameter", f"{key!r} is not supported here; leave it out", field=key)
    if given.get("size", "auto") not in ("auto", size):
        raise _wrong("size", given["size"], f"the model makes {size}")
    if given.get("response_format", "b64_json") != "b64_json":
        raise _wrong("response_format", given["response_format"], "expected b64_json: images are not kept for a url")
    rows = given.get("n", 1)
    if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= most:
        raise _wrong("n", rows, f"expected 1 to {most}")
    prompt = given.get("prompt", "")
    if not isinstance(prompt, str):
        raise _wrong("prompt", prompt, "expected a text")
    where: dict[str, str] = {}
    if "=" in prompt:
        pairs = (part.partition("=") for part in prompt.split(","))
        where = {key.strip(): value.strip() for key, _, value in pairs}
    elif prompt.strip() and len(conditions) == 1:
        where = {conditions[0]: prompt.strip()}
    elif prompt.strip():
        told = (
            f"expected column=value of {', '.join(conditions)}" if conditions else "the model has no condition: leave it empty"
        )
        raise _wrong("prompt", prompt, told)
    return {"rows": rows, "seed": given.get("seed", secrets.randbits(31)), "where": where}


def read_embeddings(body: object, name: str, most: int) -> tuple[list[Any], bool]:
    """A body for `/v1/embeddings` as texts or lists of ids, and whether vectors shall be base64. Raises RequestError."""
    given = _named(body, name)
    for key in given.keys() - {"model", "input", "encoding_format", "user"}:
        raise RequestError(400, "unsupported_parameter", f"{key!r} is not supported here; leave it out", field=key)
    form = given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise _wrong("encoding_format", form, "expected float or base64")
    texts = _prompts(given.get("input"), "input")
    if len(texts) > most:
        raise RequestError(400, "bad_input", f"{len(texts)} texts given, at most {most} a request", field="input")
    return texts, form == "base64"


def _named(body: object, name: str) -> dict[str, Any]:
    """A body's parameters that are not null, where it is for the model `name`."""
    if not isinstance(body, dict):
        raise RequestError(400, "bad_input", f"the body is {type(body).__name__}, expected a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    if given.get("model", name) != name:
        raise RequestError(404, "model_not_found", f"there is {name!r} here, not {given['model']!r}", field="model")
    return given


def _check_names(given: Mapping[str, Any], chat: bool) -> None:
    own = (_OWN | _CHAT_OWN) - {"prompt"} if chat else (_OWN | _TEXT_OWN) - {"messages"}
    for key, value in given.items():
        if key in own or key in _SAME or key in PASSED_OVER:
            continue
        if key not in NEUTRAL:
            known = ", ".join(sorted(own | set(_SAME)))
            raise RequestError(400, "unknown_parameter", f"unknown parameter {key!r}; known are {known}", field=key)
        if value not in NEUTRAL[key]:
            raise RequestError(400, "unsupported_parameter", f"{key!r} is not supported here; leave it out", field=key)


def _prompts(prompt: object, name: str = "prompt") -> list[Any]:
    """A text, texts, ids, or lists of ids."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        ids = [isinstance(p, int) and not isinstance(p, bool) for p in prompt]
        if all(ids):
            return [prompt]
        if not any(ids) and all(isinstance(p, str | list) for p in prompt):
            return prompt
    shown = f"no {name}" if prompt is None else type(prompt).__name__
    raise RequestError(400, "bad_input", f"{shown} given, expected a text, texts, token ids or lists of them", field=name)


def _messages(messages: object) -> list[Mapping[str, Any]]:
    """Messages whose content is a text; parts of a text are put together."""
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "bad_input", "no messages given, expected [{role, content}, …]", field="messages")
    found: list[Mapping[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(400, "bad_input", f"{where} has no role; expected {{role, content}}", field="messages")
        content = message.get("content")
        if isinstance(content, list) and all(map(_is_text, content)):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            told = f"{where}: content must be a text or parts {{type: text, text}}"
            raise RequestError(400, "bad_input", told, field="messages")
        found.append({**message, "content": content})
    return found


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text"


def _wrong(name: str, value: object, expected: str) -> RequestError:
    return RequestError(400, "bad_input", f"{name}: {value!r} given, {expected}", field=name)
