"""Steps that come one by one: the unchanged `websockets` client against real sockets, and the state that goes along."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.serving import Server, call
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from seekray.data.options import Data
from seekray.data.tables.fitting import fit
from seekray.models import get_family
from seekray.predictor import Predictor
from seekray_serve.front import FrontApp
from seekray_serve.options import Limits
from seekray_serve.prediction import PredictionApp

KEY = b"k" * 32


def recurrent(task: str = "labelling", **model: Any) -> Predictor:
    """An LSTM over two channels in memory, with random weights."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sequences = [[[float(v) for v in rng.normal(size=2)] for _ in range(6)] for _ in range(8)]
    targets: Any = [["up", "down"] * 3] * 8 if task == "labelling" else ["a", "b"] * 4
    data = Data.model_validate({"source": "-", "target": "y", "features": {"x": {"kind": "sequence"}}})
    schema = fit(pa.table({"x": sequences, "y": targets}), data, task)
    family = get_family("rec")
    config = family.Config.model_validate({"hidden_size": 8, "cell": "lstm", "num_layers": 2, **model})
    info = {"name": "wave", "family": "rec", "model": config.model_dump()}
    return Predictor(family.build(config, schema), schema, info, {}, name="wave", version="1", bundle_hash="h")


STEPS = [[float(v) for v in step] for step in np.random.default_rng(1).normal(size=(9, 2))]


@pytest.fixture(scope="module")
def replicas() -> Iterator[tuple[str, str]]:
    """WebSocket addresses of two replicas of an instance."""
    with Server(PredictionApp(recurrent(), key=KEY)) as first, Server(PredictionApp(recurrent(), key=KEY)) as second:
        yield first.url, second.url


def at(url: str, path: str = "/v1/stream") -> Any:
    return connect(url.replace("http://", "ws://") + path, max_size=None)


def ask(socket: Any, **body: Any) -> Any:
    socket.send(json.dumps(body))
    return json.loads(socket.recv(timeout=10))


@pytest.mark.parametrize("task", ["classification", "labelling"])
def test_each_answer_is_the_whole_sequences_so_far(task):
    predictor = recurrent(task)
    with Server(PredictionApp(predictor, key=KEY)) as server, at(server.url) as socket:
        for i, step in enumerate(STEPS):
            answer = ask(socket, rows=[{"x": [step]}])
            whole = predictor.predict({"x": [STEPS[: i + 1]]})
            expected, found = {k: v[0] for k, v in (whole.probabilities or {}).items()}, answer["probabilities"][0]
            if task == "labelling":  # the new step's own
                assert answer["predictions"][0] == whole.predictions[0][-1:]
                expected, found = {k: v[-1] for k, v in expected.items()}, {k: v[0] for k, v in found.items()}
            else:
                assert answer["predictions"] == whole.predictions
            assert found == pytest.approx(expected, abs=1e-6)
            assert (answer["model"], answer["version"]) == ("wave", "1")


def test_another_replica_goes_on_from_the_state_and_so_does_a_post(replicas):
    labels = []
    state = None
    for i, step in enumerate(STEPS):
        body = {"rows": [{"x": [step]}], "keys": ["p"]} | ({"state": state} if state else {})
        if i % 3 == 2:
            status, answer = call(f"{replicas[i % 2]}/v1/stream", body)
            assert status == 200
        else:
            with at(replicas[i % 2]) as socket:
                answer = ask(socket, **body)
        state = answer["state"]
        labels += answer["predictions"][0]
    assert labels == recurrent().predict({"x": [STEPS]}).predictions[0]


def test_several_series_of_one_connection_and_several_connections_at_once(replicas):
    def talk(number: int) -> list[Any]:
        with at(replicas[0]) as socket:
            found = [ask(socket, rows=[{"x": [s]}, {"x": [STEPS[-1 - i]]}], keys=["a", number]) for i, s in enumerate(STEPS)]
        return [[answer["predictions"][row][0] for answer in found] for row in (0, 1)]

    whole = recurrent().predict({"x": [STEPS, STEPS[::-1]]}).predictions
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(talk, range(8))) == [whole] * 8


@pytest.mark.parametrize("where", ["signature", "content", "length", "key", "none", "number"])
def test_a_state_that_was_changed_is_refused_and_nothing_is_lost(replicas, where):
    with at(replicas[0]) as socket:
        state = ask(socket, rows=[{"x": [STEPS[0]]}])["state"]
        raw = bytearray(base64.b64decode(state))
        if where in ("signature", "content"):
            raw[3 if where == "signature" else -3] ^= 1
        wrong: Any = {
            "length": base64.b64encode(raw[:-1]).decode(), "none": "%%%", "number": 7,
            "key": ask_elsewhere(),
        }.get(where, base64.b64encode(raw).decode())  # fmt: skip
        error = ask(socket, rows=[{"x": [STEPS[1]]}], state=wrong)["error"]
        assert (error["code"], error["field"]) == ("bad_state", "state")
        status, answer = call(f"{replicas[1]}/v1/stream", {"rows": [{"x": [STEPS[1]]}], "state": wrong})
        assert (status, answer["error"]["code"]) == (400, "bad_state")
        # A wrong message changes nothing of what the connection has.
        after = ask(socket, rows=[{"x": [STEPS[1]]}])["predictions"][0]
    assert after == recurrent().predict({"x": [STEPS[:2]]}).predictions[0][-1:]


def ask_elsewhere() -> str:
    """The state that a server with another key gives."""
    with Server(PredictionApp(recurrent())) as server:
        return str(call(f"{server.url}/v1/stream", {"rows": [{"x": [STEPS[0]]}]})[1]["state"])


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        ("{", "bad_json", None),
        ("[]", "bad_data", None),
        ('{"rows": [{"x": [[1, "high"]]}]}', "bad_data", "x"),
        ('{"rows": [{"y": [[1, 2]]}]}', "bad_data", "y"),
        ('{"rows": [{"x": [[1, 2]]}], "keys": ["a", "b"]}', "bad_data", "keys"),
        ('{"rows": [{"x": [[1, 2]]}, {"x": [[1, 2]]}], "keys": ["a", "a"]}', "bad_data", None),
    ],
)
def test_a_wrong_message_is_answered_and_the_connection_stays(replicas, message, code, field):
    with at(replicas[0]) as socket:
        socket.send(message)
        error = json.loads(socket.recv(timeout=10))["error"]
        assert (error["code"], error["field"]) == (code, field)
        assert ask(socket, rows=[{"x": [STEPS[0]]}])["predictions"]


def test_addresses_and_models_that_take_no_steps_are_told_as_http():
    with Server(PredictionApp(recurrent(bidirectional=True), key=KEY)) as server:
        for path, status, words in (("/v1/stream", 400, "it also reads from the end"), ("/v1/other", 404, "nothing at")):
            with pytest.raises(InvalidStatus) as refused, at(server.url, path):
                pass
            assert refused.value.response.status_code == status
            assert words in json.loads(refused.value.response.body)["error"]["message"]


def test_a_message_over_the_limit_ends_the_connection_with_its_reason():
    with Server(PredictionApp(recurrent(), Limits(max_body_bytes=1000), key=KEY)) as server, at(server.url) as socket:
        assert ask(socket, rows=[{"x": [STEPS[0]] * 200}])["error"]["code"] == "too_large"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)


class Routed:
    """What stands for the ingress of another cluster: the model under its prefix, and the list of routes."""

    def __init__(self, app: PredictionApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/-/routes":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b'{"/wave": "wave"}'})
            return
        await self.app({**scope, "root_path": "/wave"}, receive, send)


def test_the_front_door_passes_steps_on_where_no_haproxy_does():
    whole = recurrent().predict({"x": [STEPS]}).predictions[0]
    with Server(Routed(PredictionApp(recurrent(), key=KEY))) as ingress, Server(FrontApp(ingress.url)) as front:
        with at(front.url, "/v1/models/wave/stream") as socket:
            assert [ask(socket, rows=[{"x": [step]}])["predictions"][0][0] for step in STEPS] == whole
            socket.send(b"{")
            assert json.loads(socket.recv(timeout=10))["error"]["code"] == "bad_json"
        for path in ("/v1/models/beer/stream", "/beer/v1/stream", "/v1/other"):
            with pytest.raises(InvalidStatus) as refused, at(front.url, path):
                pass
            assert refused.value.response.status_code == 404
        with at(front.url, "/v1/models/wave/stream") as socket:
            ask(socket, rows=[{"x": [STEPS[0]]}])
            # The replica goes: the client is told to go on elsewhere.
            stop = threading.Thread(target=ingress.__exit__, args=(None, None, None))
            stop.start()
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=10)
            stop.join()
