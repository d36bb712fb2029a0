"""Generators, and files as rows, behind real Serve and HAProxy: asked with the clients that users have."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import subprocess
from typing import Literal

import numpy
import openai
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv
from pydantic import BaseModel, ConfigDict
from small_lm import untrained, write_bundle
from tests.serving import call, free_port
from training_kit import bundle_of

from seekray.generator import Generator, json_rows
from seekray.predictor import Predictor
from seekray.settings import read_settings
from seekray_serve.lifecycle import deploy
from seekray_serve.lifecycle.ready import ModelToServe

pytest.importorskip("ray.serve")
pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.slow]

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A generator of rows, one of images, one that chats, and a net that reads images; their bundles and the address."""
    folder = tmp_path_factory.mktemp("models")
    for side, columns in (("left", slice(0, 4)), ("right", slice(4, 8))):
        (folder / "pictures" / side).mkdir(parents=True)
        for number in range(12):
            pixels = numpy.zeros((8, 8), numpy.uint8)
            pixels[:, columns] = 200 + number
            Image.fromarray(pixels).save(folder / "pictures" / side / f"{number}.png")
    image = {"kind": "image", "size": [8, 8], "channels": 1}
    wine = {"source": "sample:wine"}
    sides = {"source": str(folder / "pictures"), "features": {"image": image, "label": {"kind": "categorical"}}}
    (folder / "bundles").mkdir()
    raws = {
        "flowers": {"family": "gen", "task": "rows", "data": wine, "model": {"condition": "label", "hidden_size": 16}},
        "sides": {"family": "gen", "task": "images", "data": sides, "model": {"condition": "label", "hidden_size": 8}},
    }
    bundles = {name: untrained(folder / "bundles" / name, {"name": name, **raw}) for name, raw in raws.items()}
    net = {
        "name": "which", "family": "net", "task": "classification", "model": {"hidden_size": [8]}, "training": {"epochs": 1},
        "data": {**sides, "features": {"image": image}, "target": "label"},
    }  # fmt: skip
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bundles["talk"] = write_bundle(folder / "bundles/talk", "", template, context_length=256)
    bundles["which"] = bundle_of(net, folder / "train")
    settings = read_settings({"SEEKRAY_HOME": str(folder / "home")})
    result = deploy.up([ModelToServe(name, "1", bundle) for name, bundle in bundles.items()], settings, port=free_port())
    yield result["url"], bundles
    deploy.down(settings)


@pytest.mark.parametrize("path", ["/flowers/v1/generate", "/v1/models/flowers/generate"])
def test_rows_with_a_condition_and_a_seed_in_each_form(served, path):
    url, bundles = served
    generator = Generator.load(bundles["flowers"])
    label = generator.generate(rows=1)["label"].to_pylist()[0]
    request = {"rows": 600, "seed": 3, "where": {"label": label}}
    want = generator.generate(**request)
    assert call(url + path, request) == (200, {"rows": json_rows(want), "model": "flowers", "version": "1"})
    text = call(url + path, request, headers={"accept": "text/csv"})[1]
    assert csv.read_csv(io.BytesIO(text)).to_pydict() == want.to_pydict()
    stream = call(url + path, request, headers={"accept": ARROW})[1]
    assert pa.ipc.open_stream(stream).read_all().equals(want)
    later = call(url + path, {**request, "rows": 100, "first": 500})[1]["rows"]
    assert later == json_rows(want.slice(500))
    other = call(url + path, {**request, "seed": 4})[1]["rows"]
    assert other != json_rows(want)
    status, answer = call(url + path, {"rows": 1, "where": {"label": "no such"}})
    assert (status, answer["error"]["field"]) == (400, "label")


@pytest.mark.parametrize("prefix", ["", "/sides"])
def test_images_by_openais_client(served, prefix):
    url, bundles = served
    client = openai.OpenAI(base_url=f"{url}{prefix}/v1", api_key="none", max_retries=0)
    found = client.images.generate(model="sides", prompt="left", n=3, extra_body={"seed": 4})
    want = Generator.load(bundles["sides"]).generate(rows=3, seed=4, where={"label": "left"})["image"].to_pylist()
    assert [base64.b64decode(image.b64_json) for image in found.data] == want
    with pytest.raises(openai.BadRequestError):
        client.images.generate(model="sides", prompt="up")


class Wine(BaseModel):
    """What an answer has to be."""

    model_config = ConfigDict(extra="forbid")
    dry: bool
    marks: list[Literal[1, 2]]


@pytest.mark.parametrize("prefix", ["", "/talk"])
def test_a_chat_by_openais_client(served, prefix):
    url, bundles = served
    generator = Generator.load(bundles["talk"])
    client = openai.OpenAI(base_url=f"{url}{prefix}/v1", api_key="none", max_retries=0)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "größer?"}]}]
    request = {"model": "talk", "messages": messages, "seed": 4, "max_completion_tokens": 40}
    whole = client.chat.completions.create(**request, n=2)
    ids = generator.schema.encode_chat([messages[0], {"role": "user", "content": "größer?"}])
    want = generator.generate([ids], max_tokens=40, seed=4, n=2)
    assert [c.message.content for c in whole.choices] == want["text"].to_pylist()
    assert whole.usage.prompt_tokens == len(ids)
    events = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.delta.content or "" for e in events for c in e.choices) == whole.choices[0].message.content
    assert events[-1].usage.completion_tokens == want["tokens"].to_pylist()[0]
    parsed = client.chat.completions.parse(**request | {"max_completion_tokens": 200}, response_format=Wine)
    assert isinstance(parsed.choices[0].message.parsed, Wine)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**request, tools=[{"type": "function", "function": {"name": "f"}}])
    assert (raised.value.param, raised.value.type) == ("tools", "invalid_request_error")

    async def many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}{prefix}/v1", api_key="none", max_retries=0) as asker:

            async def one() -> str:
                stream = await asker.chat.completions.create(**request, stream=True)
                return "".join([c.delta.content or "" async for e in stream for c in e.choices])

            return list(await asyncio.gather(*(one() for _ in range(6))))

    assert set(asyncio.run(many())) == {whole.choices[0].message.content}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("path", ["/which/v1/predict", "/v1/models/which/predict"])
def test_images_as_files_by_curl(served, path, tmp_path):
    url, bundles = served
    predictor = Predictor.load(bundles["which"])
    files = [base64.b64decode(row["image"]) for row in predictor.sample[:2]]
    want = predictor.predict({"image": files}).predictions
    for number, data in enumerate(files):
        (tmp_path / f"{number}.png").write_bytes(data)
    form = [part for number in range(2) for part in ("-F", f"image=@{tmp_path}/{number}.png")]
    single = ["--data-binary", f"@{tmp_path}/0.png", "-H", "Content-Type: image/png"]
    for arguments, expected in ((form, want), (single, want[:1])):
        done = subprocess.run(["curl", "-s", *arguments, url + path], capture_output=True, check=True, timeout=30)
        assert json.loads(done.stdout)["predictions"] == expected
