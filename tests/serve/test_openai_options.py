"""What OpenAI's clients may ask for beside a prompt: JSON, echoes, the best of several, biases; by the unchanged package."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict
from small_lm import write_bundle
from tests.serve.test_generation import TEMPLATE, Server

from seekray.generator import Generator
from seekray_serve.generation import load
from seekray_serve.options import Limits


class Wine(BaseModel):
    """An answer of a known shape."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["größer", "漢"]
    dry: bool
    marks: list[Literal[1, 2, 3]]


FORMAT = {"type": "json_schema", "json_schema": {"name": "wine", "schema": Wine.model_json_schema()}}
ASK = [{"role": "user", "content": "als"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("lm"), "", TEMPLATE, context_length=256)


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Server]:
    with Server(load(str(bundle), Limits(), name="chat", version="3")) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_a_chat_answers_in_json(client):
    request: dict[str, Any] = {"model": "chat", "messages": ASK, "max_completion_tokens": 200, "seed": 1}
    parsed = client.chat.completions.parse(**request, response_format=Wine, n=3)
    assert all(isinstance(c.message.parsed, Wine) and c.finish_reason == "stop" for c in parsed.choices)
    whole = client.chat.completions.create(**request, response_format=FORMAT).choices[0].message.content
    parts = [
        e.choices[0].delta.content or "" for e in client.chat.completions.create(**request, response_format=FORMAT, stream=True)
    ]
    assert "".join(parts) == whole
    assert len(parts) > 5
    Wine.model_validate_json(whole)
    shut = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    given = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": shut}}
    text = client.completions.create(model="chat", prompt="a", max_tokens=60, seed=2, extra_body={"response_format": given})
    assert json.loads(text.choices[0].text).keys() == {"a"}


def test_any_object(client):
    bias = {str(ord("}")): 0.0}
    found = client.chat.completions.create(
        model="chat",
        messages=ASK,
        response_format={"type": "json_object"},
        max_tokens=230,
        seed=5,
        temperature=1.5,
        n=8,
        logit_bias=bias,
    )
    done = [c.message.content for c in found.choices if c.finish_reason == "stop"]
    assert done
    assert all(isinstance(json.loads(text), dict) for text in done)
    assert all(c.message.content.startswith("{") for c in found.choices)


def test_async_streams_beside_each_other(served):
    """Held and free texts in one batch, each what it is alone."""

    async def ask(many: openai.AsyncOpenAI, number: int) -> str:
        held: dict[str, Any] = {"response_format": FORMAT} if number % 2 else {}
        stream = await many.chat.completions.create(
            model="chat", messages=ASK, seed=number, max_tokens=120, temperature=0.8, stream=True, **held
        )
        return "".join([e.choices[0].delta.content or "" async for e in stream])

    async def together() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as many:
            texts = await asyncio.gather(*(ask(many, number) for number in range(8)))
            return list(texts), [await ask(many, number) for number in range(8)]

    texts, alone = asyncio.run(together())
    assert texts == alone
    for text in texts[1::2]:
        Wine.model_validate_json(text)


def test_echo(client):
    request: dict[str, Any] = {"model": "chat", "prompt": ["größer", "als"], "max_tokens": 6, "n": 2, "seed": 1}
    plain = client.completions.create(**request)
    echoed = client.completions.create(**request, echo=True)
    prompts = ["größer", "größer", "als", "als"]
    assert [c.text for c in echoed.choices] == [p + c.text for p, c in zip(prompts, plain.choices, strict=True)]
    texts = [""] * 4
    for event in client.completions.create(**request, echo=True, stream=True):
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in echoed.choices]


def test_the_best_of_several(client, bundle):
    request: dict[str, Any] = {"model": "chat", "prompt": ["größer", "als"], "max_tokens": 8, "seed": 3, "temperature": 1.5}
    every = client.completions.create(**request, n=6, logprobs=0)
    best = client.completions.create(**request, n=2, best_of=6)
    wanted = []
    for group in (every.choices[:6], every.choices[6:]):
        ranked = sorted(group, key=lambda c: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs), reverse=True)
        wanted += [c.text for c in ranked[:2]]
    assert [c.text for c in best.choices] == wanted
    assert [c.index for c in best.choices] == [0, 1, 2, 3]
    assert all(c.logprobs is None for c in best.choices)
    assert best.usage.completion_tokens == every.usage.completion_tokens


def test_biases_and_penalties(client, bundle):
    tokenizer = Generator.load(bundle).schema.tokenizer
    request: dict[str, Any] = {"model": "chat", "prompt": "größer", "max_tokens": 20, "temperature": 0}
    free = client.completions.create(**request).choices[0].text
    (first, *_) = tokenizer.encode([free])[0]
    biased = client.completions.create(**request, logit_bias={str(first): -100}).choices[0].text
    assert biased != free
    forced = client.completions.create(**request, logit_bias={str(tokenizer.id_of("a")): 100}).choices[0].text
    assert forced == "a" * 20
    for penalty in ("presence_penalty", "frequency_penalty"):
        held = client.completions.create(**request, **{penalty: 2}, logit_bias={str(tokenizer.id_of("a")): 100}).choices[0].text
        assert held == "a" * 20  # a bias outweighs it
        assert client.chat.completions.create(model="chat", messages=ASK, max_tokens=4, **{penalty: 1}).choices


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": "yes"}, "echo"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "0.5"}, "temperature"),
        ({"prompt": [[True, 3]]}, "prompt"),
        ({"extra_body": {"repetition_penalty": 1e300}}, "repetition_penalty"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"suffix": "end"}, "suffix"),
        ({"extra_body": {"max_completion_tokens": 3}}, "max_completion_tokens"),
        ({"extra_body": {"response_format": {"type": "yaml"}}}, "response_format"),
        ({"extra_body": {"response_format": {"type": "json_schema"}}}, "response_format"),
        (
            {"extra_body": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}}}},
            "response_format",
        ),
    ],
)
def test_what_cannot_be_is_named(client, change, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{"model": "chat", "prompt": "a", "max_tokens": 3, **change})
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "text": "x"}]}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"extra_body": {"echo": True}}, "echo"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, "messages"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "("}}}},
            "response_format",
        ),
    ],
)
def test_what_a_chat_cannot_be_is_named(client, change, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{"model": "chat", "messages": ASK, **change})
    assert raised.value.param == param
