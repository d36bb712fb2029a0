"""A model of texts as an ASGI application, by OpenAI's interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seekray.errors import DataError
from seekray_serve.batching import Batcher
from seekray_serve.engine.scheduler import EngineThread, Ticket
from seekray_serve.generate.application import GenerationApp, tried
from seekray_serve.generate.openai_answers import Writer, embeddings
from seekray_serve.generate.openai_api import Asked, read, read_embeddings
from seekray_serve.http import (
    Receive,
    RequestError,
    Response,
    Scope,
)
from seekray_serve.metrics import Measures, TextCounts
from seekray_serve.options import Limits
from seekray_serve.streaming import EventStream, unless_gone

if TYPE_CHECKING:
    from seekray.generator import Generator


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
            lambda jobs: [tried(generator.embed, job) for job in jobs], max_rows=1, max_queued=queued
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
        writer = Writer(asked, self.about, self._word, prompts, self._begins(asked, len(jobs)))
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

    def _begins(self, asked: Asked, texts: int) -> list[str]:
        """What is told before each text: its prompt, where that was asked for."""
        if not asked.echo:
            return [""] * texts
        n, decode = asked.request.get("n", 1), self.schema.tokenizer.decode
        return [p if isinstance(p, str) else decode(p) for p in asked.request["prompts"] for _ in range(n)]

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


def _request(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example's body as a generator's request."""
    return {"prompts": [example["prompt"]]} | {k: v for k, v in example.items() if k not in ("model", "prompt")}
