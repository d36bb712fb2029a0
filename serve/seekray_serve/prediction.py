"""A supervised model as a Serve application: one hop from the socket to the forward pass."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from seekray.errors import DataError
from seekray_serve import openapi
from seekray_serve.batching import Batcher
from seekray_serve.http import (
    HTML,
    Application,
    Handler,
    Receive,
    RequestError,
    Response,
    Scope,
    header,
    json_response,
    parse_json,
    read_body,
    require_json,
)
from seekray_serve.options import Limits
from seekray_serve.predict.inference_protocol import LENGTH_HEADER, InferenceProtocol
from seekray_serve.predict.model import BatchModel
from seekray_serve.predict.rows import Answer, Job, RowReader
from seekray_serve.replica import deployed

if TYPE_CHECKING:
    from ray.serve import Application as ServeApplication

    from seekray.predictor import Predictor


class PredictionApp(Application):
    """The ASGI application of one model; knows nothing of Ray."""

    def __init__(self, predictor: Predictor, limits: Limits | None = None) -> None:
        super().__init__()
        self.predictor = predictor
        self.limits = limits or Limits()
        self.reader = RowReader(predictor, max_rows=self.limits.max_rows)
        model = BatchModel(predictor, self.reader)
        self.batcher: Batcher[Job, Answer] = Batcher(
            model.run,
            max_rows=self.limits.max_batch_rows,
            max_queued=self.limits.max_queued_requests,
        )
        self.protocol = InferenceProtocol(predictor)
        self.add("POST", "/v1/predict", self.predict)
        if hasattr(getattr(predictor, "family", None), "forward_on"):
            self.add("POST", "/v1/stream", self.stream)
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
        """Let the worker thread go."""
        self.batcher.close()

    async def predict(self, scope: Scope, receive: Receive) -> Response:
        """`{"rows": [...]}` or `{"columns": {...}}` → predictions and probabilities."""
        require_json(scope)
        body = await read_body(scope, receive, self.limits.max_body_bytes)
        job = self.reader.read(parse_json(body))
        answer = await self.batcher.submit(job, job.count)
        return Response(orjson.dumps(self._answered(answer)))

    async def stream(self, scope: Scope, receive: Receive) -> Response:
        """`{"rows": [...], "keys": [...], "state": "..."}`: a recurrent model's new steps, and the state of the last call.

        The state travels with the caller (base64), so that any replica can go on. A row holds only the steps that are new;
        `keys` names the rows' series where there are several.
        """
        from seekray.stream import Stream

        require_json(scope)
        body = parse_json(await read_body(scope, receive, self.limits.max_body_bytes))
        given = dict(body) if isinstance(body, dict) else {}
        state, keys = given.pop("state", None), given.pop("keys", None)
        job = self.reader.read(given)
        if keys is None:
            keys = list(range(job.count))
        if not isinstance(keys, list) or not isinstance(state, str | None):
            raise DataError("keys must be a list, and state what the last call gave", field="state")

        def work() -> Response:
            stream = Stream(self.predictor)
            if state:
                stream.loads(base64.b64decode(state))
            columns = job.columns if job.columns is not None else self.reader.columns(job.rows or [])
            found = stream.predict(columns, keys)
            answer = Answer(found.predictions, found.probabilities, 0, job.count, found.quantiles)
            return json_response(self._answered(answer) | {"state": base64.b64encode(stream.dumps()).decode()})

        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _answered(self, answer: Answer) -> dict[str, Any]:
        """What `predict` and `stream` say."""
        return {
            "predictions": answer.predictions,
            "probabilities": answer.probabilities,
            **({} if answer.quantiles is None else {"quantiles": answer.quantiles}),
            "model": self.predictor.name,
            "version": self.predictor.version,
        }

    async def health(self, scope: Scope, receive: Receive) -> Response:
        """This replica serves, and what; `queued` requests wait in it, `rows` it has computed since it started."""
        model = {"model": self.predictor.name, "version": self.predictor.version}
        return json_response({"status": "ok", **model, "queued": self.batcher.queued, "rows": self.batcher.rows})

    async def infer(self, scope: Scope, receive: Receive) -> Response:
        """Open Inference Protocol: tensors in, tensors out, as JSON or as raw bytes after it."""
        body = await read_body(scope, receive, self.limits.max_body_bytes)
        columns, rows, wanted = self.protocol.read(body, header(scope, LENGTH_HEADER))
        self.reader.check_count(rows, "inputs")
        answer = await self.batcher.submit(Job(rows, columns=columns), rows)
        payload, length = self.protocol.write(answer, wanted)
        if length is None:
            return Response(payload)
        return Response(payload, content_type=b"application/octet-stream", headers=[(LENGTH_HEADER, b"%d" % length)])

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
