"""Open Inference Protocol v2 over gRPC: the methods of a replica, called by Ray Serve's gRPC servers by their names.

The messages are those of `tritonclient` (`pip install 'seekray[grpc]'`), imported only where a call comes. Serve has several
applications at one address and wants to be told which (`headers={"application": "digits"}`): that is the model.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import grpc

from seekray.errors import DataError, SeekrayError
from seekray_serve.http import RequestError, error_response
from seekray_serve.predict.tensors import to_bytes

if TYPE_CHECKING:
    from seekray_serve.prediction import PredictionApp
    from seekray_serve.versions import ModelApplication, Versions

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.OUT_OF_RANGE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
_CONTENTS = {
    "BOOL": "bool_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
}  # fmt: skip


class InferenceService:
    """The methods, for a class that has an `application`; one that predicts nothing has none of them."""

    application: Versions

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:
        """The replica that was asked lives."""
        return _messages().ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:
        """And answers."""
        return _messages().ServerReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:
        """What the server is."""
        return _messages().ServerMetadataResponse(name="seekray", version="2", extensions=["binary_tensor_data"])

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:
        """Whether this model and version are here."""
        app = _predicting(self.application.current, grpc_context)
        return _messages().ModelReadyResponse(ready=app is not None and _missing(app, request) is None)

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:
        """Inputs and outputs."""
        pb, app = _messages(), _predicting(self.application.current, grpc_context)
        if app is None:
            return pb.ModelMetadataResponse()
        if error := _missing(app, request):
            return _refused(grpc_context, error, pb.ModelMetadataResponse())
        about = app.protocol.metadata()
        for side in ("inputs", "outputs"):
            about[side] = [pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in about[side]]
        return pb.ModelMetadataResponse(**about)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:
        """Tensors in, tensors out, both as raw bytes or as typed lists."""
        pb = _messages()
        with self.application.held() as held:
            app = _predicting(held, grpc_context)
            if app is None:
                return pb.ModelInferResponse()
            start, status = time.perf_counter(), 200
            try:
                if error := _missing(app, request):
                    raise error
                return await _infer(app, request)
            except Exception as error:
                status = getattr(error, "http_status", 500)
                return _refused(grpc_context, error, pb.ModelInferResponse())
            finally:
                app.meter.request("ModelInfer", status, time.perf_counter() - start)


def _predicting(application: ModelApplication, grpc_context: Any) -> PredictionApp | None:
    from seekray_serve.prediction import PredictionApp

    if isinstance(application, PredictionApp):
        return application
    grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    grpc_context.set_details("this application does not predict; it has no Open Inference Protocol")
    return None


def add_to_server(servicer: Any, server: Any) -> None:
    """Make a gRPC server of Ray Serve's take the protocol's calls; it hands them to the methods above."""
    from tritonclient.grpc import service_pb2_grpc

    # Serve passes each request on as bytes that name its class, by a module that the .proto is called after and nobody has.
    sys.modules.setdefault("grpc_service_pb2", _messages())
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)


def _messages() -> Any:
    from tritonclient.grpc import service_pb2

    return service_pb2


def _missing(app: PredictionApp, request: Any) -> RequestError | None:
    """The error of a model or version that is not here."""
    given_name = getattr(request, "name", None) or getattr(request, "model_name", "")
    given_version = getattr(request, "version", None) or getattr(request, "model_version", "")
    name, version = app.predictor.name, app.predictor.version or "1"
    if given_name == name and given_version in ("", version):
        return None
    asked = f"{given_name!r}" + (f" version {given_version!r}" if given_version else "")
    return RequestError(404, "not_found", f"there is {name!r} version {version!r} here, not {asked}")


def _refused(grpc_context: Any, error: Exception, empty: Any) -> Any:
    """An empty answer with the error's status: Serve would log a trace of what is raised."""
    if not isinstance(error, SeekrayError):
        error_response(error)  # logs it
        error = SeekrayError("the server failed on this request; its log says why")
    grpc_context.set_code(_CODES.get(error.http_status, grpc.StatusCode.INTERNAL))
    grpc_context.set_details(error.message)
    return empty


async def _infer(app: PredictionApp, request: Any) -> Any:
    body, raw = _as_json(request)
    columns, rows, wanted = app.protocol.read_request(body, raw)
    answer = await app.answer(columns, rows)
    pb = _messages()
    found = pb.ModelInferResponse(model_name=app.predictor.name, model_version=str(app.predictor.version or "1"), id=request.id)
    for name in wanted.binary:
        values, datatype = app.protocol.output(name, answer)
        found.outputs.append(pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=values.shape))
        found.raw_output_contents.append(to_bytes(values, datatype))
    return found


def _as_json(request: Any) -> tuple[dict[str, Any], memoryview]:
    """A request as the HTTP form has it, and its raw tensors one after another."""
    contents = list(request.raw_input_contents)
    if contents and len(contents) != len(request.inputs):
        raise DataError(f"{len(contents)} raw tensors for {len(request.inputs)} inputs", field="raw_input_contents")
    inputs = []
    for number, tensor in enumerate(request.inputs):
        about = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if contents:
            about["parameters"] = {"binary_data_size": len(contents[number])}
        else:
            about["data"] = _listed(tensor)
        inputs.append(about)
    outputs = [{"name": output.name, "parameters": _parameters(output)} for output in request.outputs]
    body = {"id": request.id or None, "parameters": _parameters(request), "inputs": inputs, "outputs": outputs}
    return body, memoryview(b"".join(contents))


def _listed(tensor: Any) -> list[Any]:
    values = list(getattr(tensor.contents, _CONTENTS.get(tensor.datatype, "bytes_contents")))
    if tensor.datatype != "BYTES":
        return values
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise DataError(f"input {tensor.name!r} is not UTF-8", field=tensor.name) from error


def _parameters(message: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in message.parameters.items()}
