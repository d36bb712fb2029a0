"""Who may ask: a key is checked in the replica itself, before its application sees the request; no port is a way around.

`Authorization: Bearer seekray_…`, which OpenAI's clients send as their `api_key`. Without any key, and without being told
that one is required, everybody may ask: that is `serve up` on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from seekray_serve.http import Headers, Receive, RequestError, Scope, Send, error_response, header, logger, route_path
from seekray_serve.keys import Key, KeyStore, digest, operators_key, ray_token
from seekray_serve.sockets import Socket

# How long a revoked key may still be taken, and a new one not yet.
REFRESH_S = 2.0
# What load balancers ask; they say whether something answers, and nothing of the models.
OPEN = frozenset(("/v2/health/live", "/v2/health/ready"))
_BEARER = b"bearer "
_NOBODY = Key("", "nobody", "00" * 32, 0.0)

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application behind keys. required: refuse all while there is no key at all; public: paths that ask for none."""

    def __init__(self, app: Asgi, store: KeyStore, *, required: bool, public: frozenset[str] = OPEN) -> None:
        self._app, self._store, self._required, self._public = app, store, required, public
        self._keys: dict[str, tuple[Key, bytes]] = {}
        self._asks = True  # until the keys have been read
        token = ray_token(os.environ)
        self._operator = {"operator": (Key("operator", "operator", "", 0.0), digest(operators_key(token)))} if token else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        kind = scope["type"]
        if kind == "lifespan":
            async with self._kept_fresh():
                await self._app(scope, receive, send)
            return
        if self._asks and (why := self._refusal(scope)) and route_path(scope) not in self._public:
            await _refuse(why, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def refresh(self) -> None:
        """Read the keys anew."""
        found = {id_: (key, bytes.fromhex(key.sha256)) for id_, key in self._store.read().items()}
        self._asks = bool(found) or self._required
        self._keys = found | self._operator

    def _refusal(self, scope: Scope) -> RequestError | None:
        """Why a request is not let in; None where it is."""
        given = header(scope, b"authorization")
        if given is None:
            return _unauthorized("no_api_key", "this endpoint asks for a key: send Authorization: Bearer KEY")
        text = given[len(_BEARER) :].strip().decode("latin-1") if given[: len(_BEARER)].lower() == _BEARER else ""
        # The id only finds the record; whether the secret is right is compared in constant time, for a wrong id too.
        key, kept = self._keys.get(text.split("_", 2)[1] if text.count("_") >= 2 else "", (_NOBODY, bytes(32)))
        if not hmac.compare_digest(digest(text), kept):
            return _unauthorized("invalid_api_key", "the key is not one of this endpoint's")
        if key.revoked is None and (key.expires is None or time.time() < key.expires):
            return None
        return _unauthorized("invalid_api_key", f"the key {key.name!r} is {key.state(time.time())}; ask for a new one")

    @contextlib.asynccontextmanager
    async def _kept_fresh(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.refresh)  # a replica that cannot read them does not start

        async def follow() -> None:
            while True:
                await asyncio.sleep(REFRESH_S)
                try:
                    await loop.run_in_executor(None, self.refresh)
                except Exception as error:  # what was known stays until the storage answers again
                    logger.warning("the keys cannot be read, those known are kept: %s", error)

        task = loop.create_task(follow())
        try:
            yield
        finally:
            task.cancel()


def guarded(app: Asgi, auth: Mapping[str, Any] | None, public: frozenset[str] = frozenset()) -> Asgi:
    """`app` behind the keys that an application's argument `auth` {keys, required} names; without it everybody may ask."""
    if auth is None:
        return app
    return Guard(app, KeyStore(auth["keys"]), required=auth["required"], public=OPEN | public)


def _unauthorized(code: str, message: str) -> RequestError:
    challenge: Headers = [(b"www-authenticate", b"Bearer")]
    return RequestError(401, code, message, field="authorization", headers=challenge)


async def _refuse(why: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    answer = error_response(why, route_path(scope))
    if scope["type"] == "websocket":
        await Socket(scope, receive, send).fail(answer.status, answer.headers or [], answer.body)
        return
    if scope["method"] == "HEAD":
        answer.body = b""
    await answer.send(send)
