"""A generative model as a Serve application: texts by OpenAI's interface, rows and images by our own."""

from __future__ import annotations

import asyncio
import io
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from seekray.data.values import json_value
from seekray.errors import DataError, SeekrayError, UserError
from seekray_serve import generation_docs
from seekray_serve.batching import Batcher
from seekray_serve.engine.scheduler import EngineThread, Ticket
from seekray_serve.http import (
    HTML,
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
from seekray_serve.metrics import Measures, TextCounts
from seekray_serve.openai_api import Asked, Writer, embeddings, read, read_embeddings, read_images
from seekray_serve.openapi import listed
from seekray_serve.options import Limits
from seekray_serve.replica import deployed
from seekray_serve.streaming import EventStream, unless_gone
from seekray_serve.versions import ModelApplication

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.serve import Application as ServeApplication

    from seekray.generator import Generator

CSV, ARROW = b"text/csv", b"application/vnd.apache.arrow.stream"


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
        return json_response(generation_docs.describe(self.generator, self.endpoint, self.example))

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
        return json_response(generation_docs.document(self.generator, self.endpoint, self.example, paths, root))

    async def docs(self, scope: Scope, receive: Receive) -> Response:
        """The documentation page."""
        page = generation_docs.page(self.generator, self.endpoint, self.example, scope.get("root_path", ""))
        return Response(page, content_type=HTML)


class TextApp(GenerationApp):
    """A model of texts. Requests share one engine: each step gives every text its next token."""

    endpoint = "/v1/completions"

    def __init__(self, generator: Generator, limits: Limits | None = None) -> None:
        super().__init__(generator, limits)
        from seekray.models.text_engine import ROWS

        self.schema: Any = generator.schema  # of texts: a tokenizer, a template
        rows = min(ROWS, self.limits.max_batch_rows)
        queued = self.limits.max_queued_requests
        room = self.limits.max_cached_tokens or None
        self.engine = EngineThread(lambda: generator.engine(rows, room), rows=rows, max_queued=queued)
        self._words, self.counts = dict[int, str](), TextCounts()
        self.add("POST", "/v1/completions", self.completions)
        self.add("POST", "/v1/chat/completions", self.chat)
        self.add("POST", "/v1/embeddings", self.embeddings)
        self.embedder: Batcher[list[Any], list[Any]] = Batcher(
            lambda jobs: [_tried(generator.embed, job) for job in jobs], max_rows=1, max_queued=queued
        )

    @property
    def example(self) -> dict[str, Any]:
        """A request that was answered when the bundle was saved."""
        requests = self.generator.sample.get("requests") or [{"prompts": [""]}]
        first = dict(requests[0])
        return {"model": self.generator.name, "prompt": first.pop("prompts")[0], "max_tokens": 16, **first}

    async def startup(self) -> None:
        """Make a few tokens, so that the first caller does not pay for first times."""
        ticket = self.engine.submit(self.generator.jobs(**{**_request(self.example), "max_tokens": 4}))
        while await ticket.pieces():
            pass

    async def shutdown(self) -> None:
        """Let the threads go."""
        self.engine.close()
        self.embedder.close()

    def measures(self) -> Measures:
        """Tokens, texts, what the engine says of its cache, and the time to the first token."""
        return self.counts.measures(self.load(), self.engine.counters())

    def load(self) -> dict[str, int]:
        """Texts that wait for a row, texts that are being made, tokens since the start, and the engine's own counters."""
        queued = self.engine.queued
        about = {"queued": queued, "running": self.engine.texts - queued, "tokens": self.engine.tokens}
        return self.engine.counters() | about

    async def completions(self, scope: Scope, receive: Receive) -> Response:
        """OpenAI's `/v1/completions`."""
        return await self._answer(read(await self.body(scope, receive), self.generator.name, chat=False), receive)

    async def chat(self, scope: Scope, receive: Receive) -> Response:
        """OpenAI's `/v1/chat/completions`, for a model that has a chat template."""
        body = await self.body(scope, receive)
        if self.schema.chat_template is None:
            raise RequestError(
                400,
                "no_chat_template",
                f"{self.generator.name!r} has no chat template in its bundle, so it cannot read messages; "
                "ask /v1/completions, or train with data.text.chat_template",
                field="messages",
            )
        return await self._answer(read(body, self.generator.name, chat=True), receive)

    async def embeddings(self, scope: Scope, receive: Receive) -> Response:
        """OpenAI's `/v1/embeddings`: the mean of a text's last states."""
        texts, packed = read_embeddings(await self.body(scope, receive), self.generator.name, self.limits.max_rows)
        found = await unless_gone(receive, self.embedder.submit(texts, 1))
        return Response(embeddings(found, packed, self.about))

    async def _answer(self, asked: Asked, receive: Receive) -> Response:
        # In a thread, since a long prompt takes long to encode.
        jobs = await asyncio.get_running_loop().run_in_executor(None, self._jobs, asked)
        if len(jobs) > self.limits.max_rows:
            raise DataError(f"{len(jobs)} texts asked for, at most {self.limits.max_rows} a request", field="n")
        prompts = sum(len(job.prompt) for job in jobs if job.sample == 0)
        start = time.perf_counter()
        ticket = self.engine.submit(jobs)
        self.counts.prompt_tokens += prompts
        writer = Writer(asked, self.about, self._word, prompts, len(jobs))
        try:
            if not asked.stream:
                return Response(await unless_gone(receive, self._whole(ticket, writer, start)))
            # An error, such as a prompt that is too long, is told with its status before a stream begins.
            first = await unless_gone(receive, ticket.pieces())
            self.counts.first_token.observe(time.perf_counter() - start)
        except BaseException:
            ticket.cancel()
            raise
        return EventStream(_events(ticket, writer, first), receive, ticket.cancel, self.endpoint)

    async def _whole(self, ticket: Ticket, writer: Writer, start: float) -> bytes:
        pieces = await ticket.pieces()
        self.counts.first_token.observe(time.perf_counter() - start)
        while pieces:
            writer.keep(pieces)
            pieces = await ticket.pieces()
        return writer.whole()

    def _jobs(self, asked: Asked) -> list[Any]:
        request = dict(asked.request)
        if asked.chat:
            request["prompts"] = [self.schema.encode_chat(asked.messages)]
            request.setdefault("max_tokens", self.schema.context_length)
        return self.generator.jobs(**request)

    def _word(self, token: int) -> str:
        if token not in self._words:
            tokenizer = self.schema.tokenizer
            self._words[token] = tokenizer.decode([token]) or tokenizer.token_of(token)
        return self._words[token]


async def _events(ticket: Ticket, writer: Writer, first: Sequence[Any]) -> AsyncIterator[bytes]:
    pieces = first
    while pieces:
        if events := writer.events(pieces):
            yield events
        pieces = await ticket.pieces()
    yield writer.last()


class RowApp(GenerationApp):
    """A model of rows or images, one request after another."""

    endpoint = "/v1/generate"

    def __init__(self, generator: Generator, limits: Limits | None = None) -> None:
        super().__init__(generator, limits)
        self.batcher: Batcher[dict[str, Any], pa.Table] = Batcher(
            self._run, max_rows=1, max_queued=self.limits.max_queued_requests
        )
        self.add("POST", "/v1/generate", self.generate)
        if generator.task == "images":
            self.add("POST", "/v1/images/generations", self.images)

    @property
    def example(self) -> dict[str, Any]:
        """A request that was answered when the bundle was saved."""
        requests = self.generator.sample.get("requests") or [{"rows": 1}]
        return dict(requests[0])

    async def startup(self) -> None:
        """Make the sample's rows, so that the first caller does not pay for first times."""
        await self.batcher.submit(self.example, 1)

    async def shutdown(self) -> None:
        """Let the worker thread go."""
        self.batcher.close()

    def measures(self) -> Measures:
        """Requests, and what waits."""
        return Measures({}, self.batcher.measures().gauges)

    def load(self) -> dict[str, int]:
        """Requests that wait, and those that were answered."""
        return {"queued": self.batcher.queued, "requests": self.batcher.rows}

    async def generate(self, scope: Scope, receive: Receive) -> Response:
        """`{"rows": n, "where": {column: value}, "seed": s}` → rows as JSON, CSV or Arrow, by the Accept header."""
        body = await self.body(scope, receive)
        if not isinstance(body, dict):
            raise DataError(f"the body is {type(body).__name__}, expected an object like {orjson.dumps(self.example).decode()}")
        rows = body.get("rows", 1)
        if isinstance(rows, int) and rows > self.limits.max_rows:
            raise DataError(f"{rows} rows asked for, at most {self.limits.max_rows} a request; first goes on", field="rows")
        self.generator.request(body)  # wrong before it waits
        table = await unless_gone(receive, self.batcher.submit(body, 1))
        return self._written(table, header(scope, b"accept") or b"")

    async def images(self, scope: Scope, receive: Receive) -> Response:
        """OpenAI's `/v1/images/generations`; the prompt says the condition."""
        schema: Any = self.generator.schema
        high, wide = schema.subject.state["size"]
        name, most = self.generator.name, self.limits.max_rows
        request = read_images(await self.body(scope, receive), name, schema.conditions, f"{wide}x{high}", most)
        try:
            self.generator.request(request)
            table = await unless_gone(receive, self.batcher.submit(request, 1))
        except UserError as error:
            if not isinstance(error, RequestError):  # a condition that cannot be, in the words of the caller's interface
                error.field = error.field if error.field == "seed" else "prompt"
            raise
        made = [{"b64_json": json_value(image)} for image in table.column(schema.subject.name).to_pylist()]
        return json_response({"created": int(time.time()), "data": made, **self.about})

    def _run(self, jobs: Sequence[dict[str, Any]]) -> list[pa.Table | Exception]:
        return [_tried(self._made, job) for job in jobs]

    def _made(self, request: dict[str, Any]) -> pa.Table:
        return self.generator.generate(**request)

    def _written(self, table: pa.Table, accept: bytes) -> Response:
        from seekray.generator import json_rows

        about = [(f"seekray-{key}".encode(), str(value).encode()) for key, value in self.about.items()]
        if ARROW in accept:
            import pyarrow as pa

            buffer = io.BytesIO()
            with pa.ipc.new_stream(buffer, table.schema) as writer:
                writer.write_table(table)
            return Response(buffer.getvalue(), content_type=ARROW, headers=about)
        if CSV in accept:
            from pyarrow import csv

            buffer = io.BytesIO()
            csv.write_csv(table, buffer)
            return Response(buffer.getvalue(), content_type=CSV, headers=about)
        return json_response({"rows": json_rows(table), **self.about})


def _tried(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` gives, or the error that its request deserves."""
    try:
        return work(*given)
    except SeekrayError as error:
        return error


def _request(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example's body as a generator's request."""
    return {"prompts": [example["prompt"]]} | {k: v for k, v in example.items() if k not in ("model", "prompt")}


def load(bundle: str, limits: Limits, *, name: str, version: str | None) -> GenerationApp:
    """The application of a bundle folder."""
    from seekray.generator import Generator
    from seekray.models.family import textual

    generator = Generator.load(bundle, name=name, version=version)
    return (TextApp if textual(generator.family) else RowApp)(generator, limits)


def build(args: Mapping[str, Any]) -> ServeApplication:
    """The Serve application of one model, for `serve deploy` (`import_path: seekray_serve.generation:build`).

    args: see `replica.deployed`.
    """
    return deployed(args, load)
