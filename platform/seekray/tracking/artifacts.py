"""Bundles out of MLflow's artifacts: in place where they are on this machine, else in the cache by their hash."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from seekray.errors import ModelNotFoundError
from seekray.settings import Settings
from seekray.tracking.client import client as connect
from seekray.tracking.client import pages, told

INSIDE = "data/bundle"


def version_bundle(entry: dict[str, Any], where: Settings) -> Path:
    """The local bundle folder of a registry version (an entry of `registry.show`). Raises ModelNotFoundError."""
    return _bundle(entry["source"], str(entry["bundle"]), where)


def fresh_copy(entry: dict[str, Any], where: Settings, target: Path) -> Path:
    """Download a version to a new folder, past the cache."""
    return _fetch(entry["source"], target, where)


def run_bundle(run_id: str, where: Settings) -> Path:
    """The bundle of a run, by MLflow's run id or ours. Raises ModelNotFoundError."""
    from mlflow.exceptions import MlflowException

    client = connect(where)
    with told(where):
        try:
            run = client.get_run(run_id)
        except MlflowException:
            ids = [e.experiment_id for e in pages(client.search_experiments)]
            quoted = run_id.replace("'", "")
            matches = client.search_runs(ids, f"tags.`seekray.run_id` = '{quoted}'") if ids else []
            if not matches:
                raise ModelNotFoundError(f"no run {run_id!r}{_nearest(client, ids, run_id)}") from None
            run = matches[0]
    digest = run.data.tags.get("seekray.bundle")
    if digest is None:
        raise ModelNotFoundError(f"run {run_id} has no bundle; it has not finished")
    return _bundle(f"{run.info.artifact_uri}/model", digest, where)


def _nearest(client: Any, experiments: list[str], run_id: str) -> str:
    runs = client.search_runs(experiments, max_results=1000) if experiments else []
    known = [r.data.tags.get("seekray.run_id", r.info.run_id) for r in runs]
    close = difflib.get_close_matches(run_id, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else "; `seekray runs list` shows them"


def _bundle(source: str, digest: str, where: Settings) -> Path:
    place = _in_place(source)
    if place is not None and _hash(place) == digest:
        return place
    cached = where.home / "cache" / "bundles" / digest
    return cached if _hash(cached) == digest else _fetch(source, cached, where)


def _hash(folder: Path) -> str | None:
    manifest = folder / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


def _in_place(source: str) -> Path | None:
    parts = urllib.parse.urlsplit(source)
    return Path(urllib.request.url2pathname(parts.path)) / INSIDE if parts.scheme in ("file", "") else None


def _fetch(source: str, target: Path, where: Settings) -> Path:
    """Whole or not at all: a fetch that is cut off leaves nothing that looks like a bundle."""
    from mlflow.artifacts import download_artifacts

    connect(where)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
        found = _in_place(source)
        if found is None:
            with told(where):
                found = Path(download_artifacts(f"{source}/{INSIDE}", dst_path=temporary, tracking_uri=where.tracking_uri))
        if not (found / "manifest.json").is_file():
            raise ModelNotFoundError(f"{source} holds no bundle")
        beside = Path(temporary) / "whole"
        shutil.copytree(found, beside)
        if target.exists():
            shutil.rmtree(target)
        os.replace(beside, target)
    return target
