"""Replicas that come, leave and die under load: nothing that a client sees as an error, and streams that end as they should."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from tests.serving import Load, processes, sample, until

from seekray_serve.lifecycle import deploy
from seekray_serve.lifecycle.ready import ModelToServe

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.slow]


def replicas(settings: Any, name: str) -> list[int]:
    return processes(settings, f"ServeReplica:{name}")


def both_there(settings: Any) -> list[str]:
    """Replicas of digits that Serve says to run: one that starts would be no other to ask."""
    from seekray_serve.lifecycle import place
    from seekray_serve.lifecycle.status import describe

    target = place.running(settings, None)
    assert target
    found = [r for d in describe(target)["digits"]["deployments"].values() for r in d["replicas"]]
    return [replica["replica_id"] for replica in found if replica["state"] == "RUNNING"]


def test_a_killed_replica_fails_no_prediction(served, bundles) -> None:
    settings, result = served
    deploy.up([ModelToServe("digits", "1", bundles["digits1"], {"num_replicas": 2})], settings)
    until(lambda: len(replicas(settings, "digits")), 2, timeout_s=30)
    rows = sample(bundles["digits1"])
    url = f"{result['url']}/digits/v1/predict"
    with Load(url, {"rows": rows[:1]}, clients=6) as small, Load(url, {"rows": rows * 5}, clients=2) as large:
        for _ in range(3):
            time.sleep(1)
            until(lambda: len(both_there(settings)), 2, timeout_s=60)
            pids = replicas(settings, "digits")
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(1)
    assert 2**15 < len(json.dumps({"rows": rows * 5})) < 2**17
    assert (small.keys(), large.keys()) == ({"1"}, {"1"})
    assert sum(small.values()) > 1000


def test_a_stream_in_flight_ends_whole_when_settings_change_and_with_an_error_when_its_replica_is_killed(served) -> None:
    openai = pytest.importorskip("openai")
    settings, result = served
    [chat] = [app for app in deploy.status(settings)["models"] if app["name"] == "chat"]
    assert chat["replicas"] == 1
    request: dict[str, Any] = {"model": "chat", "prompt": "abc", "seed": 3, "max_tokens": 1000, "stream": True, "n": 8}
    request["extra_body"] = {"min_tokens": 1000}
    found: dict[str, Any] = {}

    def stream(prefix: str, started: threading.Event) -> None:
        client = openai.OpenAI(base_url=f"{result['url']}{prefix}/v1", api_key="none", max_retries=0)
        try:
            events = []
            for event in client.completions.create(**request):
                events.append(event)
                started.set()
            found[prefix] = events
        except openai.APIError as error:
            found[prefix] = error

    def run(act: Any) -> None:
        found.clear()
        started = [threading.Event(), threading.Event()]
        threads = [threading.Thread(target=stream, args=given) for given in zip(("/chat", ""), started, strict=True)]
        for thread in threads:
            thread.start()
        assert all(event.wait(20) for event in started)
        act()
        for thread in threads:
            thread.join()

    bundle = _bundle(settings, "chat")
    before = replicas(settings, "chat")
    run(lambda: deploy.up([ModelToServe("chat", "1", bundle, {"max_queued_requests": 700})], settings))
    for prefix in ("/chat", ""):
        assert found[prefix][-1].choices[0].finish_reason == "length", found[prefix]
        assert len(found[prefix]) > 100
    until(lambda: set(before) & set(replicas(settings, "chat")), set(), timeout_s=60)
    request["n"] = 100  # of which 16 are made at a time: the streams last until the replica is killed
    [pid] = replicas(settings, "chat")
    run(lambda: os.kill(pid, signal.SIGKILL))
    for prefix in ("/chat", ""):
        ended = found[prefix]
        assert isinstance(ended, openai.APIError), (prefix, len(ended), ended[-1].choices[0].finish_reason)
        assert "ended; ask again" in str(found[prefix])


def _bundle(settings: Any, name: str) -> str:
    from seekray_serve.lifecycle import place

    target = place.running(settings, None)
    assert target
    return str(place.deployed(target)[name]["args"]["bundle"])
