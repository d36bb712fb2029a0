"""Keys: made once, kept as a hash, asked for by the replica itself, ended without a restart."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seekray.cli.keys import app
from seekray.errors import ModelNotFoundError, UserError
from seekray.settings import read_settings
from seekray_serve import auth
from seekray_serve.auth import Guard, guarded
from seekray_serve.http import Application, json_response
from seekray_serve.keys import KeyStore, digest, lifetime, operators_key
from seekray_serve.lifecycle.consent import auth_of, with_auth


class Echo(Application):
    """Answers everything, and counts."""

    seen = 0

    async def fallback(self, path: str, scope: Any, receive: Any) -> Any:
        self.seen += 1
        return json_response({"path": path})


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(str(tmp_path / "storage"))


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def ask(guard: Any, client: Any, *requests: tuple[str, dict[str, str]]) -> list[Any]:
    """Answers to (path, headers) by an application that has started up."""

    async def main() -> list[Any]:
        guard.refresh()
        return [await client(guard, "/wine")("POST", path, {}, headers) for path, headers in requests]

    return asyncio.run(main())


def test_a_key_is_shown_once_and_kept_as_its_hash(store):
    key, text = store.create("laptop")
    assert text.startswith(f"seekray_{key.id}_")
    assert len(text.split("_", 2)[2]) == 43  # 256 bits
    folder = Path(store.storage.path("keys"))
    kept = (folder / f"{key.id}.json").read_text()
    assert text not in kept
    assert text.split("_", 2)[2] not in kept
    assert json.loads(kept)["sha256"] == digest(text).hex()
    assert os.stat(folder).st_mode & 0o077 == 0
    with pytest.raises(UserError, match="already"):
        store.create("laptop")
    store.revoke("laptop")
    assert store.read()[key.id].state(time.time()) == "revoked"
    store.create("laptop")
    with pytest.raises(ModelNotFoundError, match="no live key 'phone'; live: laptop"):
        store.revoke("phone")
    for name in ("", "a b", "../x", "x" * 65):
        with pytest.raises(UserError):
            store.create(name)


@pytest.mark.parametrize(("text", "seconds"), [("45m", 2700), ("12h", 43200), ("30d", 2592000), (None, None)])
def test_lifetimes(text, seconds):
    assert lifetime(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0d", "-1d", "3w", "1e9d"])
def test_lifetimes_that_cannot_be(text):
    with pytest.raises(UserError, match="--expires"):
        lifetime(text)


def test_who_is_let_in(store, client, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray's own")
    key, text = store.create("laptop")
    _, old = store.create("old", lifetime_s=-1)
    app = Echo()
    guard = Guard(app, store, required=False)
    id_, secret = key.id, text.split("_", 2)[2]
    wrong = [
        {}, bearer(""), bearer("none"), bearer(text[:-1]), bearer(text + "x"), bearer(f"seekray_00000000_{secret}"),
        bearer(f"seekray_{id_}_{secret[::-1]}"), {"authorization": f"Basic {text}"}, {"authorization": text}, bearer("é_ü_ö"),
        bearer(key.sha256), bearer(old), bearer("ray's own"), {"x-api-key": text}, bearer("_" + id_ + "_"),
    ]  # fmt: skip
    answers = ask(guard, client, *(("/v1/predict", headers) for headers in wrong))
    assert [a.status for a in answers] == [401] * len(wrong)
    assert app.seen == 0
    assert {a.headers["www-authenticate"] for a in answers} == {"Bearer"}
    assert answers[0].error["code"] == "no_api_key"
    assert [a.error["code"] for a in answers].count("no_api_key") == 2  # and the one under another name
    assert "expired" in answers[11].error["message"]
    assert all("old" not in a.error["message"] and "laptop" not in a.error["message"] for a in answers[:11])
    right = [bearer(text), {"authorization": f"bearer  {text} "}, bearer(operators_key("ray's own"))]
    assert [a.status for a in ask(guard, client, *(("/v1/predict", headers) for headers in right))] == [200] * 3


def test_each_interfaces_own_form_of_401(store, client):
    store.create("laptop")
    guard = Guard(Echo(), store, required=False)
    paths = ("/v1/chat/completions", "/v2/models/wine/infer", "/v2/health/live", "/v2/health/ready")
    openai, protocol, live, ready = ask(guard, client, *((path, {}) for path in paths))
    assert openai.status == protocol.status == 401
    assert openai.json()["error"].keys() == {"message", "type", "param", "code"}
    assert openai.json()["error"]["type"] == "invalid_request_error"
    assert isinstance(protocol.json()["error"], str)
    assert (live.status, ready.status) == (200, 200)  # what load balancers ask


def test_without_any_key_loopback_is_open_and_required_is_not(store, client):
    asked = ("/v1/predict", {})
    assert ask(Guard(Echo(), store, required=False), client, asked)[0].status == 200
    assert ask(Guard(Echo(), store, required=True), client, asked)[0].status == 401
    assert guarded(app := Echo(), None) is app
    # The last key that ends opens nothing.
    key, text = store.create("only")
    store.revoke(key.id)
    assert [a.status for a in ask(Guard(Echo(), store, required=False), client, asked, (asked[0], bearer(text)))] == [401, 401]


def test_keys_that_cannot_be_read_let_nobody_in(store, client):
    store.create("laptop")
    guard = Guard(Echo(), store, required=False)

    async def before_they_are_read() -> Any:
        return await client(guard)("GET", "/")

    assert asyncio.run(before_they_are_read()).status == 401
    next(Path(store.storage.path("keys")).glob("*.json")).write_text("{")

    async def start() -> None:
        async def receive() -> dict[str, str]:
            return {"type": "lifespan.startup"}

        await guard({"type": "lifespan"}, receive, None)

    with pytest.raises(ValueError):
        asyncio.run(start())


def test_a_running_application_takes_new_keys_and_refuses_ended_ones(store, client, monkeypatch):
    monkeypatch.setattr(auth, "REFRESH_S", 0.02)
    guard = Guard(Echo(), store, required=True)

    async def until(status: int, headers: dict[str, str]) -> None:
        async with asyncio.timeout(5):
            while (await client(guard)("GET", "/", None, headers)).status != status:
                await asyncio.sleep(0.01)

    async def main() -> None:
        sent: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        done: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        task = asyncio.create_task(guard({"type": "lifespan"}, sent.get, done.put))
        await sent.put({"type": "lifespan.startup"})
        await done.get()
        key, text = store.create("laptop")
        await until(200, bearer(text))
        kept = Path(store.storage.path(f"keys/{key.id}.json"))
        good = kept.read_text()
        kept.write_text("{")  # a storage that fails for a while changes nothing
        await asyncio.sleep(0.1)
        await until(200, bearer(text))
        kept.write_text(good)
        store.revoke("laptop")
        await until(401, bearer(text))
        await sent.put({"type": "lifespan.shutdown"})
        await task

    asyncio.run(main())


def test_a_websocket_is_refused_before_it_opens(store):
    store.create("laptop")
    guard = Guard(Echo(), store, required=False)
    guard.refresh()
    sent: list[Any] = []

    async def main() -> None:
        scope = {"type": "websocket", "path": "/v1/stream", "headers": [], "extensions": {"websocket.http.response": {}}}

        async def send(message: Any) -> None:
            sent.append(message)

        await guard(scope, None, send)

    asyncio.run(main())
    assert sent[0] == {"type": "websocket.http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]}
    assert json.loads(sent[1]["body"])["error"]["code"] == "no_api_key"


def test_beyond_loopback_a_key_or_consent_is_needed(tmp_path):
    settings = read_settings({"SEEKRAY_HOME": str(tmp_path)})
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1"):
        assert auth_of(host, settings, False) == {"keys": settings.storage, "required": False}
    for host in ("0.0.0.0", "::", "10.1.2.3", "box.example", "", "fe80::1"):
        with pytest.raises(UserError, match="--insecure-no-auth"):
            auth_of(host, settings, False)
        assert auth_of(host, settings, True) is None
    store = KeyStore(settings.storage)
    store.create("gone", lifetime_s=-1)
    with pytest.raises(UserError, match="no key"):
        auth_of("0.0.0.0", settings, False)
    store.create("laptop")
    assert auth_of("0.0.0.0", settings, False) == {"keys": settings.storage, "required": True}


def test_what_is_ours_asks_and_what_is_others_stays():
    apps = {
        "wine": {"name": "wine", "import_path": "seekray_serve.prediction:build", "args": {"name": "wine", "auth": "old"}},
        "theirs": {"name": "theirs", "import_path": "theirs:app"},
    }
    found = with_auth(apps, {"keys": "k", "required": True})
    assert found["wine"]["args"] == {"name": "wine", "auth": {"keys": "k", "required": True}}
    assert found["theirs"] is apps["theirs"]
    assert with_auth(apps, None)["wine"]["args"] == {"name": "wine"}


def test_the_command(tmp_path, monkeypatch):
    settings = read_settings({"SEEKRAY_HOME": str(tmp_path)})
    monkeypatch.setattr("seekray.settings.settings", lambda: settings)

    def seekray(*arguments: str) -> Any:
        return json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)

    made = seekray("create", "laptop", "--expires", "1d")
    listed = seekray("list")["keys"]
    assert [(k["id"], k["name"], k["state"]) for k in listed] == [(made["id"], "laptop", "live")]
    assert made["key"] not in json.dumps(listed)
    assert seekray("revoke", made["id"])["state"] == "revoked"
    with pytest.raises(ModelNotFoundError, match="no live key"):
        seekray("revoke", made["id"])
