"""Heads of their own: a crash, held pipes, plain `serve deploy`, a cluster that others run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("ray.serve")

from tests.serving import call, free_port, sample
from tests.two_nodes import one_head

from seekray.errors import ClusterError
from seekray.settings import Settings, read_settings
from seekray_serve.lifecycle import deploy, instance
from seekray_serve.lifecycle.dashboard import Dashboard
from seekray_serve.lifecycle.ready import ModelToServe

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


@pytest.mark.slow
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


OTHERS = """
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    async def __call__(self, request):
        return "other"

app = Other.bind()
"""


@pytest.mark.slow
def test_a_cluster_that_others_run_keeps_what_is_theirs(bundles, tmp_path, monkeypatch):
    settings, port = read_settings({"SEEKRAY_HOME": str(tmp_path / "home")}), free_port()
    (tmp_path / "others.py").write_text(OTHERS)
    path = os.pathsep.join([str(tmp_path), *instance.source_roots()])
    with one_head() as head:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_file))
        theirs = {"name": "others", "route_prefix": "/others", "import_path": "others:app"}
        theirs["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
        options = {"host": "127.0.0.1", "port": port}
        Dashboard(head.address, head.token_file.read_text()).deploy({"http_options": options, "applications": [theirs]})
        result = deploy.up([ModelToServe("wine", "4", bundles["wine"])], settings, address=head.address)
        url = f"http://127.0.0.1:{port}"
        assert result["url"] == url
        processes = head.marked.pids()
        again = deploy.up([ModelToServe("wine", "4", bundles["wine"])], settings, address=head.gcs)
        assert again == deploy.status(settings, address=head.address) == result
        assert head.marked.pids() == processes
        # Their application answers anything below its prefix, and is no model.
        assert [m["name"] for m in call(f"{url}/v1/models")[1]["models"]] == ["wine"]
        assert call(f"{url}/v1/models/wine/predict", {"rows": sample(bundles["wine"])})[0] == 200
        assert deploy.down(settings, address=head.address) == {"stopped": ["front", "wine"]}
        deadline = time.monotonic() + 20
        while call(f"{url}/wine/healthz")[0] != 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert call(f"{url}/others") == (200, b"other")
        assert deploy.down(settings, address=head.address) == {"stopped": []}
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH"):
            deploy.status(settings, address=head.address)
    assert not (settings.home / "serve.json").exists()


@pytest.mark.slow
def test_up_holds_no_pipe(bundles, tmp_path):
    code = f"""
        from seekray.settings import read_settings
        from seekray_serve.lifecycle import deploy
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
