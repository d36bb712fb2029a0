"""A run whose storage is a bucket: spool, sending and the bundle, through a real S3 server."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from seekray.model_ref import resolve
from seekray.predictor import Predictor
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking.carrier import is_settled
from seekray.tracking.sender import start_sender
from seekray.tracking.sync import sync

from . import conftest as kit

pytestmark = pytest.mark.e2e


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://runs` on a server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "s3.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        deadline = time.monotonic() + 40
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(url + "/runs", method="PUT"), timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield "s3://runs"
    finally:
        process.kill()
        process.wait()


def test_a_run_in_a_bucket(where: Settings, bucket: str, bundle: Path) -> None:
    there = dataclasses.replace(where, storage=bucket)
    run = kit.make_run(there, "r1")
    run.begin()
    with start_sender(run.storage, there) as sender:
        for step in range(1, 7):
            run.step(step)
        run.end(bundle)
        sent = sender.wait()
    assert (sent.version, sent.remaining) == ("1", 0)
    kit.check_whole(there, "r1")
    Storage(bucket).child("runs").child("r1").delete("bundle/sample.json")  # the version has a copy of its own
    assert Predictor.load(resolve("pets/1", there).bundle).task == "classification"


def test_sync_and_resolve_from_a_bucket(where: Settings, bucket: str, bundle: Path) -> None:
    """A cluster's run, spooled in a bucket only; the laptop's settings do not name it."""
    cluster = dataclasses.replace(where, storage=bucket, home=where.home.parent / "cluster")
    kit.make_run(cluster, "r2").write(bundle)
    assert [s.version for s in sync(where, bucket)] == ["1"]
    kit.check_whole(where, "r2")
    assert is_settled(Storage(bucket).child("runs").child("r2"), where)
    found = resolve(f"{bucket}/runs/r2/bundle", where)
    assert found.bundle.parent == where.home / "cache" / "bundles"
    assert resolve("runs:/r2", cluster).bundle.parent == cluster.home / "cache" / "bundles"
