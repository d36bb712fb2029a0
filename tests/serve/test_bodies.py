"""Rows that come as forms, files and Arrow streams, against the same rows as JSON."""

from __future__ import annotations

import base64
import gzip
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from PIL import Image

from seekray.data.options import Data
from seekray.data.tables.fitting import fit
from seekray.models import get_family
from seekray.predictor import Predictor
from seekray_serve.predict.packed import unpacked_size

ARROW = "application/vnd.apache.arrow.stream"


def untrained(family: str, table: pa.Table, features: dict[str, Any], **model: Any) -> Predictor:
    """A classifier of `y` in memory, with random weights."""
    torch.manual_seed(0)
    data = Data.model_validate({"source": "-", "target": "y", "features": features})
    schema = fit(table, data, "classification")
    made = get_family(family)
    config = made.Config.model_validate(model)
    info = {"name": "wine", "family": family, "model": config.model_dump()}
    return Predictor(made.build(config, schema), schema, info, {}, version="3")


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def sound(hertz: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * hertz * np.arange(4000) / 8000), 8000, format="WAV")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures() -> Predictor:
    """A net over an image, a number, a flag and a category."""
    table = pa.table({
        "image": [picture(i) for i in range(8)], "size": [float(i) for i in range(8)], "wet": [True, False] * 4,
        "colour": ["red", "green"] * 4, "y": ["a", "b"] * 4,
    })  # fmt: skip
    features = {"image": {"kind": "image", "size": [8, 8], "channels": 1}, "wet": {"kind": "boolean"}}
    return untrained("net", table, {**features, "size": {}, "colour": {}}, hidden_size=[8])


@pytest.fixture(scope="module")
def sounds() -> Predictor:
    """A recurrent network over the frames of a sound."""
    table = pa.table({"clip": [sound(200 + 50 * i) for i in range(8)], "y": ["low", "high"] * 4})
    options = {"kind": "audio_frames", "sample_rate": 8000, "mels": 8}
    return untrained("rec", table, {"clip": options}, hidden_size=8)


def form(*parts: tuple[str, bytes | str, str | None]) -> tuple[bytes, dict[str, str]]:
    """A body as browsers and curl write it: (name, content, file name)."""
    body = b"preamble\r\n"
    for name, content, file in parts:
        about = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        kind = "\r\nContent-Type: application/octet-stream" if file else ""
        body += f"--AaB03x\r\n{about}{kind}\r\n\r\n".encode()
        body += (content.encode() if isinstance(content, str) else content) + b"\r\n"
    return body + b"--AaB03x--\r\n", {"content-type": 'multipart/form-data; boundary="AaB03x"'}


ROWS = [
    {"image": base64.b64encode(picture(20)).decode(), "size": 1.5, "wet": True, "colour": "red"},
    {"image": base64.b64encode(picture(21)).decode(), "size": None, "wet": False, "colour": "7"},
]
PARTS = [
    ("image", picture(20), "a.png"), ("size", "1.5", None), ("wet", "true", None), ("colour", "red", None),
    ("image", picture(21), "b, \\\".png"), ("size", "", None), ("wet", "false", None), ("colour", "7", None),
]  # fmt: skip


def test_a_form_of_files_and_values_is_its_rows(pictures, serve_app):
    async def scenario(call):
        body, headers = form(*PARTS)
        return await call("POST", "/v1/predict", {"rows": ROWS}), await call("POST", "/v1/predict", body, headers, chunk=50)

    plain, files = serve_app(pictures, scenario)
    assert (plain.status, files.status) == (200, 200), files.body
    assert files.json() == plain.json()
    assert len(files.json()["predictions"]) == 2


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        (PARTS[:7], "colour"),
        (PARTS[1:4], "image"),
        ([*PARTS, ("odd", "1", None)], "odd"),
        ([("image", b"nothing", "a.png"), *PARTS[1:4]], "image"),
        ([PARTS[0], ("size", "large", None), *PARTS[2:4]], "size"),
        ([*PARTS[:3], ("colour", b"\xff", None)], "colour"),
        ([], "body"),
    ],
)
def test_a_wrong_form_names_its_part(pictures, serve_app, parts, field):
    async def scenario(call):
        return await call("POST", "/v1/predict", *form(*parts))

    answer = serve_app(pictures, scenario)
    assert (answer.status, answer.error["code"], answer.error["field"]) == (400, "bad_data", field)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda b: b[:-8], "multipart/form-data; boundary=AaB03x"),
        (lambda b: b, "multipart/form-data"),
        (lambda b: b, "multipart/form-data; boundary=other"),
        (lambda b: b"", "multipart/form-data; boundary=AaB03x"),
        (lambda b: b.replace(b'name="image"', b"x"), "multipart/form-data; boundary=AaB03x"),
    ],
)
def test_a_torn_form_is_400(pictures, serve_app, change, kind):
    async def scenario(call):
        return await call("POST", "/v1/predict", change(form(*PARTS)[0]), {"content-type": kind})

    assert serve_app(pictures, scenario).status == 400


def test_a_sound_as_base64_as_a_form_and_as_the_body_itself(sounds, serve_app):
    wav = sound(440)

    async def scenario(call):
        text = base64.b64encode(wav).decode()
        return [
            await call("POST", "/v1/predict", {"rows": [{"clip": text}]}),
            await call("POST", "/v1/predict", *form(("clip", wav, "a.wav"))),
            await call("POST", "/v1/predict", wav, {"content-type": "audio/wav"}),
            await call("POST", "/v1/predict", wav, {"content-type": "image/png"}),
            await call("POST", "/v1/predict", b"no sound", {"content-type": "audio/wav"}),
        ]

    plain, files, whole, other, broken = serve_app(sounds, scenario)
    assert plain.status == files.status == whole.status == 200
    assert plain.json() == files.json() == whole.json()
    assert (other.status, other.error["field"]) == (415, "content-type")
    assert "audio/…" in other.error["message"]
    assert (broken.status, broken.error["field"]) == (400, "clip")


def stream(table: pa.Table, compression: str | None = None, chunk: int | None = None) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return buffer.getvalue()


COLUMNS = {"alcohol": [10 + i * 0.37 for i in range(50)], "ash": [None, 1.5] * 25, "colour": ["red", None] * 25}


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_an_arrow_stream_answers_what_json_answers(predictor, serve_app, compression):
    table = pa.table(COLUMNS).append_column("id", pa.array(range(50))).select(["colour", "id", "ash", "alcohol"])

    async def scenario(call):
        plain = await call("POST", "/v1/predict", {"columns": COLUMNS})
        body = stream(table, compression, chunk=20)
        arrow = await call("POST", "/v1/predict", body, {"content-type": ARROW})
        packed = gzip.compress(body)
        mixed = await call(
            "POST", "/v1/predict", packed, {"content-type": ARROW, "accept": "application/json", "content-encoding": "gzip"}
        )
        other = await call("POST", "/v1/predict", {"columns": COLUMNS}, {"accept": ARROW})
        return plain, arrow, mixed, other

    plain, arrow, mixed, other = serve_app(predictor, scenario, max_batch_rows=8)
    assert mixed.json() == plain.json()
    assert max(predictor.batches) <= 8 or predictor.batches[0] == 50
    for answer in (arrow, other):
        assert (answer.headers["content-type"], answer.headers["seekray-version"]) == (ARROW, "3")
        found = pa.ipc.open_stream(answer.body).read_all()
        assert found.column_names == ["prediction", "probability_a", "probability_b", "probability_c"]
        assert found["prediction"].to_pylist() == plain.json()["predictions"]
        assert found["probability_b"].to_pylist() == [row["b"] for row in plain.json()["probabilities"]]


def test_a_hundred_thousand_rows_in_one_call_and_others_go_between(predictor, serve_app):
    rows = 100_000
    numbers = np.random.default_rng(0).normal(12, 2, rows)
    table = pa.table({"alcohol": numbers, "ash": numbers / 5, "colour": ["red"] * rows})

    async def scenario(call):
        import asyncio

        many = asyncio.ensure_future(call("POST", "/v1/predict", stream(table), {"content-type": ARROW}))
        while not predictor.batches:
            await asyncio.sleep(0.001)
        one = await call("POST", "/v1/predict", {"rows": [{"alcohol": 12.0, "ash": 2.0, "colour": "red"}]})
        assert not many.done()
        return one, await many

    one, many = serve_app(predictor, scenario)
    assert one.status == 200
    found = pa.ipc.open_stream(many.body).read_all()
    assert len(found) == rows
    columns = [table[name].slice(rows - 3) for name in ("alcohol", "ash", "colour")]
    last = predictor.decode(
        predictor.forward(
            predictor.prepare(dict(zip(("alcohol", "ash", "colour"), map(pa.ChunkedArray.to_pylist, columns), strict=True)))
        )
    )
    assert found["prediction"].to_pylist()[-3:] == last.predictions


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 400, "bad_arrow", None),
        (b"nothing at all", 400, "bad_arrow", None),
        (stream(pa.table(COLUMNS))[:-200], 400, "bad_arrow", None),
        (stream(pa.table(COLUMNS).drop(["ash"])), 400, "bad_data", "ash"),
        (stream(pa.table(COLUMNS).append_column("odd", pa.array(range(50)))), 400, "bad_data", "odd"),
        (stream(pa.table(COLUMNS).slice(0, 0)), 400, "bad_data", "rows"),
        (stream(pa.concat_tables([pa.table(COLUMNS)] * 3)), 413, "too_large", "rows"),
        (stream(pa.table({**COLUMNS, "colour": [None] * 49 + ["x" * 30_000]}), "zstd"), 413, "too_large", None),
        (stream(pa.table({**COLUMNS, "colour": ["poison"] * 50})), 400, "bad_data", "colour"),
    ],
)
def test_bad_streams_say_what_is_wrong(predictor, serve_app, body, status, code, field):
    async def scenario(call):
        return await call("POST", "/v1/predict", body, {"content-type": ARROW})

    answer = serve_app(predictor, scenario, max_table_rows=100, max_table_bytes=25_000)
    assert (answer.status, answer.error["code"], answer.error["field"]) == (status, code, field)


def test_offsets_that_point_elsewhere_are_refused(predictor, serve_app):
    """An Arrow buffer is read as it says; a text whose offsets leave its buffer must not be."""
    table = pa.table({**COLUMNS, "colour": ["abcdefgh"] * 50})
    body = stream(table)
    offsets = b"".join((8 * i).to_bytes(4, "little") for i in range(51))
    assert offsets in body
    wrong = body.replace(offsets, offsets[:-4] + (2**31 - 1).to_bytes(4, "little"))

    async def scenario(call):
        return await call("POST", "/v1/predict", wrong, {"content-type": ARROW})

    answer = serve_app(predictor, scenario)
    assert (answer.status, answer.error["code"]) == (400, "bad_arrow")


def test_a_small_body_that_unpacks_to_much_is_seen_before_it_is_unpacked():
    table = pa.table({"x": np.zeros(2_000_000), "s": pa.array(["a"] * 2_000_000).dictionary_encode()})
    for compression in ("zstd", "lz4"):
        body = stream(table, compression)
        assert len(body) < 2_000_000
        assert unpacked_size(body) == pytest.approx(table.nbytes, rel=0.05)
    assert unpacked_size(stream(table)) == pytest.approx(table.nbytes, rel=0.05)


def test_the_document_says_what_bodies_there_are(pictures, serve_app):
    async def scenario(call):
        return await call("GET", "/openapi.json")

    post = json.loads(serve_app(pictures, scenario).body)["paths"]["/v1/predict"]["post"]
    assert post["requestBody"]["content"].keys() == {"application/json", "multipart/form-data", ARROW}
    assert ARROW in post["responses"]["200"]["content"]
