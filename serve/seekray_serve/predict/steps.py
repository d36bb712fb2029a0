"""A recurrent model fed step by step: over POST, where each call brings its state, and over a WebSocket, which keeps it.

The state goes to the client with each answer, signed with a key that all replicas of an instance share, so that it can go
on with any of them, and so that nothing but what a replica wrote is ever read as a state.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from seekray.errors import DataError, SeekrayError
from seekray_serve.batching import Batcher
from seekray_serve.http import (
    Receive,
    RequestError,
    Response,
    Scope,
    error_response,
    parse_json,
    read_body,
    require_json,
)
from seekray_serve.options import Limits
from seekray_serve.predict.rows import Answer, Job, RowReader

if TYPE_CHECKING:
    from seekray.predictor import Predictor
    from seekray.stream import Stream
    from seekray_serve.sockets import Socket

_KEY = b"stream-key"
_NAMESPACE = "seekray"
_SIGNATURE = 32  # bytes of a SHA-256


def instance_key() -> bytes:
    """The key with which states are signed: Ray's key-value store keeps it for all replicas, a plain process for itself."""
    import ray

    if not ray.is_initialized():
        return secrets.token_bytes(_SIGNATURE)
    from ray.experimental import internal_kv

    # Whoever comes first decides; nobody overwrites.
    internal_kv._internal_kv_put(_KEY, secrets.token_bytes(_SIGNATURE), overwrite=False, namespace=_NAMESPACE)
    return bytes(internal_kv._internal_kv_get(_KEY, namespace=_NAMESPACE))


class Steps:
    """The streaming endpoints of one model. Calls wait in a queue of their own, one series' step after another."""

    def __init__(self, predictor: Predictor, reader: RowReader, limits: Limits, key: bytes | None = None) -> None:
        self._predictor, self._reader, self._limits, self._key = predictor, reader, limits, key
        self._batcher: Batcher[tuple[Stream, Job, list[Any]], bytes] = Batcher(
            self._run, max_rows=1, max_queued=limits.max_queued_requests
        )

    def close(self) -> None:
        """Let the worker thread go."""
        self._batcher.close()

    async def post(self, scope: Scope, receive: Receive) -> Response:
        """`{"rows": [...], "keys": [...], "state": "..."}`: rows of new steps, and the state that the last call gave.

        A row holds only the steps that are new; `keys` names the rows' series where there are several.
        """
        require_json(scope)
        body = parse_json(await read_body(scope, receive, self._limits.max_body_bytes))
        return Response(await self._answer(self._begun(), body))

    async def talk(self, socket: Socket) -> None:
        """The same body in each message; the state is kept between messages, and a wrong message changes nothing of it."""
        stream = self._begun()
        await socket.accept()
        async for message in socket.messages(self._limits.max_body_bytes):
            try:
                answer = await self._answer(stream, parse_json(message))
            except SeekrayError as error:
                answer = error_response(error).body
            await socket.send(answer)

    def _begun(self) -> Stream:
        from seekray.stream import Stream

        return Stream(self._predictor)

    async def _answer(self, stream: Stream, body: object) -> bytes:
        given = dict(body) if isinstance(body, dict) else {}
        state, keys = given.pop("state", None), given.pop("keys", None)
        job = self._reader.read(given)
        keys = list(range(job.count)) if keys is None else keys
        if not isinstance(keys, list) or len(keys) != job.count:
            raise DataError(f"keys must be a list that names the series of each of the {job.count} rows", field="keys")
        if state is not None:
            stream.loads(self._opened(state))
        return await self._batcher.submit((stream, job, keys), 1)

    def _run(self, jobs: Sequence[tuple[Stream, Job, list[Any]]]) -> list[bytes | Exception]:
        return [self._step(*job) for job in jobs]

    def _step(self, stream: Stream, job: Job, keys: list[Any]) -> bytes | Exception:
        try:
            columns = job.columns if job.columns is not None else self._reader.columns(job.rows or [])
            found = stream.predict(columns, keys)
            answer = Answer(found.predictions, found.probabilities, 0, job.count, found.quantiles)
            return orjson.dumps({**answer.as_json(self._predictor), "state": self._sealed(stream.dumps())})
        except Exception as error:
            return error

    def _signature(self, data: bytes) -> bytes:
        if self._key is None:
            self._key = instance_key()
        return hmac.digest(self._key, data, "sha256")

    def _sealed(self, data: bytes) -> str:
        return base64.b64encode(self._signature(data) + data).decode()

    def _opened(self, state: object) -> bytes:
        try:
            sealed = base64.b64decode(state, validate=True) if isinstance(state, str) else b""
        except (binascii.Error, ValueError):
            sealed = b""
        data = sealed[_SIGNATURE:]
        if not hmac.compare_digest(sealed[:_SIGNATURE], self._signature(data)):
            raise RequestError(
                400,
                "bad_state",
                "the state is not one that this server gave, or it was changed; send it as it came, or begin without one",
                field="state",
            )
        return data
