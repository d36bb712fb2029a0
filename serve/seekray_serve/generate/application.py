"""What the applications of generative models share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from seekray.errors import SeekrayError
from seekray_serve.generate import documents
from seekray_serve.http import (
    HTML,
    Receive,
    Response,
    Scope,
    json_response,
    parse_json,
    read_body,
    require_json,
)
from seekray_serve.openapi import listed
from seekray_serve.options import Limits
from seekray_serve.versions import ModelApplication

if TYPE_CHECKING:
    from seekray.generator import Generator


class GenerationApp(ModelApplication, ABC):
    """What the applications of generative models share; they know nothing of Ray. endpoint: the path to try."""

    endpoint: str

    def __init__(self, generator: Generator, limits: Limits | None = None) -> None:
        super().__init__()
        self.generator = self.loaded = generator
        self.limits = limits or Limits()
        self.about = {"model": generator.name, "version": generator.version}
        self.add("GET", "/v1/model", self.describe)
        self.add("GET", "/v1/models", self.models)
        self.add("GET", f"/v1/models/{generator.name}", self.model)
        self.add("GET", "/healthz", self.health)
        self.add("GET", "/openapi.json", self.openapi)
        self.add("GET", "/docs", self.docs)
        self.add("GET", "/", self.docs)

    @property
    @abstractmethod
    def example(self) -> dict[str, Any]:
        """A body for the endpoint that the model can answer."""

    @abstractmethod
    def load(self) -> dict[str, int]:
        """What is waiting and what was done."""

    async def body(self, scope: Scope, receive: Receive) -> Any:
        """A request's JSON value."""
        require_json(scope)
        return parse_json(await read_body(scope, receive, self.limits.max_body_bytes))

    async def describe(self, scope: Scope, receive: Receive) -> Response:
        """What the catalogue says of the model."""
        return json_response(documents.describe(self.generator, self.endpoint, self.example))

    async def models(self, scope: Scope, receive: Receive) -> Response:
        """The one model here, in the form that OpenAI's clients list."""
        return json_response({"object": "list", "data": [listed(self.generator.name)]})

    async def model(self, scope: Scope, receive: Receive) -> Response:
        """The same, asked for by name."""
        return json_response(listed(self.generator.name))

    async def health(self, scope: Scope, receive: Receive) -> Response:
        """This replica serves, and what."""
        return json_response({"status": "ok", **self.about, **self.load()})

    async def openapi(self, scope: Scope, receive: Receive) -> Response:
        """The OpenAPI document."""
        paths = [(m, path) for path, methods in self.routes.items() for m in methods if m != "HEAD"]
        root = scope.get("root_path", "")
        return json_response(documents.document(self.generator, self.endpoint, self.example, paths, self.limits.max_rows, root))

    async def docs(self, scope: Scope, receive: Receive) -> Response:
        """The documentation page."""
        page = documents.page(self.generator, self.endpoint, self.example, scope.get("root_path", ""))
        return Response(page, content_type=HTML)


def tried(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` gives, or the error that its request deserves."""
    try:
        return work(*given)
    except SeekrayError as error:
        return error
