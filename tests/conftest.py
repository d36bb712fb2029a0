"""What the tests share: a home of their own, one Ray for the whole session, small tables."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

# Helpers and odd families, which processes that tests start import too.
KIT = str(Path(__file__).parent / "models" / "kit")
sys.path.insert(0, KIT)

OUTSIDE = ("MLFLOW_TRACKING_URI", "SEEKRAY_STORAGE", "RAY_ADDRESS", "SEEKRAY_HOME")
SHARED = {"ray_cluster", "served", "bundles"}  # fixtures of the session that take long


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in two processes: those of the session's Ray and endpoint stay in one, and a file's tests together.

    The long ones go first, so that both processes end at about the same time.
    """
    order = {}
    for item in items:
        real = any(item.get_closest_marker(name) for name in ("ray", "e2e"))
        shared = real and not SHARED.isdisjoint(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group("shared" if shared else str(item.path)))
        order[item] = 0 if shared else 1 if real else 2
    items.sort(key=order.__getitem__)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `.seekray` of this test alone; processes started from here see it too."""
    from seekray.settings import settings

    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("SEEKRAY_HOME", str(folder))
    settings.cache_clear()
    yield folder
    settings.cache_clear()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray of two CPUs for the whole session, started as seekray starts its own."""
    from seekray.cluster import quiet
    from seekray.ray_environment import STAY_ON_LOOPBACK, private_ray_environment

    folder = tempfile.mkdtemp(prefix="sr-", dir="/tmp")  # short: Ray puts sockets in it
    path = os.pathsep.join(p for p in (KIT, os.environ.get("PYTHONPATH")) if p)
    with mock.patch.dict(os.environ, private_ray_environment() | STAY_ON_LOOPBACK | {"PYTHONPATH": path}):
        os.environ.pop("RAY_ADDRESS", None)
        quiet()
        import ray

        options = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
        ray.init(num_cpus=2, _temp_dir=folder, **options)
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3-compatible server for the whole session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 40
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://…`: an empty bucket, in the environment of this test and of what it starts."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    name = f"b{secrets.token_hex(4)}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT"), timeout=5).close()
    return f"s3://{name}"
