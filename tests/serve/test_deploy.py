"""What `up`, `down` and `build` decide without starting anything."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from seekray.errors import UserError
from seekray.settings import read_settings
from seekray_serve.lifecycle import deploy, instance
from seekray_serve.lifecycle.ready import ModelToServe


@pytest.fixture
def settings(tmp_path):
    return read_settings({"SEEKRAY_HOME": str(tmp_path / "home")})


@pytest.mark.parametrize("name", ["v1", "v2", "docs", "front", "", "a/b", "../x", "a b", "-", "é"])
def test_names_that_cannot_be_a_path_are_refused(settings, name):
    with pytest.raises(UserError, match="name"):
        deploy.up([ModelToServe(name, "1", "/nowhere")], settings)
    assert not (settings.home / "serve.json").exists()


@pytest.mark.parametrize(
    "options",
    [{"max_queued": 1}, {"max_rows": "many"}, {"autoscaling": {"most": 3}}, {"autoscaling": {"min": 1}, "num_replicas": 2}],
)
def test_options_that_do_not_exist_are_refused_before_anything_starts(settings, options):
    with pytest.raises(UserError):
        deploy.up([ModelToServe("digits", "1", "/nowhere", options)], settings)
    assert not (settings.home / "serve.json").exists()


def test_a_taken_port_is_said(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}.*--port"):
            deploy.up([ModelToServe("digits", "1", "/nowhere")], settings, port=port)


def test_nothing_runs(settings):
    assert deploy.status(settings) == {"url": None, "models": []}
    assert deploy.down(settings) == {"stopped": []}


def test_the_token_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    path = instance._token(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text()
    assert len(token) >= 32
    assert instance._token(tmp_path).read_text() == token


def test_down_finds_orphans_by_their_mark_and_spares_others(tmp_path):
    folder = tmp_path / "sk-test"
    folder.mkdir()
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    # One ignores SIGTERM, as a hung worker does.
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    marked = {**os.environ, instance.MARK: "cafe0001"}
    ours = subprocess.Popen(sleeper, env=marked)
    stubborn = subprocess.Popen([sys.executable, "-c", deaf], env=marked, stdout=subprocess.PIPE)
    other = subprocess.Popen(sleeper, env={**os.environ, instance.MARK: "cafe00011"})
    try:
        assert stubborn.stdout
        stubborn.stdout.readline()
        assert set(instance.pids("cafe0001")) == {ours.pid, stubborn.pid}
        running = instance.Instance("cafe0001", str(folder), "127.0.0.1", 1, "", "127.0.0.1:1", "")
        # Reaped in the background, as init would: a zombie still has its environment's file.
        instance.stop(running)
        assert ours.wait(5) != 0
        assert stubborn.wait(5) == -9
        assert other.poll() is None
        assert not folder.exists()
    finally:
        for process in (ours, stubborn, other):
            process.kill()
            process.wait()


def test_a_state_file_that_is_damaged_is_no_instance(tmp_path):
    state = tmp_path / "serve.json"
    for text in ("", "{", "[]", json.dumps({"name": "x"})):
        state.write_text(text)
        assert instance.load(state) is None


def test_build_writes_what_serve_deploy_reads(tmp_path):
    schema = pytest.importorskip("ray.serve.schema")
    path = tmp_path / "serve.yaml"
    options = {"autoscaling": {"min": 1, "max": 3, "target": 4}, "max_queued_requests": 10}
    deploy.build([ModelToServe("digits", "3", tmp_path / "bundle", options)], path, port=8765)
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8765)
    by_name = {app.name: app for app in config.applications}
    assert by_name.keys() == {"digits", "front"}
    assert by_name["digits"].import_path == "seekray_serve.prediction:build"
    assert by_name["digits"].args["autoscaling"] == options["autoscaling"]


def test_build_passes_the_options_to_serve(tmp_path):
    pytest.importorskip("ray.serve")
    from seekray_serve.prediction import build

    app = build({"name": "digits", "bundle": "x", "autoscaling": {"min": 2, "max": 5, "target": 7}})
    config = app._bound_deployment._deployment_config
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 7)
    assert config.max_surge_percent == 100
    assert app._bound_deployment.ray_actor_options["num_cpus"] < 1


@pytest.mark.parametrize(("title", "found"), [("ray::DashboardAgent", True), ("tail -f", False)])
def test_a_process_whose_title_lies_over_its_mark_is_found_by_its_logs(title, found):
    name = secrets.token_hex(4)
    folder = Path(tempfile.gettempdir()) / f"sk-{name}"
    folder.mkdir()
    try:
        with (folder / "agent.log").open("wb") as log:
            process = subprocess.Popen([title, "60"], executable=shutil.which("sleep"), stdout=log)
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # not yet the program that it becomes
            time.sleep(0.01)
        assert instance.pids(name) == ([process.pid] if found else [])
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def test_the_reason_of_a_decision_is_said_in_words():
    config = pytest.importorskip("ray.serve.config")
    from seekray_serve.options import autoscaling
    from seekray_serve.scaling import why

    given = autoscaling({"min": 0, "max": 3, "target": 4, "up_after_s": 5, "down_after_s": 60})
    assert "policy" not in given  # outside a head of our own
    own = config.AutoscalingConfig(**given)
    assert why(0, 1, 1.0, 0.0, own) == "a request came while there was no replica"
    assert why(1, 2, 7.0, 6.0, own) == "7.0 requests in flight (mean of 5 s) for longer than 5 s; at 4 a replica that is 2"
    assert why(2, 3, 40.0, 6.0, own).endswith("that is 10, of which 3 are allowed")
    assert why(3, 2, 9.0, 5.0, own) == "5.0 requests in flight (mean of 5 s) for longer than 60 s; at 4 a replica fewer do"
    assert why(1, 0, 0.0, 0.0, own) == "no request for longer than 60 s, and min is 0"
