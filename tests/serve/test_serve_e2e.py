"""Real processes: `up`, both doors, Triton's client, hang-ups, a rolling update, autoscaling."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from websockets.sync.client import connect

pytest.importorskip("ray.serve")

from tests import ports
from tests.serving import Load, call, listening, sample, until
from training_kit import bundle_of

from seekray.errors import ClusterError
from seekray_serve.keys import KeyStore, operators_key
from seekray_serve.lifecycle import deploy, instance
from seekray_serve.lifecycle.ready import ModelToServe

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


def test_two_models_answer_at_both_doors(served, bundles):
    _, result = served
    url = result["url"]
    by_name = {model["name"]: model for model in result["models"]}
    assert by_name.keys() == {"digits", "wine", "chat"}
    for name, version, bundle in (("digits", "1", "digits1"), ("wine", "2", "wine")):
        model = by_name[name]
        assert (model["version"], model["state"], model["replicas"]) == (version, "running", 1)
        body = {"rows": sample(bundles[bundle])}
        status, own = call(f"{model['url']}/v1/predict", body)
        assert status == 200
        assert len(own["predictions"]) == len(body["rows"])
        assert call(f"{url}/v1/models/{name}/predict", body) == (200, own)
        status, document = call(f"{model['url']}/openapi.json")
        assert document["servers"] == [{"url": f"/{name}"}]
        assert call(f"{url}/v1/models/{name}")[1]["version"] == version
    status, catalogue = call(f"{url}/v1/models")
    assert [model["name"] for model in catalogue["models"]] == ["chat", "digits", "wine"]
    assert b"<html" in call(f"{url}/")[1]
    for path in ("/v1/models/beer", "/beer/v1/predict", "/v1/models/beer/predict", "/nothing"):
        status, answer = call(url + path)
        assert (status, answer["error"]["code"]) == (404, "not_found")
    assert call(f"{url}/digits/v1/predict", b"{")[0] == 400


@pytest.mark.parametrize("prefix", ["", "/wine"])
def test_tritons_client_unchanged(served, bundles, prefix):
    numpy = pytest.importorskip("numpy")
    triton = pytest.importorskip("tritonclient.http")
    _, result = served
    rows = sample(bundles["wine"])
    client = triton.InferenceServerClient(result["url"].removeprefix("http://") + prefix)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("wine")
    assert client.is_model_ready("wine", "2")
    assert not client.is_model_ready("beer")
    inputs = []
    for feature in client.get_model_metadata("wine")["inputs"]:
        values = numpy.array([row[feature["name"]] for row in rows])
        values = values.astype("f8") if feature["datatype"] == "FP64" else values.astype(object)
        inputs.append(triton.InferInput(feature["name"], list(values.shape), feature["datatype"]))
        inputs[-1].set_data_from_numpy(values)
    found = client.infer("wine", inputs)
    expected = call(f"{result['url']}/wine/v1/predict", {"rows": rows})[1]
    classes = [v.decode() if isinstance(v, bytes) else v for v in found.as_numpy("prediction").tolist()]
    assert classes == expected["predictions"]
    wanted = [list(row.values()) for row in expected["probabilities"]]
    assert numpy.allclose(found.as_numpy("probability"), wanted, atol=1e-6)
    with pytest.raises(triton.InferenceServerException, match="missing"):
        client.infer("wine", inputs[:1])
    with pytest.raises(triton.InferenceServerException, match="beer"):
        client.infer("beer", inputs)


@pytest.mark.parametrize("prefix", ["", "/chat"])
def test_openais_client_unchanged(served, prefix):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served[1]['url']}{prefix}/v1", api_key="none", max_retries=0)
    assert "chat" in [model.id for model in client.models.list()]
    assert client.models.retrieve("chat").id == "chat"
    request = {"model": "chat", "prompt": "abc", "seed": 3, "max_tokens": 300, "extra_body": {"min_tokens": 300}}
    whole = client.completions.create(**request)
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 300)
    events = [event.choices[0].text for event in client.completions.create(**request, stream=True)]
    assert len(events) > 100
    assert "".join(events) == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="beer", prompt="a")
    assert raised.value.body["param"] == "model"
    assert len(client.embeddings.create(model="chat", input=["a", "b"]).data) == 2
    # A stream that nobody reads is no longer made.
    stream = client.completions.create(**request | {"n": 16, "max_tokens": 900, "extra_body": {"min_tokens": 900}}, stream=True)
    next(iter(stream))
    health, deadline = f"{served[1]['url']}/chat/healthz", time.monotonic() + 20
    assert call(health)[1]["running"]  # sent as it is made, through the proxies too
    stream.close()
    before = call(health)[1]["tokens"]
    while (load := call(health)[1])["running"]:
        assert time.monotonic() < deadline, load
    assert load["tokens"] - before < 16 * 450


def test_a_hundred_thousand_rows_in_one_call(served, bundles):
    rows = sample(bundles["digits1"])
    table = pa.table({name: [float(row[name]) for row in rows] * (100_000 // len(rows) + 1) for name in rows[0]})
    body, buffer = table.slice(0, 100_000), pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, body.schema) as writer:
        writer.write_table(body)
    kind = {"content-type": "application/vnd.apache.arrow.stream"}
    status, answer = call(f"{served[1]['url']}/v1/models/digits/predict", buffer.getvalue().to_pybytes(), headers=kind)
    assert status == 200, answer
    found = pa.ipc.open_stream(answer).read_all()
    expected = call(f"{served[1]['url']}/digits/v1/predict", {"rows": rows})[1]
    assert len(found) == 100_000
    assert found["prediction"].to_pylist()[: len(rows)] == expected["predictions"]
    for name in expected["probabilities"][0]:
        wanted = [row[name] for row in expected["probabilities"]]
        assert found[f"probability_{name}"].to_pylist()[: len(rows)] == pytest.approx(wanted, abs=1e-6)


def test_haproxy_knows_what_is_too_much_for_each_model(served):
    settings, _ = served
    running = instance.load(settings.home / "serve.json")
    assert running
    [config] = Path(running.folder, "h").rglob("haproxy.cfg")
    limits = re.findall(
        r"backend http-(\S+)\n\s+stick-table .*\n.*\n\s+acl seekray_full sc0_conn_cur gt (\d+)", config.read_text()
    )
    assert {"digits", "wine", "chat"} == {name for name, _ in limits}
    assert all(int(most) > 0 for _, most in limits)


def test_what_listens_is_what_the_page_lists(served):
    """No HTTP beyond loopback, nothing that is not in docs/security.md, and no gRPC without Ray's token."""
    settings, _ = served
    running = instance.load(settings.home / "serve.json")
    assert running
    found = ports.opened(running.name, running.port)
    assert ports.undocumented(found, running.port) == []
    assert all(port.bound == "loopback" for port in found if port.speaks == "HTTP"), found
    rows = {row[:3]: row[3] for row in ports.documented()}
    for port in found:
        if port.speaks == "gRPC":
            said = ports.grpc_statuses(port.number)
            assert set(said.values()) <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (port, said)
            assert "UNAUTHENTICATED" in said.values(), (port, said)
            assert rows[port.process, "gRPC", port.bound] == "Ray's token"
        elif port.process in ("DashboardAgent", "RuntimeEnvAgent"):
            assert call(f"http://127.0.0.1:{port.number}/")[0] == 401
    assert ports.grpc_statuses(int(running.gcs.rpartition(":")[2]), running.token)[ports.METHODS[0]] == "OK"


def test_a_key_is_asked_for_at_every_port_and_ends_within_seconds(served, bundles):
    """The replicas' own ports are no way around HAProxy; without a restart."""
    settings, result = served
    running = instance.load(settings.home / "serve.json")
    assert running
    store = KeyStore(settings.storage)
    key, text = store.create("laptop")
    web = [p.number for p in ports.opened(running.name, running.port) if p.speaks == "HTTP"]
    paths = [
        "/wine/v1/model",
        "/wine/v1/predict",
        "/v1/models/wine/predict",
        "/v1/models",
        "/chat/v1/completions",
        "/v1/completions",
    ]
    body = {"rows": sample(bundles["wine"])}
    url = f"{result['url']}/wine/v1/predict"

    def until(status: int, headers: dict[str, str]) -> float:
        start = time.monotonic()
        while call(url, body, headers=headers)[0] != status:
            assert time.monotonic() - start < 8
            time.sleep(0.05)
        return time.monotonic() - start

    try:
        until(401, {})
        bearer = {"authorization": f"Bearer {text}"}
        time.sleep(2.5)  # the other replicas read the keys too
        for number in web:
            for path in paths:
                status, answer = call(f"http://127.0.0.1:{number}{path}", {"model": "chat", **body})
                # 401 and 403 also of Ray, 404 of Serve, 405 and 503 of pages of metrics.
                assert status in (401, 403, 404, 405, 503), (number, path, answer)
        assert {call(f"{result['url']}{path}", headers=bearer)[0] for path in ("/wine/v1/model", "/v1/models", "/v2")} == {200}
        assert call(f"{result['url']}/v1/models/wine/predict", body, headers=bearer)[0] == 200
        made = {"model": "chat", "prompt": "a", "max_tokens": 2}
        assert call(f"{result['url']}/v1/completions", made, headers=bearer)[0] == 200
        openai = pytest.importorskip("openai")
        client = openai.OpenAI(base_url=f"{result['url']}/v1", api_key=text, max_retries=0)
        assert "chat" in [model.id for model in client.models.list()]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="none").completions.create(**made)
        for path, status in (("/", 200), ("/healthz", 200), ("/v2/health/ready", 200), ("/wine/healthz", 401)):
            assert call(f"{result['url']}{path}")[0] == status
        store.revoke(key.id)
        assert until(401, bearer) < 5
        # Whoever holds Ray's token is let in still: that is `serve up` itself.
        assert call(url, body, headers={"authorization": f"Bearer {operators_key(running.token)}"})[0] == 200
    finally:
        shutil.rmtree(store.storage.path("keys"))
        until(200, {})


def test_the_dashboard_wants_the_token(served):
    settings, _ = served
    running = instance.load(settings.home / "serve.json")
    assert running
    assert call(f"{running.dashboard}/api/serve/applications/")[0] == 401


def test_a_second_up_changes_nothing(served, bundles):
    settings, result = served
    running = instance.load(settings.home / "serve.json")
    before = instance.pids(running.name)
    start = time.monotonic()
    assert deploy.up([ModelToServe("digits", "1", bundles["digits1"])], settings) == result
    assert time.monotonic() - start < 2
    assert set(instance.pids(running.name)) <= set(before)  # nothing is started; an idle worker of Ray's may end meanwhile


def test_a_driver_joins_the_head_that_up_left(served):
    settings, _ = served
    running = instance.load(settings.home / "serve.json")
    code = "import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 42).remote()))"
    environment = {**os.environ, **instance.attach_environment(running)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "42", done.stderr


def test_a_rolling_update_and_a_failed_one_lose_no_request(served, bundles, tmp_path):
    settings, result = served
    body = {"rows": sample(bundles["digits1"])[:1]}
    with Load(f"{result['url']}/digits/v1/predict", body) as seen:
        time.sleep(1)
        with pytest.raises(ClusterError, match="does not start"):
            deploy.up([ModelToServe("digits", "9", tmp_path)], settings)
        updated = deploy.up([ModelToServe("digits", "5", bundles["digits2"])], settings)
        time.sleep(7)  # the old replica leaves meanwhile
    assert seen.keys() == {"1", "5"}
    assert [model["version"] for model in updated["models"]] == ["1", "5", "2"]


def test_a_client_that_hangs_up_leaves_no_work_behind_the_proxy(served, bundles):
    _, result = served
    health, rows, many = f"{result['url']}/digits/healthz", 10_000, 24
    columns = {name: [1] * rows for name in sample(bundles["digits1"])[0]}
    body = json.dumps({"columns": columns}, separators=(",", ":")).encode()
    head = f"POST /digits/v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    address = urllib.parse.urlsplit(result["url"])
    clients = [socket.create_connection((address.hostname, address.port), timeout=30) for _ in range(many)]
    for client in clients:
        client.sendall(head.encode() + body)
    deadline = time.monotonic() + 20
    while (before := call(health)[1])["queued"] < 5:
        assert time.monotonic() < deadline, before
    for client in clients:
        client.close()
    while (after := call(health)[1])["queued"]:
        assert time.monotonic() < deadline, after
        time.sleep(0.05)
    time.sleep(0.5)
    # What ran at that moment ends; what waited, or was on its way, is not begun.
    done = call(health)[1]["rows"] - before["rows"]
    assert done < before["queued"] * rows, (before, done)


@pytest.mark.slow
def test_replicas_follow_the_load_without_a_failed_request(served, bundles):
    settings, result = served
    options = {"autoscaling": {"min": 1, "max": 2, "target": 1.5, "up_after_s": 1, "down_after_s": 1}}
    deploy.up([ModelToServe("wine", "3", bundles["wine"], options)], settings)
    # So many rows that the model is busy, not the clients, which pause.
    url, body = f"{result['url']}/wine/v1/predict", {"rows": sample(bundles["wine"])[:1] * 500}

    def last() -> dict[str, Any]:
        return {m["name"]: m for m in deploy.status(settings)["models"]}["wine"]["scaling"]

    def wait(replicas: int) -> None:
        deadline = time.monotonic() + 90  # on a busy machine
        while {m["name"]: m["replicas"] for m in deploy.status(settings)["models"]}["wine"] != replicas:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    with Load(url, body, clients=1) as few:
        wait(1)  # the old version has left
        with Load(url, body, clients=8) as many:
            wait(2)
            time.sleep(1)
            counts = _rows_by_replica(settings, "wine")
            time.sleep(1)
            later = _rows_by_replica(settings, "wine")
            more = last()
        wait(1)
        time.sleep(6)  # until the second replica has left
        fewer = last()
    assert len(later) == 2
    assert all(later[port] > counts.get(port, 0) for port in later)
    assert few.keys() == many.keys() == {"3"}
    assert (more["from"], more["to"]) == (1, 2)
    assert re.match(r"\d+\.\d requests in flight .* for longer than 1 s; at 1.5 a replica that is", more["why"]), more
    assert (fewer["from"], fewer["to"]) == (2, 1)
    assert "at least 1 stay" in fewer["why"]


@pytest.mark.slow
def test_from_zero_the_first_request_is_answered(served, bundles):
    settings, result = served
    options = {"autoscaling": {"min": 0, "max": 1, "target": 2, "up_after_s": 0, "down_after_s": 1}}
    deploy.up([ModelToServe("wine", "4", bundles["wine"], options)], settings)

    def state() -> dict[str, Any]:
        return {m["name"]: m for m in deploy.status(settings)["models"]}["wine"]

    for _ in range(2):
        until(lambda: state()["replicas"], 0, timeout_s=60)
        time.sleep(8)  # until the last has left, and HAProxy knows
        assert (state()["scaling"]["to"], state()["scaling"]["why"][:21]) == (0, "no request for longer")
        status, answer = call(f"{result['url']}/wine/v1/predict", {"rows": sample(bundles["wine"])})
        assert (status, answer["version"]) == (200, "4")
        until(lambda: (state()["scaling"]["from"], state()["scaling"]["to"]), (0, 1), timeout_s=5)
        assert state()["scaling"]["why"] == "a request came while there was no replica"


def _replicas(settings, name: str) -> list[str]:
    """The address of each replica behind the proxy that answers."""
    running = instance.load(settings.home / "serve.json")
    assert running
    found = []
    for host, port, pid in listening(instance.pids(running.name)):
        own = host == instance.LOOPBACK and f"ServeReplica:{name}" in Path(f"/proc/{pid}/cmdline").read_text()
        if own and call(f"http://127.0.0.1:{port}/{name}/healthz")[0] == 200:
            found.append(f"http://127.0.0.1:{port}/{name}")
    return found


def _rows_by_replica(settings, name: str) -> dict[str, int]:
    """What each replica says that it has computed."""
    return {url: call(f"{url}/healthz")[1]["rows"] for url in _replicas(settings, name)}


def test_forecasts_and_labels_of_steps_answer_at_every_door(served, tmp_path):
    """Rows, Open Inference Protocol and steps that come one by one, as a user asks them, beside the Python answers."""
    from seekray.predictor import Predictor
    from seekray.verify import local_doors, verify
    from seekray_serve.lifecycle.doors import endpoint_doors

    lines = [f"{who},2026-01-01T{i // 60:02}:{i % 60:02}:00,{math.sin(i / 4 + 9 * who):.6f},{'ud'[i // 12 % 2]}"
             for who in (0, 1) for i in range(80)]  # fmt: skip
    (tmp_path / "long.csv").write_text("\n".join(["who,when,y,rose", *lines]))
    sequence = {"time": "when", "id": "who", "columns": ["y"]}
    common = {"family": "rec", "model": {"hidden_size": 8}, "training": {"epochs": 1}}
    data = {"source": str(tmp_path / "long.csv")}
    wave = {"target": "y", "sequence": sequence | {"history": 8, "horizon": 3}, "split": {"kind": "time", "by": "when"}}
    rose = {"target": "rose", "sequence": sequence, "split": {"kind": "random", "test": 0.5, "validation": 0}}
    made = {}
    for name, task, own in (("wave", "forecast", wave), ("rose", "labelling", rose)):
        given = common | {"name": name, "task": task, "data": data | own}
        made[name] = bundle_of(given, tmp_path / "home")
    settings, result = served
    deploy.up([ModelToServe(name, "1", bundle, {"num_replicas": 2}) for name, bundle in made.items()], settings)
    values = [round(math.sin(i / 4), 6) for i in range(12)]
    for name, bundle in made.items():
        url = f"{result['url']}/{name}"
        rows = [{"y": values}, {"y": values[:8]}]
        python = local_doors(bundle)["python"]
        found = verify({"python": python, **endpoint_doors(url, name)}, rows)
        assert found["passed"], found
        expected = Predictor.load(bundle).predict({"y": [values]}).predictions[0]
        state, labels, answer = None, [], {}
        for i, value in enumerate(values):
            path = f"{url}/v1/stream" if i % 2 else f"{result['url']}/v1/models/{name}/stream"
            status, answer = call(path, {"rows": [{"y": [value]}], "keys": ["p"], "state": state})
            assert status == 200, answer
            state = answer["state"]
            labels += answer["predictions"][0][-1:]
        assert labels == expected if name == "rose" else answer["predictions"][0] == pytest.approx(expected, abs=1e-6)
        # The same over WebSockets: both public addresses, and either replica behind them, take the state that another gave.
        addresses = [url, f"{result['url']}/v1/models/{name}", *_replicas(settings, name)]
        assert len(addresses) == 4
        state, labels = None, []
        for i, value in enumerate(values):
            path = addresses[i % 4].replace("http://", "ws://").replace(f"/models/{name}", f"/models/{name}/stream")
            with connect(path if path.endswith("/stream") else f"{path}/v1/stream") as stream:
                stream.send(json.dumps({"rows": [{"y": [value]}], "keys": ["p"], **({"state": state} if state else {})}))
                answer = json.loads(stream.recv(timeout=30))
            state = answer["state"]
            labels += answer["predictions"][0][-1:]
        assert labels == expected if name == "rose" else answer["predictions"][0] == pytest.approx(expected, abs=1e-6)
        tensor = {"name": "y", "datatype": "FP64", "shape": [1, 12], "data": values}
        status, answer = call(f"{url}/v2/models/{name}/infer", {"inputs": [tensor]})
        assert (status, answer["code"], answer["field"]) == (400, "bad_data", "y")
        assert "takes BYTES of shape [rows]" in answer["error"]
    status, answer = call(f"{result['url']}/wave/v1/predict", {"rows": [{"y": values[:5]}]})
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, "bad_data", "y")
    assert "row 0: fewer steps than the 8 that the forecast looks back on" in answer["error"]["message"]
