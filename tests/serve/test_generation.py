"""A model of texts behind a real socket, asked by the unchanged `openai` package; and one of rows, called in process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import openai
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv
from small_lm import untrained, write_bundle
from tests.serving import Server, call

from seekray.generator import Generator, json_rows
from seekray.verify import door_of, verify
from seekray_serve.front import FrontApp
from seekray_serve.generate.texts import TextApp
from seekray_serve.generation import load
from seekray_serve.lifecycle.doors import generation_doors
from seekray_serve.options import Limits

TEXT = "größer als 漢字 ✓ und 😀 immer. " * 40
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}größer"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("lm"), TEXT, TEMPLATE, context_length=128)


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return Generator.load(bundle)


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Server]:
    with Server(load(str(bundle), Limits(), name="chat", version="3")) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def idle(server: Server) -> int:
    """Wait until no text is being made; the tokens made so far."""
    deadline = time.monotonic() + 10
    while (load := call(f"{server.url}/healthz")[1])["running"]:
        assert time.monotonic() < deadline, load
        time.sleep(0.01)
    return load["tokens"]


def test_a_whole_answer_is_the_generators_own(client, generator):
    request = {"max_tokens": 20, "temperature": 0.8, "seed": 5, "n": 2, "stop": ["✓"], "top_p": 0.9}
    found = client.completions.create(model="chat", prompt=["größer", "immer. "], **request)
    want = generator.generate(["größer", "immer. "], **{**request, "stop": ("✓",)})
    assert [c.text for c in found.choices] == want["text"].to_pylist()
    assert [c.finish_reason for c in found.choices] == want["finish_reason"].to_pylist()
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert (found.object, found.model, found.version) == ("text_completion", "chat", "3")
    prompts = sum(want["prompt_tokens"].to_pylist()[::2])
    assert found.usage.prompt_tokens == prompts
    assert found.usage.completion_tokens == sum(want["tokens"].to_pylist())
    assert found.usage.total_tokens == prompts + found.usage.completion_tokens


@pytest.mark.parametrize("temperature", [0, 2.0])  # the second makes parts of characters too
def test_a_stream_is_the_whole_text_in_whole_characters(client, temperature):
    request = {"model": "chat", "prompt": "größer", "max_tokens": 32, "temperature": temperature, "seed": 7, "n": 2}
    whole = client.completions.create(**request)
    texts, ends, usage, count = ["", ""], [None, None], None, 0
    for event in client.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        count += 1
        for choice in event.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]
        usage = event.usage or usage
    assert texts == [c.text for c in whole.choices]
    assert ends == [c.finish_reason for c in whole.choices]
    assert usage == whole.usage
    assert count > 15
    if temperature == 0:
        assert {"漢", "字", "✓", "😀"} <= set(texts[0])  # each of several tokens
        assert "\ufffd" not in texts[0]


def test_tokens_come_as_they_are_made(bundle):
    """With an engine that waits before each step, the first token is there long before the last."""

    class Slow(TextApp):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            make = self.engine._make

            def slow() -> Any:
                engine = make()
                step = engine.step
                engine.step = lambda: (time.sleep(0.03), step())[1]
                return engine

            self.engine.close()
            self.engine = type(self.engine)(slow, rows=4, max_queued=0)

    with Server(Slow(Generator.load(bundle, name="chat"), Limits())) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        request = {"model": "chat", "prompt": "größer", "temperature": 0, "max_tokens": 60}
        start = time.monotonic()
        times = [time.monotonic() - start for _ in client.completions.create(**request, stream=True)]
        assert times[0] < times[-1] / 3
        assert len(times) > 20
        # Four rows are taken and none may wait: the fifth is told to come back.
        open_streams = [client.completions.create(**request, stream=True) for _ in range(4)]
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**request)
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.body["type"] == "rate_limit_error"
        assert call(f"{server.url}/healthz")[1]["blocks_used"] > 0
        for stream in open_streams:  # hang up: the rows and blocks are free, and nothing more is made
            stream.close()
        made, steps = idle(server), call(f"{server.url}/healthz")[1]["steps"]
        time.sleep(0.2)
        later = call(f"{server.url}/healthz")[1]
        assert later["tokens"] == made < 4 * 60 + 64
        assert (later["blocks_used"], later["steps"] - steps < 2) == (0, True)
        assert client.completions.create(**request).choices[0].text


def test_a_client_that_waits_for_the_whole_may_hang_up_too(served):
    before = idle(served)
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "größer", "max_tokens": 120, "n": 64, "seed": 1}).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        deadline = time.monotonic() + 10
        while not call(f"{served.url}/healthz")[1]["running"]:
            assert time.monotonic() < deadline
    assert idle(served) - before < 64 * 60


def test_many_at_once_are_each_as_if_alone(client, generator):
    requests = [
        {"prompt": TEXT[i : i + 1 + i % 9], "max_tokens": 5 + i % 30, "seed": i, "temperature": i % 2 * 0.9} for i in range(40)
    ]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda r: client.completions.create(model="chat", **r).choices[0].text, requests))
    for request, text in zip(requests, found, strict=True):
        given = dict(request)
        assert generator.generate(given.pop("prompt"), **given)["text"].to_pylist() == [text]


def test_logprobs(client, generator):
    request = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
    found = client.completions.create(model="chat", prompt="größer", **request).choices[0].logprobs
    want = generator.generate("größer", **request)
    assert found.token_logprobs == pytest.approx(want["logprobs"].to_pylist()[0])
    assert [max(top.values()) for top in found.top_logprobs] == pytest.approx(found.token_logprobs)
    assert len(found.tokens) == len(found.text_offset) == 6
    streamed = client.completions.create(model="chat", prompt="größer", **request, stream=True)
    parts = [e.choices[0].logprobs for e in streamed if e.choices[0].logprobs]
    assert [v for p in parts for v in p.token_logprobs] == pytest.approx(found.token_logprobs)


def test_chat_reads_the_template(client, generator):
    messages = [{"role": "user", "content": "als"}]
    request = {"model": "chat", "messages": messages, "temperature": 0, "max_completion_tokens": 12}
    found = client.chat.completions.create(**request, logprobs=True, top_logprobs=1)
    ids = generator.schema.encode_chat(messages)
    want = generator.generate([ids], max_tokens=12, temperature=0)
    assert found.choices[0].message.content == want["text"].to_pylist()[0]
    assert found.choices[0].message.role == "assistant"
    assert found.usage.prompt_tokens == len(ids)
    assert len(found.choices[0].logprobs.content) == 12
    deltas = [e.choices[0].delta for e in client.chat.completions.create(**request, stream=True)]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == found.choices[0].message.content


def test_embeddings(client, generator):
    given = ["größer als", "漢字 ✓", "größer als"]
    found = client.embeddings.create(model="chat", input=given)  # the package asks for base64 and unpacks it
    plain = client.embeddings.create(model="chat", input=given, encoding_format="float")
    vectors = numpy.array([d.embedding for d in found.data], "f4")
    assert (vectors == numpy.array([d.embedding for d in plain.data], "f4")).all()
    assert numpy.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors[0] == vectors[2]).all()
    assert abs(vectors[0] - vectors[1]).max() > 0.01
    ids = generator.schema.encode_texts(given[:1])[0]
    assert (numpy.array(client.embeddings.create(model="chat", input=ids).data[0].embedding, "f4") == vectors[0]).all()
    assert found.usage.prompt_tokens == sum(map(len, generator.schema.encode_texts(given)))
    for wrong in ([], [9999], "x" * 500):
        with pytest.raises(openai.BadRequestError) as raised:
            client.embeddings.create(model="chat", input=wrong)
        assert raised.value.param == "input"


def test_async_clients_share_the_engine(served, client):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as many:

            async def one(seed: int) -> str:
                stream = await many.completions.create(model="chat", prompt="als", max_tokens=10, seed=seed, stream=True)
                return "".join([e.choices[0].text async for e in stream])

            return await asyncio.gather(*(one(seed) for seed in range(8)))

    want = [client.completions.create(model="chat", prompt="als", max_tokens=10, seed=s).choices[0].text for s in range(8)]
    assert asyncio.run(ask()) == want


def test_without_a_seed_each_answer_is_another(client):
    texts = {
        client.completions.create(model="chat", prompt="a", temperature=2, max_tokens=20).choices[0].text for _ in range(4)
    }
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 0}, 400, "n"),
        ({"n": 1000}, 400, "n"),
        ({"stop": [""]}, 400, "request"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [999]}, 400, "prompt"),
        ({"prompt": "x" * 500}, 400, "prompt"),
        ({"prompt": "x" * 500, "stream": True}, 400, "prompt"),
        ({"prompt": {"a": 1}}, 400, "prompt"),
        ({"echo": 3}, 400, "echo"),
        ({"suffix": "b"}, 400, "suffix"),
        ({"extra_body": {"colour": "red"}}, 400, "colour"),
    ],
)
def test_errors_are_openais_own(client, change, status, param):
    with pytest.raises(openai.APIStatusError) as raised:
        client.completions.create(**{"model": "chat", "prompt": "a", "max_tokens": 3, **change})
    error = raised.value
    assert (error.status_code, error.param, error.type) == (status, param, "invalid_request_error")
    assert error.code
    assert error.body.keys() == {"message", "type", "param", "code"}


def test_a_model_without_a_template_says_so(tmp_path):
    with Server(load(str(write_bundle(tmp_path)), Limits(), name="plain", version=None)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        with pytest.raises(openai.BadRequestError, match="no chat template") as raised:
            client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "hi"}])
        assert raised.value.code == "no_chat_template"
        assert [m.id for m in client.models.list()] == ["plain"]
        assert client.models.retrieve("plain").id == "plain"


def test_a_step_that_breaks_ends_its_requests_and_not_the_engine(bundle):
    app = load(str(bundle), Limits(), name="chat", version=None)
    make, broken = app.engine._make, threading.Event()

    def breaking() -> Any:
        engine = make()
        step = engine.step

        def once() -> Any:
            if broken.is_set():
                broken.clear()
                raise RuntimeError("a bug")
            return step()

        engine.step = once
        return engine

    app.engine.close()
    app.engine = type(app.engine)(breaking, rows=4)
    with Server(app) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="chat", prompt="a", max_tokens=100, stream=True, temperature=0)
        next(stream)
        broken.set()
        with pytest.raises(openai.APIError, match="server failed"):
            list(stream)
        assert client.completions.create(model="chat", prompt="a", max_tokens=3).usage.completion_tokens == 3
        assert idle(server) > 0


def test_the_page_and_the_document_tell_what_works(served):
    _, about = call(f"{served.url}/v1/model")
    assert (about["name"], about["version"], about["endpoint"]) == ("chat", "3", "/v1/completions")
    assert call(served.url + about["endpoint"], about["example"])[0] == 200
    document = call(f"{served.url}/openapi.json")[1]
    assert (
        about["example"]
        == document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["example"]
    )
    page = call(f"{served.url}/docs")[1].decode()
    assert "temperature" in page
    assert "{{" not in page


@pytest.fixture(scope="module")
def rows_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Generator]]:
    raw = {
        "name": "flowers",
        "family": "gen",
        "task": "rows",
        "data": {"source": "sample:wine"},
        "model": {"condition": "label", "hidden_size": 16},
    }
    bundle = untrained(tmp_path_factory.mktemp("gen"), raw)
    with Server(load(str(bundle), Limits(max_rows=500), name="flowers", version="2")) as server:
        yield server, Generator.load(bundle)


def test_rows_as_json_csv_and_arrow(rows_served):
    server, generator = rows_served
    url = f"{server.url}/v1/generate"
    label = generator.generate(rows=1)["label"].to_pylist()[0]
    request = {"rows": 5, "seed": 3, "where": {"label": label}}
    want = generator.generate(**request)
    assert call(url, request) == (200, {"rows": json_rows(want), "model": "flowers", "version": "2"})
    assert set(want["label"].to_pylist()) == {label}
    text = call(url, request, headers={"accept": "text/csv"})[1]
    assert csv.read_csv(io.BytesIO(text)).to_pydict() == want.to_pydict()
    stream = call(url, request, headers={"accept": "application/vnd.apache.arrow.stream"})[1]
    assert pa.ipc.open_stream(stream).read_all().equals(want)


def test_verify_finds_an_endpoint_that_differs(rows_served, served, generator):
    for url, name, made in ((rows_served[0].url, "flowers", rows_served[1]), (served.url, "chat", generator)):
        doors = {"python": door_of(made), **generation_doors(url, name)}
        assert len(doors) == 3
        found = verify(doors, made.sample["requests"])
        assert found["passed"], found
        wrong = {
            **doors,
            "python": lambda requests, made=made: door_of(made)(
                [{**r, "seed": 9, **({"temperature": 9.0} if "prompts" in r else {})} for r in requests]
            ),
        }
        assert [door["passed"] for door in verify(wrong, made.sample["requests"])["doors"]] == [True, False, False]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": 501}, "rows"),
        ({"where": {"colour": 1}}, "where"),
        ({"colour": 1}, "colour"),
        ([], None),
    ],
)
def test_wrong_requests_for_rows(rows_served, body, field):
    status, answer = call(f"{rows_served[0].url}/v1/generate", body)
    assert (status, answer["error"]["field"]) == (400, field)
    assert answer["error"].keys() == {"code", "message", "field"}


def test_the_example_of_rows_works(rows_served):
    url = rows_served[0].url
    about = call(f"{url}/v1/model")[1]
    assert len(call(url + about["endpoint"], about["example"])[1]["rows"]) == about["example"]["rows"]
    assert call(f"{url}/healthz")[1]["queued"] == 0
    assert call(f"{url}/openapi.json")[1]["paths"]["/v1/generate"]["post"]["requestBody"]


def test_images_by_openais_client(tmp_path):
    for side, columns in (("left", slice(0, 4)), ("right", slice(4, 8))):
        (tmp_path / "sides" / side).mkdir(parents=True)
        for number in range(12):
            pixels = numpy.zeros((8, 8), numpy.uint8)
            pixels[:, columns] = 200 + number
            Image.fromarray(pixels).save(tmp_path / "sides" / side / f"{number}.png")
    raw = {
        "name": "sides",
        "family": "gen",
        "task": "images",
        "data": {
            "source": str(tmp_path / "sides"),
            "features": {"image": {"kind": "image", "size": [8, 8], "channels": 1}, "label": {"kind": "categorical"}},
        },
        "model": {"condition": "label", "hidden_size": 8},
    }
    bundle = untrained(tmp_path, raw)
    with Server(load(str(bundle), Limits(), name="sides", version="1")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        request = {"model": "sides", "n": 2, "extra_body": {"seed": 4}}
        found = client.images.generate(prompt="left", size="8x8", **request)
        want = Generator.load(bundle).generate(rows=2, seed=4, where={"label": "left"})["image"].to_pylist()
        assert [base64.b64decode(image.b64_json) for image in found.data] == want
        assert Image.open(io.BytesIO(want[0])).size == (8, 8)
        assert client.images.generate(prompt="label=left", **request).data == found.data
        for change, param in (
            ({"prompt": "up"}, "prompt"),
            ({"size": "1024x1024"}, "size"),
            ({"response_format": "url"}, "response_format"),
        ):
            with pytest.raises(openai.BadRequestError) as raised:
                client.images.generate(**{"prompt": "left", **request, **change})
            assert raised.value.param == param


def test_a_stream_that_breaks_behind_the_front_door_is_told_in_an_event():
    about = json.dumps({"name": "chat", "version": "1"}).encode()
    event = b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'

    def handle(connection: socket.socket) -> None:
        with connection:
            path = connection.recv(65536).split()[1]
            body = {b"/-/routes": b'{"/chat": "chat"}', b"/chat/v1/model": about}.get(path)
            if body is not None:
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            else:  # a whole event and a part of one, and then it dies
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                part = event + event[:20]
                connection.sendall(head + b"%x\r\n%s\r\n" % (len(part), part))
                time.sleep(0.3)  # the event is read before the connection breaks

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                handle(listener.accept()[0])

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    with Server(FrontApp(f"http://127.0.0.1:{listener.getsockname()[1]}")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="chat", prompt="a", stream=True)
        assert next(stream).choices[0].text == "a"
        with pytest.raises(openai.APIError, match="the replica that made this answer has ended"):
            next(stream)
        for model in ("beer", None):
            with pytest.raises(openai.APIStatusError) as refused:
                client.completions.create(model=model, prompt="a")
            assert refused.value.param == "model"
    listener.close()
