"""A MODEL on the command line → a local bundle folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seekray import manifest
from seekray.config import Experiment
from seekray.errors import ConfigError, CorruptError, ModelNotFoundError
from seekray.models import get_family
from seekray.settings import Settings
from seekray.storage import Storage

FORMS = "digits@champion, digits/3, digits, models:/digits/3, runs:/RUN_ID or a bundle folder"
CHAMPION = "champion"


@dataclass(frozen=True)
class ResolvedModel:
    """A model's name and version, and its bundle on this machine. alias: the one it was found by."""

    name: str
    version: str | None
    alias: str | None
    bundle: Path
    run_id: str | None


def resolve(reference: str, where: Settings) -> ResolvedModel:
    """Find a model; its manifest is checked. An alias is followed when it moves, a version is not.

    A bare name is its champion or, where there is none, its newest version. Raises
    ModelNotFoundError with the nearest names, CorruptError, TrackingError.
    """
    folder = Path(reference).expanduser()
    if (folder / "manifest.json").is_file():
        return _folder(folder.resolve())
    if reference.startswith("runs:/"):
        return _run(reference.removeprefix("runs:/"), where)
    if "://" in reference:
        return _folder(_fetched(Storage(reference), where))
    match = re.fullmatch(r"(?:models:/)?([^/@:\s]+)(?:@([\w.-]+)|/(\d+|latest))?", reference)
    if match is None or reference.startswith((".", "~", "/")):
        what = "is a folder without a manifest.json" if folder.is_dir() else "is not a model"
        raise ModelNotFoundError(f"{reference!r} {what}; expected {FORMS}")
    return _registered(match[1], match[2], None if match[3] == "latest" else match[3], match[3] == "latest", where)


def with_base(experiment: Experiment, where: Settings) -> Experiment:
    """The experiment with `model.init_from` as a bundle folder, and what `model` leaves out as that model has it.

    Unchanged where nothing is started from. Raises ConfigError for a model of another family, and what `resolve` raises.
    """
    reference = getattr(experiment.model, "init_from", None)
    if reference is None:
        return experiment
    folder = resolve(reference, where).bundle
    info = json.loads((folder / "bundle.json").read_bytes())
    if info["family"] != experiment.family:
        raise ConfigError(
            f"model.init_from: {reference} is of the family {info['family']}, not {experiment.family}", field="model.init_from"
        )
    Config = get_family(experiment.family).Config
    given = experiment.model.model_dump(exclude_unset=True) | {"init_from": str(folder)}
    taken = {name: value for name, value in info["model"].items() if name not in Config.own}
    model = Config.model_validate(taken | given)
    return experiment.model_copy(update={"model": model})


def _folder(folder: Path) -> ResolvedModel:
    manifest.check(folder)
    info: dict[str, Any] = json.loads((folder / "bundle.json").read_bytes())
    return ResolvedModel(info["name"], None, None, folder, info.get("run_id"))


def _run(run_id: str, where: Settings) -> ResolvedModel:
    """A run's bundle: from its storage, also where it never reached MLflow; else from the server."""
    from seekray.tracking.places import find_run

    run_id = run_id.strip("/").removesuffix("/model")
    run = find_run(run_id, where)
    if run is not None and run.exists("bundle/manifest.json"):
        return _folder(_fetched(run.child("bundle"), where))
    from seekray.tracking.artifacts import run_bundle

    return _folder(run_bundle(run_id, where))


def _registered(name: str, alias: str | None, version: str | None, latest: bool, where: Settings) -> ResolvedModel:
    from seekray.tracking import registry
    from seekray.tracking.artifacts import version_bundle

    found = registry.show(name, where)
    if alias is None and version is None:
        alias = CHAMPION if CHAMPION in found["aliases"] and not latest else None
        version = None if alias else str(max((int(v["version"]) for v in found["versions"]), default=0))
    if alias is not None:
        if alias not in found["aliases"]:
            there = ", ".join(f"{name}@{a}" for a in found["aliases"]) or "none"
            raise ModelNotFoundError(f"{name} has no alias {alias!r}; there are: {there}. `seekray models promote` sets one")
        version = found["aliases"][alias]
    entry = next((v for v in found["versions"] if v["version"] == version), None)
    if entry is None:
        there = ", ".join(f"{name}/{v['version']}" for v in found["versions"]) or "none"
        raise ModelNotFoundError(f"{name} has no version {version}; there are: {there}")
    if entry["bundle"] is None:
        raise ModelNotFoundError(f"{name}/{version} holds no bundle: it was not registered by seekray")
    folder = version_bundle(entry, where)
    if manifest.check(folder) != entry["bundle"]:
        raise CorruptError(f"{name}/{version}: the bundle at {folder} is not the one that was registered")
    return ResolvedModel(name, version, alias, folder, entry["run_id"])


def _fetched(place: Storage, where: Settings) -> Path:
    """A bundle's folder on this machine; remote ones are kept in the cache by their hash."""
    if (local := place.local_path) is not None:
        return local
    try:
        digest = hashlib.sha256(place.read_bytes("manifest.json")).hexdigest()
    except OSError as error:
        raise ModelNotFoundError(f"{place.uri} is not a bundle: {error}") from error
    target = where.home / "cache" / "bundles" / digest
    if not (target / "manifest.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        base, _, folder = place.uri.rpartition("/")
        # Whole or not at all: a download that is cut off leaves nothing that looks like a bundle.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
            Storage(base).download(folder, Path(temporary) / "whole")
            if target.exists():
                shutil.rmtree(target)
            os.replace(Path(temporary) / "whole", target)
    return target
