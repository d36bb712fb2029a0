"""Real processes: `up`, both doors, Triton's client, a rolling update, a crash, `down`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("ray.serve")

from seekray.errors import ClusterError
from seekray.settings import Settings, read_settings
from seekray_serve import deploy, instance
from seekray_serve.deploy import ModelToServe

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """Two models, and a second version of one of them."""
    if given := os.environ.get("SEEKRAY_TEST_BUNDLES"):  # folders digits1, digits2, wine
        return {name: Path(given) / name for name in ("digits1", "digits2", "wine")}
    from seekray.experiment_file import validate
    from seekray.trainer import train

    settings = read_settings({"SEEKRAY_HOME": str(tmp_path_factory.mktemp("train"))})

    def make(name: str, seed: int) -> Path:
        raw = {
            "name": name,
            "family": "net",
            "task": "classification",
            "data": {"source": f"sample:{name}", "target": "label"},
            "model": {"hidden_size": [32]},
            "training": {"epochs": 2, "seed": seed},
            "resources": {"workers": 0},
        }
        return Path(train(validate(raw), settings).bundle)

    return {"digits1": make("digits", 1), "digits2": make("digits", 2), "wine": make("wine", 0)}


def free_port() -> int:
    return instance.free_ports(1)[0]


@pytest.fixture(scope="module")
def served(bundles, tmp_path_factory):
    """Both models on one instance, for the whole module."""
    settings = read_settings({"SEEKRAY_HOME": str(tmp_path_factory.mktemp("serve"))})
    models = [ModelToServe("digits", "1", bundles["digits1"]), ModelToServe("wine", "2", bundles["wine"])]
    result = deploy.up(models, settings, port=free_port())
    yield settings, result
    deploy.down(settings)


def sample(bundle: Path) -> list[dict]:
    return json.loads((bundle / "sample.json").read_text())["rows"]


def call(url: str, body: object = None, method: str | None = None, headers: dict | None = None):
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    connection.request(method, "/" + path, data, {"content-type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if answer.getheader("content-type") == "application/json" else text


def test_two_models_answer_at_both_doors(served, bundles):
    _, result = served
    url = result["url"]
    by_name = {model["name"]: model for model in result["models"]}
    assert by_name.keys() == {"digits", "wine"}
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
    assert [model["name"] for model in catalogue["models"]] == ["digits", "wine"]
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


def test_every_http_port_is_on_loopback(served):
    settings, _ = served
    running = instance.load(settings.home / "serve.json")
    assert running
    open_ports = _listening(instance.pids(running.name))
    wide = [(port, pid) for host, port, pid in open_ports if host not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    # What is left is gRPC between replicas, bound by Ray Serve to `[::]:0`, behind the token.
    for port, pid in wide:
        assert "ServeReplica" in Path(f"/proc/{pid}/cmdline").read_text()
        with pytest.raises((http.client.HTTPException, OSError)):
            call(f"http://127.0.0.1:{port}/")


def _listening(pids: list[int]) -> list[tuple[str, int, int]]:
    import psutil

    found = []
    for pid in pids:
        for entry in psutil.Process(pid).net_connections("tcp"):
            if entry.status == psutil.CONN_LISTEN:
                found.append((entry.laddr.ip, entry.laddr.port, pid))
    return found


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
    assert instance.pids(running.name) == before


def test_a_driver_joins_the_head_that_up_left(served):
    settings, _ = served
    running = instance.load(settings.home / "serve.json")
    code = "import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 42).remote()))"
    environment = {**os.environ, **instance.attach_environment(running)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "42", done.stderr


class Load:
    """Requests from several clients, half of them with kept connections, until the block ends."""

    def __init__(self, url: str, body: object) -> None:
        self._host, _, self._path = url.removeprefix("http://").partition("/")
        self._body = json.dumps(body)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i % 2 == 0,)) for i in range(4)]
        self.seen: Counter[str] = Counter()

    def _run(self, keep: bool) -> None:
        connection = None
        while not self._stop.is_set():
            try:
                if connection is None or not keep:
                    connection = http.client.HTTPConnection(self._host, timeout=30)
                connection.request("POST", "/" + self._path, self._body, {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                self.seen[json.loads(text)["version"] if answer.status == 200 else f"status {answer.status}"] += 1
                if answer.getheader("connection", "").lower() == "close":
                    connection = None
            except Exception as error:
                self.seen[repr(error)] += 1
                connection = None
            time.sleep(0.002)

    def __enter__(self) -> Counter[str]:
        for thread in self._threads:
            thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


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
    assert [model["version"] for model in updated["models"]] == ["5", "2"]


def test_a_crash_of_a_part_is_cleaned_by_the_next_up_and_by_down(bundles, tmp_path):
    settings = read_settings({"SEEKRAY_HOME": str(tmp_path)})
    port = free_port()
    models = [ModelToServe("digits", "1", bundles["digits1"])]
    deploy.up(models, settings, port=port)  # a second instance beside `served`
    first = _crash(settings)
    assert deploy.status(settings) == {"url": None, "models": []}
    assert deploy.up(models, settings, port=port)["models"][0]["state"] == "running"
    assert instance.pids(first.name) == []
    assert not Path(first.folder).exists()
    second = _crash(settings)
    deploy.down(settings)
    assert instance.pids(second.name) == []
    assert not Path(second.folder).exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"serve.lock", "ray_token"}
    with socket.create_server(("127.0.0.1", port)):
        pass


def _crash(settings: Settings) -> instance.Instance:
    running = instance.load(settings.home / "serve.json")
    assert running
    for pid in instance.pids(running.name):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            if "gcs_server" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    return running


@pytest.mark.slow
def test_up_holds_no_pipe(bundles, tmp_path):
    code = f"""
        from seekray.settings import read_settings
        from seekray_serve import deploy
        settings = read_settings({{"SEEKRAY_HOME": {str(tmp_path)!r}}})
        deploy.up([deploy.ModelToServe("wine", "1", {str(bundles["wine"])!r})], settings, port={free_port()})
        print("up")
    """
    try:
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=90)
        assert done.stdout == b"up\n", done.stderr.decode()
    finally:
        deploy.down(read_settings({"SEEKRAY_HOME": str(tmp_path)}))


@pytest.mark.slow
def test_plain_serve_deploy_takes_what_build_writes(bundles, tmp_path):
    """On a head without HAProxy, started by plain Ray: the front door forwards by itself."""
    port = free_port()
    config = tmp_path / "serve.yaml"
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(instance.source_roots())}}
    models = [ModelToServe("wine", "4", bundles["wine"], {"max_queued_requests": 50})]
    deploy.build(models, config, port=port, runtime_env=environment)
    home = tmp_path / "home"
    head = instance.start(home, "127.0.0.1", port, ingress=False)
    try:
        env = {**os.environ, **instance.attach_environment(head), "RAY_DASHBOARD_ADDRESS": head.dashboard}
        serve = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(config)]
        done = subprocess.run(serve, env=env, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        body = {"rows": sample(bundles["wine"])}
        deadline = time.monotonic() + 60
        while True:
            try:
                status, own = call(f"{head.url}/wine/v1/predict", body)
                front, forwarded = call(f"{head.url}/v1/models/wine/predict", body)
                if status == front == 200:
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.3)
        assert forwarded == own
        assert own["version"] == "4"
    finally:
        instance.stop(head)
