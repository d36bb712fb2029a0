"""Open Inference Protocol v2, in process: both forms of tensors, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

ROWS = [{"alcohol": 13.2, "ash": 2.0, "colour": "red"}, {"alcohol": 12.0, "ash": None, "colour": None}]
INFER = "/v2/models/wine/infer"


def tensor(name, datatype, data, **more):
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data, **more}


def request(**more):
    inputs = [
        tensor("colour", "BYTES", ["red", "x"]),
        tensor("alcohol", "FP32", [13.2, 12.0]),
        tensor("ash", "INT32", [2, 0]),
    ]
    return {"inputs": inputs, "parameters": {"nulls": {"colour": [1], "ash": [1]}}, **more}


def binary(outputs_binary=True):
    parts = {
        "alcohol": np.array([13.2, 12.0], "<f8").tobytes(),
        "ash": np.array([2.0, np.nan], "<f8").tobytes(),
        "colour": b"".join(len(t).to_bytes(4, "little") + t for t in (b"red", b"None")),
    }
    kinds = {"alcohol": "FP64", "ash": "FP64", "colour": "BYTES"}
    inputs = [
        {"name": n, "datatype": kinds[n], "shape": [2, 1], "parameters": {"binary_data_size": len(p)}} for n, p in parts.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": outputs_binary}}).encode()
    return head + b"".join(parts.values()), {"inference-header-content-length": str(len(head))}


def test_the_three_forms_give_what_rows_give(predictor, serve_app):
    async def scenario(call):
        plain = await call("POST", "/v1/predict", {"rows": ROWS})
        body, headers = binary()
        return plain, await call("POST", INFER, request(id="7")), await call("POST", INFER, body, headers)

    plain, as_json, raw = serve_app(predictor, scenario)
    expected = plain.json()
    probabilities = [list(row.values()) for row in expected["probabilities"]]

    answer = as_json.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("wine", "3", "7")
    prediction, probability = answer["outputs"]
    assert (prediction["name"], prediction["datatype"], prediction["shape"]) == ("prediction", "BYTES", [2])
    assert prediction["data"] == expected["predictions"]
    assert (probability["datatype"], probability["shape"]) == ("FP64", [2, 3])
    assert np.allclose(np.reshape(probability["data"], (2, 3)), probabilities, atol=1e-6)

    length = int(raw.headers["inference-header-content-length"])
    head, tail = json.loads(raw.body[:length]), raw.body[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert sum(sizes) == len(tail)
    assert tail[4:5].decode() == expected["predictions"][0]
    assert np.allclose(np.frombuffer(tail[sizes[0] :], "<f8").reshape(2, 3), probabilities, atol=1e-6)


def test_outputs_can_be_chosen(predictor, serve_app):
    async def scenario(call):
        body = request(outputs=[{"name": "probability", "parameters": {"binary_data": False}}])
        return await call("POST", INFER, body)

    assert [o["name"] for o in serve_app(predictor, scenario).json()["outputs"]] == ["probability"]


@pytest.mark.parametrize(
    ("task", "classes", "datatype", "shape"),
    [
        ("classification", [0, 1, 2], "INT64", [2]),
        ("classification", [0.5, 1, 2], "FP64", [2]),
        ("regression", None, "FP64", [2]),
        ("multilabel", ["x", "y", "z"], "BOOL", [2, 3]),
    ],
)
def test_the_prediction_has_the_type_of_the_classes(fake, serve_app, task, classes, datatype, shape):
    async def scenario(call):
        return await call("POST", INFER, request()), await call("GET", "/v2/models/wine")

    answer, metadata = serve_app(fake(task, classes), scenario)
    found = answer.json()["outputs"][0]
    assert (found["datatype"], found["shape"]) == (datatype, shape)
    assert len(found["data"]) == int(np.prod(shape))
    assert metadata.json()["outputs"][0]["datatype"] == datatype


def test_metadata_and_health(predictor, serve_app):
    async def scenario(call):
        paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/wine", "/v2/models/wine/ready"]
        paths += ["/v2/models/wine/versions/3", "/v2/models/wine/versions/3/ready"]
        paths += ["/v2/models/wine/versions/9/ready", "/v2/models/beer"]
        return [await call("GET", path) for path in paths]

    answers = serve_app(predictor, scenario)
    assert [answer.status for answer in answers] == [200] * 7 + [404] * 2
    inputs = answers[3].json()["inputs"]
    assert [(i["name"], i["datatype"]) for i in inputs] == [("alcohol", "FP64"), ("ash", "FP64"), ("colour", "BYTES")]
    assert isinstance(answers[-1].json()["error"], str)  # the protocol's own form


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("inputs"),
        lambda r: r["inputs"].pop(),
        lambda r: r["inputs"].append(r["inputs"][0]),
        lambda r: r["inputs"][0].update(name="nothing"),
        lambda r: r["inputs"][0].update(name=["colour"]),
        lambda r: r["inputs"][0].update(datatype="STRING"),
        lambda r: r["inputs"][0].update(shape=[3]),
        lambda r: r["inputs"][0].update(shape=[2, 2]),
        lambda r: r["inputs"][0].update(shape="2"),
        lambda r: r["inputs"][0].update(shape=[-1]),
        lambda r: r["inputs"][0].pop("data"),
        lambda r: r["inputs"][0].update(parameters={"binary_data_size": 5}),
        lambda r: r["inputs"][1].update(data=["high", 1]),
        lambda r: r["inputs"].__setitem__(0, "x"),
        lambda r: r.update(outputs=[{"name": "nothing"}]),
        lambda r: r["parameters"].update(nulls="{"),
        lambda r: r["parameters"].update(nulls={"ash": [9]}),
        lambda r: [t.update(shape=[0], data=[]) for t in r["inputs"]],
    ],
)
def test_bad_requests_are_400(predictor, serve_app, change):
    body = request()
    change(body)

    async def scenario(call):
        return await call("POST", INFER, body)

    answer = serve_app(predictor, scenario)
    assert answer.status == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("cut", [1, 20])
@pytest.mark.parametrize("length", ["0", "99999", "x", None])
def test_torn_binary_requests_are_400(predictor, serve_app, cut, length):
    body, headers = binary()
    if length is not None:
        headers["inference-header-content-length"] = length

    async def scenario(call):
        return await call("POST", INFER, body[:-cut], headers)

    assert serve_app(predictor, scenario).status == 400
