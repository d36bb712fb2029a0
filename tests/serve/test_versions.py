"""A model replaced while it answers, without Ray: versions, what may not take over, and memory."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from small_lm import write_bundle
from tests.serve.conftest import Client, FakePredictor
from tests.serving import rewritten

from seekray.errors import CorruptError
from seekray_serve import generation, prediction
from seekray_serve.following import Follower, Registry, follow_arguments, settings_of
from seekray_serve.options import Limits
from seekray_serve.versions import Versions, checked

ROW = {"alcohol": 13.0, "ash": 2.5, "colour": "red"}


def version_of(number: str) -> FakePredictor:
    """A predictor whose classes say its version."""
    made = FakePredictor(classes=[f"{name}{number}" for name in "abc"])
    made.version = number
    return made


def test_every_answer_is_wholly_of_one_version_and_old_ones_go() -> None:
    """Requests that run, and wait, while the version changes end on the one that they began with."""
    gone: list[weakref.ref[Any]] = []

    async def main() -> dict[str, int]:
        versions = Versions(prediction.PredictionApp(version_of("0")))
        await versions.startup()
        client, seen, stop = Client(versions, "/wine"), dict[str, int](), asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                answer = await client("POST", "/v1/predict", {"rows": [ROW, ROW]})
                body = answer.json()
                assert answer.status == 200, body
                assert {p[1:] for p in body["predictions"]} == {body["version"]}
                assert all(name[1:] == body["version"] for row in body["probabilities"] for name in row)
                seen[body["version"]] = seen.get(body["version"], 0) + 1

        clients = [asyncio.create_task(ask()) for _ in range(8)]
        for number in range(1, 101):
            gone.append(weakref.ref(versions.current.loaded))
            gone.append(weakref.ref(versions.current))
            await versions.replace(prediction.PredictionApp(version_of(str(number))))
            await asyncio.sleep(0.002)
        stop.set()
        await asyncio.gather(*clients)
        await asyncio.sleep(0.05)
        await versions.shutdown()
        return seen

    seen = asyncio.run(main())
    assert len(seen) > 30  # a busy machine answers fewer between two flips
    assert [ref for ref in gone if ref() is not None] == []
    assert sum(thread.name.startswith("forward") for thread in threading.enumerate()) <= 1


def test_a_running_text_ends_on_its_version(tmp_path: Path) -> None:
    old, new = write_bundle(tmp_path / "old", context_length=1024), write_bundle(tmp_path / "new", num_layers=1)
    body = {"prompt": "abc", "max_tokens": 900, "min_tokens": 900, "seed": 1, "stream": True}

    def load(bundle: Path, version: str) -> Any:
        return generation.load(str(bundle), Limits(), name="chat", version=version)

    async def main() -> None:
        versions = Versions(checked(load(old, "1")))
        await versions.startup()
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        engine = versions.current.engine
        events: list[dict[str, Any]] = []

        async def stream() -> None:
            async def receive() -> Any:
                if not sent:
                    sent.append(1)
                    return {"type": "http.request", "body": json.dumps(body).encode()}
                return await asyncio.Future()

            async def send(message: Any) -> None:
                for line in message.get("body", b"").split(b"\n\n"):
                    if line.startswith(b"data: {"):
                        events.append(json.loads(line[6:]))
                        if not first.done():
                            first.set_result(None)

            sent: list[int] = []
            scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
            await versions(scope, receive, send)

        running = asyncio.create_task(stream())
        await first
        await versions.replace(checked(load(new, "2")))
        answer = await Client(versions)("POST", "/v1/completions", {"prompt": "abc", "max_tokens": 2})
        assert answer.json()["version"] == "2"
        assert engine._thread.is_alive()
        await running
        assert {event["version"] for event in events} == {"1"}
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        alone = await Client(load(old, "1"))("POST", "/v1/completions", {**body, "stream": False})
        assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == alone.json()["choices"][0]["text"]
        await asyncio.to_thread(engine._thread.join, 5)
        assert not engine._thread.is_alive()  # the old version's engine has ended with its last text
        await versions.shutdown()

    asyncio.run(main())


class Alias:
    """What a registry says: the version that an alias means now, and its bundle."""

    def __init__(self, **bundles: Path) -> None:
        self.bundles, self.now = bundles, min(bundles)
        self.error: str | None = None

    def __call__(self) -> Any:
        async def answer() -> dict[str, Any]:
            if self.error:
                return {"error": self.error}
            return {"version": self.now.removeprefix("v"), "bundle": str(self.bundles[self.now])}

        return answer()


def test_a_version_that_may_not_take_over_never_answers_and_it_is_said_why(bundles: dict[str, Path], tmp_path: Path) -> None:
    wrong = rewritten(bundles["digits2"], tmp_path / "wrong", lambda s: s["answers"]["prediction"].reverse())
    broken = rewritten(bundles["digits2"], tmp_path / "broken", lambda s: None)
    (broken / "model.safetensors").write_bytes(b"x")
    alias = Alias(v1=bundles["digits1"], v2=bundles["digits2"], v3=wrong, v4=broken, v5=bundles["wine"])
    said: list[dict[str, Any]] = []
    loads: list[str] = []

    def load(bundle: str, version: str) -> Any:
        loads.append(version)
        return prediction.load(bundle, Limits(), name="digits", version=version)

    async def main() -> None:
        follower = Follower("digits", {"model": "digits", "alias": "champion"}, load, alias, said.append)
        versions = Versions(load(str(bundles["digits1"]), "1"))
        await versions.startup()
        client = Client(versions)
        rows = {"rows": json.loads((bundles["digits1"] / "sample.json").read_text())["rows"][:1]}

        async def answers() -> str:
            return (await client("POST", "/v1/predict", rows)).json()["version"]

        for moved_to, expected, reason in (
            ("v1", "1", None),
            ("v2", "2", None),
            (
                "v3",
                "2",
                "version 3 does not take over: its answers are not those kept in its bundle: row 0, column 'prediction'",
            ),
            ("v4", "2", "version 4 does not take over: bundle "),
            ("v5", "2", "version 5 does not take over: features are others (alcalinity"),
            ("v1", "1", None),
        ):
            alias.now = moved_to
            for _ in range(3):
                await follower.step(versions)
            assert await answers() == expected
            assert said[-1]["version"] == expected
            assert (said[-1]["problem"] or "").startswith(reason or ""), said[-1]
            assert bool(said[-1]["problem"]) is bool(reason)
        alias.error = "the tracking server does not answer"
        await follower.step(versions)
        assert (await answers(), said[-1]["problem"]) == ("1", alias.error)
        await versions.shutdown()

    asyncio.run(main())
    assert loads == ["1", "2", "3", "4", "5", "1"]  # what was refused is not tried again


def test_a_replica_whose_own_version_answers_otherwise_does_not_start(bundles: dict[str, Path], tmp_path: Path) -> None:
    wrong = rewritten(bundles["wine"], tmp_path / "wrong", lambda s: s["answers"]["prediction"].reverse())
    with pytest.raises(CorruptError, match="not those kept in its bundle"):
        checked(prediction.load(str(wrong), Limits(), name="wine", version="1"))
    chat = write_bundle(tmp_path / "chat")
    lying = rewritten(chat, tmp_path / "lying", lambda s: s["answers"][0][0].update(text="another"))
    checked(generation.load(str(chat), Limits(), name="chat", version="1"))
    with pytest.raises(CorruptError, match="column 'text'"):
        checked(generation.load(str(lying), Limits(), name="chat", version="1"))


def test_a_dead_server_is_told_and_no_password_is_written_down(tmp_path: Path) -> None:
    from seekray.settings import read_settings

    where = read_settings({"SEEKRAY_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    follow = follow_arguments("digits", "champion", where)
    assert settings_of(follow) == where
    assert "does not answer" in Registry().current(follow)["error"]
    secret = read_settings({"SEEKRAY_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://me:password@127.0.0.1:9"})
    assert "password" not in json.dumps(follow_arguments("digits", "champion", secret))
