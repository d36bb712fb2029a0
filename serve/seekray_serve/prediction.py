"""A supervised model as a Serve application: one hop from the socket to the forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from seekray_serve import openapi
from seekray_serve.batching import Batcher
from seekray_serve.http import (
    HTML,
    JSON,
    Handler,
    Receive,
    RequestError,
    Response,
    Scope,
    header,
    is_json,
    json_response,
    parse_json,
    read_body,
)
from seekray_serve.metrics import Measures
from seekray_serve.options import Limits
from seekray_serve.predict.bodies import FileBodies
from seekray_serve.predict.inference_protocol import LENGTH_HEADER, InferenceProtocol
from seekray_serve.predict.model import BatchModel
from seekray_serve.predict.rows import Answer, Job, RowReader
from seekray_serve.predict.steps import Steps
from seekray_serve.predict.tables import ARROW, Tables, joined
from seekray_serve.replica import deployed
from seekray_serve.streaming import unless_gone
from seekray_serve.versions import ModelApplication

if TYPE_CHECKING:
    from ray.serve import Application as ServeApplication

    from seekray.predictor import Predictor


class PredictionApp(ModelApplication):
    """The ASGI application of one model; knows nothing of Ray. key: signs a stream's state; None: the instance's own."""

    def __init__(self, predictor: Predictor, limits: Limits | None = None, key: bytes | None = None) -> None:
        super().__init__()
        self.predictor = self.loaded = predictor
        self.limits = limits or Limits()
        self.reader = RowReader(predictor, max_rows=self.limits.max_rows)
        model = BatchModel(predictor, self.reader)
        self.batcher: Batcher[Job, Answer] = Batcher(
            model.run,
            max_rows=self.limits.max_batch_rows,
            max_queued=self.limits.max_queued_requests,
        )
        self.protocol = InferenceProtocol(predictor)
        self.files = FileBodies(predictor)
        self.tables = Tables(predictor, self.reader, self.batcher, self.limits)
        self.add("POST", "/v1/predict", self.predict)
        self.steps: Steps | None = None
        if hasattr(getattr(predictor, "family", None), "forward_on"):
            self.steps = Steps(predictor, self.reader, self.limits, key)
            self.add("POST", "/v1/stream", self.steps.post)
            self.sockets["/v1/stream"] = self.steps.talk
        self.add("GET", "/v1/model", self._constant(openapi.describe(predictor)))
        self.add("GET", "/healthz", self.health)
        self._add_inference_protocol()
        self._paths = [(m, path) for path, methods in self.routes.items() for m in methods if m != "HEAD"]
        self.add("GET", "/openapi.json", self.openapi)
        self.add("GET", "/docs", self.docs)
        self.add("GET", "/", self.docs)

    async def startup(self) -> None:
        """Answer the bundle's own sample, so that the first caller does not pay for first times."""
        if not self.predictor.sample:
            return
        one = self.predictor.sample[:1]
        for _ in range(5):
            await self.batcher.submit(self.reader.read({"rows": one}), 1)

    async def shutdown(self) -> None:
        """Let the worker threads go."""
        self.batcher.close()
        if self.steps:
            self.steps.close()

    def measures(self) -> Measures:
        """Rows, batches and what waits."""
        return self.batcher.measures()

    async def predict(self, scope: Scope, receive: Receive) -> Response:
        """Rows as JSON, files or an Arrow stream → predictions and probabilities, as JSON or an Arrow stream."""
        kind, accept = header(scope, b"content-type") or JSON, header(scope, b"accept") or b""
        if is_json(kind) and ARROW not in accept:
            body = await read_body(scope, receive, self.limits.max_body_bytes)
            job = self.reader.read(parse_json(body))
            answer = await self.batcher.submit(job, job.count)
            return Response(orjson.dumps(answer.as_json(self.predictor)))
        if not kind.startswith(ARROW):
            body = await read_body(scope, receive, self.limits.max_body_bytes)
            given = parse_json(body) if is_json(kind) else self.files.read(kind.decode("latin-1"), body)
            jobs = [self.reader.read(given)]
        else:
            body = await read_body(scope, receive, self.limits.max_table_bytes)
            jobs = await asyncio.get_running_loop().run_in_executor(None, self.tables.read, body)
        answers = await unless_gone(receive, self.tables.answer(jobs))
        if ARROW in accept or (kind.startswith(ARROW) and JSON not in accept):
            return await asyncio.get_running_loop().run_in_executor(None, self.tables.write, answers)
        about = {"model": self.predictor.name, "version": self.predictor.version}
        return Response(orjson.dumps(joined(answers) | about))

    async def health(self, scope: Scope, receive: Receive) -> Response:
        """This replica serves, and what; `queued` requests wait in it, `rows` it has computed since it started."""
        model = {"model": self.predictor.name, "version": self.predictor.version}
        return json_response({"status": "ok", **model, "queued": self.batcher.queued, "rows": self.batcher.rows})

    async def infer(self, scope: Scope, receive: Receive) -> Response:
        """Open Inference Protocol: tensors in, tensors out, as JSON or as raw bytes after it."""
        body = await read_body(scope, receive, self.limits.max_body_bytes)
        columns, rows, wanted = self.protocol.read(body, header(scope, LENGTH_HEADER))
        answer = await self.answer(columns, rows)
        payload, length = self.protocol.write(answer, wanted)
        if length is None:
            return Response(payload)
        return Response(payload, content_type=b"application/octet-stream", headers=[(LENGTH_HEADER, b"%d" % length)])

    async def answer(self, columns: Mapping[str, Any], rows: int) -> Answer:
        """The answer to a request's columns of the Open Inference Protocol."""
        self.reader.check_count(rows, "inputs")
        return await self.batcher.submit(Job(rows, columns=columns), rows)

    async def openapi(self, scope: Scope, receive: Receive) -> Response:
        """The OpenAPI document."""
        return json_response(openapi.document(self.predictor, self._paths, scope.get("root_path", "")))

    async def docs(self, scope: Scope, receive: Receive) -> Response:
        """The documentation page."""
        return Response(openapi.page(self.predictor, scope.get("root_path", "")), content_type=HTML)

    async def fallback(self, path: str, scope: Scope, receive: Receive) -> Response:
        """A model or version that this application does not hold gets a 404 that says so."""
        parts = path.split("/")
        if parts[1:3] == ["v2", "models"] and len(parts) > 3:
            name, version = self.predictor.name, self.predictor.version
            raise RequestError(404, "not_found", f"there is {name!r} version {version!r} here, not {path!r}")
        return await super().fallback(path, scope, receive)

    def _add_inference_protocol(self) -> None:
        name, version = self.predictor.name, self.predictor.version
        server = {"name": "seekray", "version": "2", "extensions": ["binary_tensor_data"]}
        self.add("GET", "/v2", self._constant(server))
        self.add("GET", "/v2/health/live", self._constant({"live": True}))
        self.add("GET", "/v2/health/ready", self._constant({"ready": True}))
        for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version or '1'}"):
            self.add("GET", base, self._constant(self.protocol.metadata()))
            self.add("GET", f"{base}/ready", self._constant({"name": name, "ready": True}))
            self.add("POST", f"{base}/infer", self.infer)

    def _constant(self, value: object) -> Handler:
        payload = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)

        async def answer(scope: Scope, receive: Receive) -> Response:
            return Response(payload)

        return answer


def load(bundle: str, limits: Limits, *, name: str, version: str | None) -> PredictionApp:
    """The application of a bundle folder."""
    from seekray.predictor import Predictor

    return PredictionApp(Predictor.load(bundle, name=name, version=version), limits)


def build(args: Mapping[str, Any]) -> ServeApplication:
    """The Serve application of one model, for `serve deploy` (`import_path: seekray_serve.prediction:build`).

    args: see `replica.deployed`.
    """
    return deployed(args, load)
