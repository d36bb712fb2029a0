"""What every endpoint shares: reading a body within limits, JSON, errors, a table of routes.

Plain ASGI on purpose: on a small model, request validation by a framework costs more than
the forward pass (docs/benchmarks.md), so the schema is kept for the documentation and for the
error path, and the hot path is a dictionary lookup, `orjson` and two messages.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

import orjson

from seekray.errors import SeekrayError, TooBusyError, TooLargeError, UserError
from seekray_serve.metrics import Meter
from seekray_serve.sockets import Socket, SocketClosedError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

logger = logging.getLogger("seekray.serve")

JSON = b"application/json"
CLIENT_GONE = 499  # nginx's number for it; nobody is sent it
HTML = b"text/html; charset=utf-8"
# Where OpenAI's clients read errors, and look for a message, a type and a parameter.
OPENAI_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/images/generations")


class RequestError(UserError):
    """A request that is wrong as HTTP: no such path, wrong method or content type, too busy."""

    def __init__(
        self,
        http_status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message, field=field)
        self.http_status = http_status
        self.code = code
        self.headers = headers or []


class ClientGoneError(Exception):
    """The client hung up before its request was complete; there is nobody to answer."""


class Response:
    """A status, a body and headers; sent as two ASGI messages."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        content_type: bytes = JSON,
        headers: Headers | None = None,
    ) -> None:
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers

    async def send(self, send: Send) -> None:
        """Write the response."""
        headers: Headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
        ]
        if self.headers:
            headers += self.headers
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_response(value: object, status: int = 200) -> Response:
    """A JSON response. NaN and infinities become null, as JSON has no word for them."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status)


def error_response(error: Exception, path: str = "") -> Response:
    """`{"error": {code, message, field}}` with the error's own status; a bug is a 500 without details.

    Open Inference Protocol's clients expect a string: below `/v2`, and below `/{model}/v2` where HAProxy made that of
    the front door's path and found no such model, it is `{"error": message, code, field}`. On OpenAI's paths it is theirs.
    """
    if not isinstance(error, SeekrayError):
        logger.error("request failed", exc_info=error)
        error = SeekrayError("the server failed on this request; its log says why")
    headers = error.headers if isinstance(error, RequestError) else None
    if isinstance(error, TooBusyError):
        headers = [(b"retry-after", b"%d" % error.retry_after_s)]
    body: dict[str, object] = dict(error.as_json())
    if path.endswith(OPENAI_PATHS):
        kind = {429: "rate_limit_error"}.get(error.http_status, "invalid_request_error")
        kind = kind if error.http_status < 500 else "server_error"
        field = error.field
        # What our generators call otherwise.
        names = {"prompts": "messages" if "/chat/" in path else "prompt", "json_schema": "response_format"}
        field = names.get(field or "", field)
        body = {"error": {"message": error.message, "type": kind, "param": field, "code": error.code}}
    if path.startswith("/v2") or "/v2/models/" in path:
        body = {"error": error.message, "code": error.code, "field": error.field}
    return Response(orjson.dumps(body), error.http_status, headers=headers)


def header(scope: Scope, name: bytes) -> bytes | None:
    """A request header's value (ASGI gives names in lower case)."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body, unpacked if it was compressed.

    Raises TooLargeError over `limit` bytes (before and after unpacking), ClientGoneError when
    the client hangs up in the middle.
    """
    encoding = length = b""
    for key, value in scope["headers"]:
        if key == b"content-length":
            length = value
        elif key == b"content-encoding":
            encoding = value
    # Refused by its announcement, so that a huge body is never read.
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        parts, size = [body], len(body)
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
        body = b"".join(parts)
    if len(body) > limit:
        raise _too_large(limit)
    if encoding and encoding != b"identity":
        return _unpack(body, encoding, limit)
    return body


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is over the limit of {limit:,} bytes; send fewer rows at a time")


def _unpack(body: bytes, encoding: bytes, limit: int) -> bytes:
    name = encoding.decode("latin-1").lower()
    if name not in ("gzip", "deflate"):
        raise RequestError(
            415, "unsupported_encoding", f"content-encoding {name!r} is not gzip or deflate", field="content-encoding"
        )
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(400, "bad_encoding", f"the body is not valid {name}: {error}") from error
    if len(plain) > limit:
        raise _too_large(limit)
    if not unpacker.eof:
        raise RequestError(400, "bad_encoding", f"the {name} body ends too early")
    return plain


def is_json(kind: bytes) -> bool:
    """Whether a content type is JSON's."""
    if kind == JSON:
        return True
    plain = kind.split(b";", 1)[0].strip().lower()
    return plain == JSON or plain.endswith(b"+json")


def require_json(scope: Scope) -> None:
    """Refuse a body that says it is something else than JSON (no content type is taken as JSON)."""
    kind = header(scope, b"content-type")
    if kind is None or is_json(kind):
        return
    shown = kind.split(b";", 1)[0].strip().decode("latin-1")
    raise RequestError(415, "unsupported_media_type", f"content type {shown!r} is not application/json", field="content-type")


def parse_json(body: bytes) -> object:
    """The JSON value of a body, or a clear error with the position."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body:
            raise RequestError(400, "bad_json", "the body is empty; expected a JSON object") from error
        raise RequestError(400, "bad_json", f"the body is not JSON: {error}") from error


def route_path(scope: Scope) -> str:
    """The path below the prefix under which Serve mounts the application."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        path = path[len(root) :]
    return path or "/"


Handler = Callable[[Scope, Receive], Awaitable[Response]]
SocketHandler = Callable[[Socket], Awaitable[None]]


class Application:
    """A raw ASGI application with a table of exact routes.

    Subclasses fill `routes` (path → method → handler) and `sockets` (path → handler), and may answer other paths in
    `fallback` and `fallback_socket`.
    """

    def __init__(self) -> None:
        self.routes: dict[str, dict[str, Handler]] = {}
        self.sockets: dict[str, SocketHandler] = {}
        self.meter = Meter()

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Answer `method path` with `handler`; GET answers HEAD too."""
        methods = self.routes.setdefault(path, {})
        methods[method] = handler
        if method == "GET":
            methods["HEAD"] = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (or Serve's start and stop of the application)."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        start, path = perf_counter(), route_path(scope)
        route = path
        try:
            methods = self.routes.get(path) or self.routes.get(path.rstrip("/"))
            if methods is None:
                route = "other"  # of which a client could invent any number
                response = await self.fallback(path, scope, receive)
            else:
                handler = methods.get(scope["method"])
                if handler is None:
                    raise method_not_allowed(scope["method"], path, methods)
                response = await handler(scope, receive)
        except ClientGoneError:
            self.meter.request(route, CLIENT_GONE, perf_counter() - start)
            return
        except Exception as error:
            response = error_response(error, path)
        if scope["method"] == "HEAD":
            response.body = b""
        await response.send(send)
        self.meter.request(route, response.status, perf_counter() - start)

    async def fallback(self, path: str, scope: Scope, receive: Receive) -> Response:
        """Answer a path that is not in the table."""
        raise not_found(path)

    async def fallback_socket(self, path: str, socket: Socket) -> None:
        """Answer a WebSocket at a path that is not in the table."""
        raise not_found(path)

    async def startup(self) -> None:
        """Called once, in the event loop that will serve."""

    async def shutdown(self) -> None:
        """Called once, when no request is left."""

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                await self.startup()
                await send({"type": "lifespan.startup.complete"})
            elif kind == "lifespan.shutdown":
                await self.shutdown()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, socket = route_path(scope), Socket(scope, receive, send)
        try:
            if handler := self.sockets.get(path):
                await handler(socket)
            else:
                await self.fallback_socket(path, socket)
        except SocketClosedError:
            return
        except Exception as error:
            answer = error_response(error, path)
            await socket.fail(answer.status, [(b"content-type", JSON), *(answer.headers or [])], answer.body)


def not_found(path: str) -> RequestError:
    """The 404 of a path."""
    return RequestError(404, "not_found", f"there is nothing at {path!r}; /docs lists what there is")


def method_not_allowed(method: str, path: str, methods: dict[str, Handler]) -> RequestError:
    """The 405 of a path that exists."""
    allowed = ", ".join(sorted(methods))
    return RequestError(
        405,
        "method_not_allowed",
        f"{path!r} takes {allowed}, not {method}",
        headers=[(b"allow", allowed.encode())],
    )
