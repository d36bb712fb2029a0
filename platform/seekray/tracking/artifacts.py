"""Bundles out of MLflow's artifacts, kept in the cache by their hash."""

from __future__ import annotations

import shutil
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from seekray.errors import ModelNotFoundError
from seekray.settings import Settings
from seekray.tracking.client import client as connect

INSIDE = "data/bundle"


def version_bundle(entry: dict[str, Any], where: Settings) -> Path:
    """The local bundle folder of a registry version (an entry of `registry.show`)."""
    cached = where.home / "cache" / "bundles" / str(entry["bundle"])
    if (cached / "manifest.json").is_file():
        return cached
    return _fetch(entry["source"], cached, where)


def fresh_copy(entry: dict[str, Any], where: Settings, target: Path) -> Path:
    """Download a version again, past the cache."""
    return _fetch(entry["source"], target, where)


def run_bundle(run_id: str, where: Settings) -> Path:
    """The bundle of a run, by MLflow's run id or ours. Raises ModelNotFoundError."""
    from mlflow.exceptions import MlflowException

    client = connect(where)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        ids = [e.experiment_id for e in client.search_experiments()]
        matches = client.search_runs(ids, f"tags.`seekray.run_id` = '{run_id}'")
        if not matches:
            raise ModelNotFoundError(f"no run {run_id!r}; `seekray runs list` shows them") from None
        run = matches[0]
    digest = run.data.tags.get("seekray.bundle")
    if digest is None:
        raise ModelNotFoundError(f"run {run_id} has no bundle; it has not finished")
    cached = where.home / "cache" / "bundles" / digest
    if (cached / "manifest.json").is_file():
        return cached
    return _fetch(f"{run.info.artifact_uri}/model", cached, where)


def _fetch(source: str, target: Path, where: Settings) -> Path:
    from mlflow.artifacts import download_artifacts

    connect(where)
    parts = urllib.parse.urlsplit(source)
    with tempfile.TemporaryDirectory() as temporary:
        if parts.scheme == "file":
            found = Path(urllib.request.url2pathname(parts.path)) / INSIDE
        else:
            found = Path(download_artifacts(f"{source}/{INSIDE}", dst_path=temporary, tracking_uri=where.tracking_uri))
        if not (found / "manifest.json").is_file():
            raise ModelNotFoundError(f"{source} holds no bundle")
        shutil.copytree(found, target, dirs_exist_ok=True)
    return target
