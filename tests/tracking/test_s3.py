"""A run whose storage is a bucket: spool, sending and the bundle, through a real S3 server."""

from __future__ import annotations

import dataclasses
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
