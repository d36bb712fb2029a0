"""Open Inference Protocol v2 over gRPC: the unchanged `tritonclient.grpc` against a replica's methods, on a real socket."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.serve.conftest import FakePredictor
from tests.serving import call, free_port, listening, sample
from tritonclient.grpc import service_pb2, service_pb2_grpc

from seekray.errors import UserError
from seekray.settings import read_settings
from seekray_serve.lifecycle import configuration, deploy, haproxy, instance
from seekray_serve.lifecycle.ready import ModelToServe
from seekray_serve.options import Limits
from seekray_serve.predict.inference_service import InferenceService
from seekray_serve.prediction import PredictionApp
from seekray_serve.versions import ModelApplication, Versions

ROWS = [{"alcohol": 13.2, "ash": 2.0, "colour": "red"}, {"alcohol": 12.0, "ash": None, "colour": "naïve"}]


class Replica(InferenceService):
    def __init__(self, application: Any) -> None:
        self.application = Versions(application)


class Served:
    """A replica's methods behind a gRPC server, as Ray Serve has them, in a thread of its own."""

    def __init__(self, application: Any) -> None:
        self.replica = Replica(application)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def _servicer(self) -> Any:
        servicer = service_pb2_grpc.GRPCInferenceServiceServicer()
        for name in ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"):
            method = getattr(self.replica, name)

            async def call(request: Any, context: Any, method: Any = method) -> Any:
                return await method(request, grpc_context=context)

            setattr(servicer, name, call)
        return servicer

    async def _start(self) -> int:
        await self.replica.application.startup()
        self.server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._servicer(), self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return port

    def __enter__(self) -> Any:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        self.client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()
        asyncio.run_coroutine_threadsafe(self.server.stop(0), self._loop).result(20)
        asyncio.run_coroutine_threadsafe(self.replica.application.shutdown(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture
def client(predictor) -> Iterator[Any]:
    with Served(PredictionApp(predictor, Limits(max_rows=10))) as client:
        yield client


def inputs() -> list[Any]:
    """The rows as binary tensors: a missing number is NaN."""
    columns = {
        "alcohol": np.array([13.2, 12.0]), "ash": np.array([2.0, np.nan]), "colour": np.array(["red", "naïve"], dtype=object),
    }  # fmt: skip
    found = []
    for name, values in columns.items():
        found.append(triton.InferInput(name, [2], "BYTES" if values.dtype == object else "FP64"))
        found[-1].set_data_from_numpy(values)
    return found


def test_tritons_client_gets_what_rows_get(client, predictor, serve_app):
    async def scenario(call):
        return (await call("POST", "/v1/predict", {"rows": ROWS})).json()

    expected = serve_app(predictor, scenario)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "seekray"
    assert client.is_model_ready("wine")
    assert client.is_model_ready("wine", "3")
    assert not client.is_model_ready("wine", "4")
    assert not client.is_model_ready("beer")
    about = client.get_model_metadata("wine", as_json=True)
    assert [(t["name"], t["datatype"]) for t in about["inputs"]] == [("alcohol", "FP64"), ("ash", "FP64"), ("colour", "BYTES")]
    assert [(t["name"], t["shape"]) for t in about["outputs"]] == [("prediction", ["-1"]), ("probability", ["-1", "3"])]
    found = client.infer("wine", inputs(), request_id="7")
    assert found.get_response().id == "7"
    assert [v.decode() for v in found.as_numpy("prediction")] == expected["predictions"]
    wanted = [list(row.values()) for row in expected["probabilities"]]
    assert np.allclose(found.as_numpy("probability"), wanted, atol=1e-6)
    chosen = client.infer("wine", inputs(), outputs=[triton.InferRequestedOutput("probability")])
    assert chosen.as_numpy("prediction") is None
    assert np.array_equal(chosen.as_numpy("probability"), found.as_numpy("probability"))


def test_typed_lists_and_nulls_are_read_too(client):
    """What other clients send: values in the message and not as raw bytes, and this server's parameter for missing values."""
    request = service_pb2.ModelInferRequest(model_name="wine")
    for name, datatype, values in (
        ("alcohol", "FP32", {"fp32_contents": [13.2, 12.0]}),
        ("ash", "INT64", {"int64_contents": [2, 0]}),
        ("colour", "BYTES", {"bytes_contents": [b"red", "naïve".encode()]}),
    ):
        contents = service_pb2.InferTensorContents(**values)
        tensor = service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=[2], contents=contents)
        request.inputs.append(tensor)
    request.parameters["nulls"].string_param = '{"ash": [1]}'
    raw = client.infer("wine", inputs()).as_numpy("probability")
    found = triton.InferResult(client._client_stub.ModelInfer(request))
    assert np.allclose(found.as_numpy("probability"), raw, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda given: given.pop(), "INVALID_ARGUMENT", "'colour' is missing"),
        (lambda given: given[0].set_shape([2, 2]), "INVALID_ARGUMENT", "32"),
        (lambda given: given[1].set_data_from_numpy(np.array([1.0, 666.0])), None, ""),
        (lambda given: given[0].set_data_from_numpy(np.array([666.0, 1.0])), "INTERNAL", "its log says why"),
    ],
)
def test_errors_have_the_protocols_codes(client, change, code, words):
    given = inputs()
    change(given)
    if code is None:
        assert client.infer("wine", given)
        return
    with pytest.raises(triton.InferenceServerException, match=words) as raised:
        client.infer("wine", given)
    assert raised.value.status() == f"StatusCode.{code}"


def test_too_many_rows_another_model_and_no_model_that_predicts(client):
    many = [triton.InferInput("alcohol", [11], "FP64")]
    many[0].set_data_from_numpy(np.zeros(11))
    with pytest.raises(triton.InferenceServerException, match="is missing"):
        client.infer("wine", many)
    for wrong in ({"model_name": "beer"}, {"model_name": "wine", "model_version": "4"}):
        with pytest.raises(triton.InferenceServerException, match="here, not") as raised:
            client.infer(inputs=inputs(), **wrong)
        assert raised.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(triton.InferenceServerException, match="here, not"):
        client.get_model_metadata("beer")
    nothing = ModelApplication()
    nothing.loaded = FakePredictor()
    with Served(nothing) as other, pytest.raises(triton.InferenceServerException, match="does not predict") as raised:
        other.infer("wine", inputs())
    assert raised.value.status() == "StatusCode.UNIMPLEMENTED"


def test_grpc_is_off_unless_asked_for_and_asks_for_consent(tmp_path):
    assert "grpc_options" not in configuration.whole([], "127.0.0.1", 8000)
    settings = read_settings({"SEEKRAY_HOME": str(tmp_path)})
    with pytest.raises(UserError, match="on every interface, and they ask for no key; say --insecure-no-auth"):
        deploy.up([], settings, grpc_port=9000)
    with pytest.raises(UserError, match="Ray of our own"):
        deploy.up([], settings, grpc_port=9000, insecure_no_auth=True, address="127.0.0.1:1")
    assert not list(tmp_path.iterdir())


def test_haproxy_opens_grpc_where_http_is_open():
    pytest.importorskip("ray.serve")
    from tests.serve.test_haproxy import template

    grpc_front = "{{ config.grpc_frontend_host }}:{{ config.grpc_frontend_port }}"
    text = template().replace(grpc_front, "127.0.0.1:9000")
    found = haproxy.rewrite(text, public_host="10.1.2.3", error_file="/x")
    assert "bind 10.1.2.3:9000 proto h2\n    mode http\n    no log" in found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.e2e
def test_through_serve_and_haproxy(bundles, tmp_path):
    """Two models at one gRPC address, told apart by the header that Serve wants; open ports are those that were agreed to."""
    settings, port = read_settings({"SEEKRAY_HOME": str(tmp_path)}), free_port()
    models = [ModelToServe("digits", "1", bundles["digits1"]), ModelToServe("wine", "2", bundles["wine"])]
    result = deploy.up(models, settings, port=free_port(), grpc_port=port, insecure_no_auth=True)
    try:
        assert result["grpc"] == f"127.0.0.1:{port}"
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        for name, bundle, version in (("digits", "digits1", "1"), ("wine", "wine", "2")):
            headers = {"application": name}
            assert client.is_server_ready(headers=headers)
            assert client.is_model_ready(name, version, headers=headers)
            rows = sample(bundles[bundle])
            tensors = []
            for feature in client.get_model_metadata(name, headers=headers).inputs:
                values = np.array([row[feature.name] for row in rows])
                values = values.astype("f8") if feature.datatype == "FP64" else values.astype(object)
                tensors.append(triton.InferInput(feature.name, list(values.shape), feature.datatype))
                tensors[-1].set_data_from_numpy(values)
            found = client.infer(name, tensors, headers=headers)
            expected = call(f"{result['url']}/{name}/v1/predict", {"rows": rows})[1]
            classes = [v.decode() if isinstance(v, bytes) else v for v in found.as_numpy("prediction").tolist()]
            assert classes == expected["predictions"]
            wanted = [list(row.values()) for row in expected["probabilities"]]
            assert np.allclose(found.as_numpy("probability"), wanted, atol=1e-6)
            with pytest.raises(triton.InferenceServerException, match="is missing") as raised:
                client.infer(name, tensors[:1], headers=headers)
            assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(triton.InferenceServerException) as raised:
            client.infer("wine", tensors)
        assert raised.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(UserError, match="already served"):
            deploy.up(models[:1], settings, grpc_port=port + 1, insecure_no_auth=True)
        running = instance.load(settings.home / "serve.json")
        assert running
        for host, _, pid in listening(instance.pids(running.name)):
            if host not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                assert re.search("ServeReplica|ProxyActor", Path(f"/proc/{pid}/cmdline").read_text())
    finally:
        deploy.down(settings)
