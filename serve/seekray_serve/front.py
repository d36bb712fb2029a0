"""The door at `/` for clients that know one address: catalogue, playground, health, the models' paths without their prefix.

Where the ingress is the HAProxy that `serve up` starts, a model's own paths are rewritten in
HAProxy (`haproxy.py`) and never come here. On any other cluster they are forwarded by HTTP to the
same ingress: nothing but an address is needed, and the answer's bytes pass as they are.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from seekray_serve import front_docs, playground
from seekray_serve.auth import Asgi, guarded
from seekray_serve.http import (
    OPENAI_PATHS,
    Application,
    Headers,
    Receive,
    RequestError,
    Response,
    Scope,
    json_response,
    parse_json,
    read_body,
    require_json,
    route_path,
)
from seekray_serve.keys import operators_key, ray_token
from seekray_serve.metrics import CONTENT_TYPE, Board, with_own
from seekray_serve.openapi import listed
from seekray_serve.options import DRAIN_S, Limits
from seekray_serve.relay import relay
from seekray_serve.sockets import Socket
from seekray_serve.streaming import EVENTS, EventStream, replica_ended, unless_gone

if TYPE_CHECKING:
    import aiohttp
    from ray.serve import Application as ServeApplication

NAME = "front"
# What asks for no key: the page itself holds nothing of the models.
PUBLIC = frozenset((*playground.FILES, "/healthz"))
_FORWARDED = (b"content-type", b"content-encoding", b"accept", b"inference-header-content-length", b"authorization")
_RETURNED = ("content-type", "inference-header-content-length", "retry-after", "allow", "seekray-model", "seekray-version")
_CATALOGUE_S = 1.0


class FrontApp(Application):
    """The ASGI application of the front door.

    url: the ingress it stands behind; board: what replicas say of themselves; key: what the front door asks the models with.
    """

    def __init__(
        self, url: str, *, max_body_bytes: int = Limits().max_table_bytes, board: Board | None = None, key: str | None = None
    ) -> None:
        super().__init__()
        self._board = board
        self._url = url.rstrip("/")
        self._own = {"authorization": f"Bearer {key}"} if key else {}
        self._max_body_bytes = max_body_bytes
        self._session: aiohttp.ClientSession | None = None
        self._catalogue: tuple[float, list[dict[str, Any]]] = (0.0, [])
        self._lock = asyncio.Lock()
        playground.add(self)
        self.add("GET", "/openapi.json", self.openapi_document)
        self.add("GET", "/healthz", self.health)
        self.add("GET", "/v1/models", self.models)
        self.add("GET", "/v1/status", self.status)
        self.add("GET", "/metrics", self.metrics)
        for path in OPENAI_PATHS:
            self.add("POST", path, self.openai)
        self.add("GET", "/v2", self.server)
        self.add("GET", "/v2/health/live", self.live)
        self.add("GET", "/v2/health/ready", self.ready)
        self.add("POST", "/v2/repository/index", self.index)

    async def startup(self) -> None:
        """Open the connections that forwarded requests share."""
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
        )

    async def shutdown(self) -> None:
        """Close them."""
        if self._session:
            await self._session.close()

    async def catalogue(self) -> list[dict[str, Any]]:
        """What is served now, asked of the models themselves and kept for a second."""
        async with self._lock:
            if time.monotonic() - self._catalogue[0] > _CATALOGUE_S:
                status, _, body = await self._fetch("GET", "/-/routes")
                if status != 200:
                    raise RequestError(503, "unavailable", "the ingress does not answer; try again")
                prefixes = sorted(prefix for prefix in orjson.loads(body) if prefix and prefix != "/")
                found = await asyncio.gather(*(self._describe(prefix) for prefix in prefixes))
                self._catalogue = (time.monotonic(), [model for model in found if model])
        return self._catalogue[1]

    async def _describe(self, prefix: str) -> dict[str, Any] | None:
        try:
            status, _, body = await asyncio.wait_for(self._fetch("GET", f"{prefix}/v1/model", headers=self._own), 5)
        except (TimeoutError, RequestError):
            return None
        try:
            found = orjson.loads(body) if status == 200 else None
        except orjson.JSONDecodeError:
            return None
        # On a shared cluster other people's applications answer at prefixes of their own.
        return {**found, "path": prefix} if isinstance(found, dict) and found.get("name") == prefix[1:] else None

    async def models(self, scope: Scope, receive: Receive) -> Response:
        """The catalogue; `data` in the form that OpenAI's clients list."""
        found = await self.catalogue()
        data = [listed(model["name"]) for model in found]
        return json_response({"object": "list", "data": data, "models": found})

    async def health(self, scope: Scope, receive: Receive) -> Response:
        """The front door answers; which models do is in the catalogue."""
        return json_response({"status": "ok"})

    async def status(self, scope: Scope, receive: Receive) -> Response:
        """What replicas and the autoscaler say of each model, for `serve status`."""
        return json_response(await asyncio.to_thread(self._board.read) if self._board else {})

    async def metrics(self, scope: Scope, receive: Receive) -> Response:
        """What all models' replicas have counted, of a few seconds ago, and this door, for Prometheus."""
        found = await asyncio.to_thread(self._board.measured) if self._board else []
        return Response(with_own(found, self.meter, NAME), content_type=CONTENT_TYPE)

    async def openai(self, scope: Scope, receive: Receive) -> Response:
        """OpenAI's paths, where the model's name is in the body: forwarded, and a stream as it comes."""
        body = await read_body(scope, receive, self._max_body_bytes)
        require_json(scope)
        given = parse_json(body)
        name = given.get("model") if isinstance(given, dict) else None
        if not isinstance(name, str):
            raise RequestError(400, "bad_input", "no model given; expected the name of a served model", field="model")
        model = await self._model(name)
        headers = _kept(scope) | {"content-type": "application/json"}
        headers.pop("content-encoding", None)  # the body has been unpacked
        path = route_path(scope)
        return await unless_gone(receive, self._relayed(f"{model['path']}{path}", body, headers, receive))

    async def _relayed(self, path: str, body: bytes, headers: Mapping[str, str], receive: Receive) -> Response:
        answer = await self._ask("POST", path, body, headers)
        if answer.content_type == EVENTS.decode():
            return EventStream(_whole_events(answer), receive, answer.close, path)
        return _returned(answer.status, answer.headers, await _read(answer))

    async def openapi_document(self, scope: Scope, receive: Receive) -> Response:
        """The OpenAPI document."""
        paths = [(m, path) for path, methods in self.routes.items() for m in methods if m != "HEAD"]
        return json_response(front_docs.document(paths))

    async def server(self, scope: Scope, receive: Receive) -> Response:
        """Open Inference Protocol's server metadata."""
        return json_response({"name": "seekray", "version": "2", "extensions": ["binary_tensor_data"]})

    async def live(self, scope: Scope, receive: Receive) -> Response:
        """Open Inference Protocol's liveness."""
        return json_response({"live": True})

    async def ready(self, scope: Scope, receive: Receive) -> Response:
        """Ready when a model answers."""
        found = await self.catalogue()
        return json_response({"ready": bool(found)}, 200 if found else 503)

    async def index(self, scope: Scope, receive: Receive) -> Response:
        """The model list of Triton's clients."""
        found = await self.catalogue()
        return json_response([{"name": m["name"], "version": m["version"], "state": "READY"} for m in found])

    async def fallback(self, path: str, scope: Scope, receive: Receive) -> Response:
        """Forward a model's path, describe a model, or say what there is."""
        _, api, *rest = path.split("/")
        if rest[:1] == ["models"] and len(rest) > 1 and rest[1]:
            name, tail = rest[1], "/".join(rest[2:])
            if api == "v1" and not tail:
                return json_response({**listed(name), **await self._model(name)})
            if api == "v1" and tail in ("predict", "stream", "generate"):
                return await self._forward(name, f"v1/{tail}", scope, receive)
            if api == "v2":
                return await self._forward(name, "/".join(["v2", *rest]), scope, receive)
        elif rest[:2] in (["v1", "predict"], ["v1", "stream"], ["v1", "generate"], ["v2", "models"]):
            # HAProxy has rewritten the path and then found no such model.
            await self._model(api)
        return await super().fallback(path, scope, receive)

    async def fallback_socket(self, path: str, socket: Socket) -> None:
        """Pass a model's stream on, or say what there is."""
        found = re.fullmatch(r"(?:/v1/models/([^/]+)|/([^/]+)/v1)/stream", path)
        if found is None:
            await super().fallback_socket(path, socket)
            return
        model = await self._model(found[1] or found[2])
        assert self._session is not None
        url = f"{self._url}{model['path']}/v1/stream"
        await relay(socket, self._session, url, _kept(socket.scope), self._max_body_bytes)

    async def _model(self, name: str) -> dict[str, Any]:
        found = await self.catalogue()
        for model in found:
            if model["name"] == name:
                return model
        names = ", ".join(model["name"] for model in found) or "none"
        raise RequestError(404, "not_found", f"no model {name!r} is served; served: {names}", field="model")

    async def _forward(self, name: str, path: str, scope: Scope, receive: Receive) -> Response:
        body = await read_body({**scope, "headers": _plain(scope)}, receive, self._max_body_bytes)
        model = await self._model(name)
        headers = _kept(scope)
        status, returned, answer = await self._fetch(scope["method"], f"{model['path']}/{path}", body, headers)
        return _returned(status, returned, answer)

    async def _fetch(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        answer = await self._ask(method, path, body, headers)
        return answer.status, answer.headers, await _read(answer)

    async def _ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        import aiohttp

        if self._session is None:
            await self.startup()
        assert self._session is not None
        try:
            return await self._session.request(method, self._url + path, data=body or None, headers=headers)
        except aiohttp.ClientError as error:
            raise _unavailable(error) from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body, and the connection given back."""
    import aiohttp

    try:
        async with answer:
            return await answer.read()
    except aiohttp.ClientError as error:
        raise _unavailable(error) from error


async def _whole_events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A stream's events as they come, none in part; a stream that breaks is told as such."""
    import aiohttp

    rest = b""
    try:
        async for part in answer.content.iter_any():
            whole, end, rest = (rest + part).rpartition(b"\n\n")
            if end:
                yield whole + end
    except aiohttp.ClientError as error:
        raise replica_ended() from error


def _unavailable(error: Exception) -> RequestError:
    return RequestError(503, "unavailable", f"the ingress does not answer: {error}")


def _returned(status: int, headers: Mapping[str, str], body: bytes) -> Response:
    """An answer of the ingress as our own."""
    content_type = headers.get("content-type", "application/json").encode("latin-1")
    kept: Headers = [(key.encode(), headers[key].encode("latin-1")) for key in _RETURNED[1:] if key in headers]
    return Response(body, status, content_type, kept)


def _kept(scope: Scope) -> dict[str, str]:
    """The headers that go on to the model."""
    return {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"] if k in _FORWARDED}


def _plain(scope: Scope) -> Headers:
    """The headers without the encoding: a packed body is passed on as it is."""
    return [(key, value) for key, value in scope["headers"] if key != b"content-encoding"]


def build(args: Mapping[str, Any]) -> ServeApplication:
    """The front door's Serve application. args: `url`, the ingress as its replica reaches it; `auth`, see `auth.guarded`."""
    from ray import serve

    url, auth = args["url"], args.get("auth")

    class Front:
        """A replica of the front door."""

        def __serve_build_asgi_app__(self) -> Asgi:
            from seekray_serve import board, uvicorn_cycle

            uvicorn_cycle.install()
            key = operators_key(token) if (token := ray_token(os.environ)) else None
            return guarded(FrontApp(url, board=board, key=key), auth, PUBLIC)

    return serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": 0.05},
        max_ongoing_requests=100_000,
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=DRAIN_S,
    )(serve.ingress()(Front)).bind()
