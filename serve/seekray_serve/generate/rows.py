"""A model of rows or images as an ASGI application."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from seekray.data.values import json_value
from seekray.errors import DataError, UserError
from seekray_serve.batching import Batcher
from seekray_serve.generate.application import GenerationApp, tried
from seekray_serve.generate.openai_api import read_images
from seekray_serve.http import (
    Receive,
    RequestError,
    Response,
    Scope,
    header,
    json_response,
)
from seekray_serve.metrics import Measures
from seekray_serve.options import Limits
from seekray_serve.streaming import unless_gone

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.generator import Generator

CSV, ARROW = b"text/csv", b"application/vnd.apache.arrow.stream"


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
        return [tried(self._made, job) for job in jobs]

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
