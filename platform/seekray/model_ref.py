"""A MODEL on the command line → a local bundle folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seekray import bundle as bundles
from seekray.errors import ModelNotFoundError
from seekray.settings import Settings
from seekray.storage import Storage

FORMS = "digits@champion, digits/3, models:/digits/3, runs:/RUN_ID or a bundle folder"


@dataclass(frozen=True)
class ResolvedModel:
    """A model's name and version, and its bundle on this machine. alias: the one it was found by."""

    name: str
    version: str | None
    alias: str | None
    bundle: Path
    run_id: str | None


def resolve(reference: str, where: Settings) -> ResolvedModel:
    """Find a model; its manifest is checked. Raises ModelNotFoundError, CorruptError."""
    folder = Path(reference).expanduser()
    if (folder / "manifest.json").is_file():
        return _folder(folder.resolve())
    if reference.startswith("runs:/"):
        return _run(reference.removeprefix("runs:/"), where)
    if "://" in reference:
        return _folder(_fetched(Storage(reference), where))
    match = re.fullmatch(r"(?:models:/)?([\w.-]+)(?:@([\w.-]+)|/(\w+))?", reference)
    if match is None or folder.is_dir():
        raise ModelNotFoundError(f"{reference!r} is not a model; expected {FORMS}")
    return _registered(match[1], match[2], match[3], where)


def _folder(folder: Path) -> ResolvedModel:
    bundles.check(folder)
    import json

    info: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return ResolvedModel(info["name"], None, None, folder, info.get("run_id"))


def _run(run_id: str, where: Settings) -> ResolvedModel:
    run_id = run_id.removesuffix("/model")
    runs = Storage(where.storage).child("runs")
    if runs.exists(f"{run_id}/bundle/manifest.json"):
        return _folder(_fetched(runs.child(f"{run_id}/bundle"), where))
    from seekray.tracking.artifacts import run_bundle

    return _folder(run_bundle(run_id, where))


def _registered(name: str, alias: str | None, version: str | None, where: Settings) -> ResolvedModel:
    from seekray.tracking import registry
    from seekray.tracking.artifacts import version_bundle

    found = registry.show(name, where)
    if alias is None and version is None:
        alias = "champion" if "champion" in found["aliases"] else None
        version = None if alias else str(max((int(v["version"]) for v in found["versions"]), default=0))
    if alias is not None:
        if alias not in found["aliases"]:
            there = ", ".join(f"{name}@{a}" for a in found["aliases"]) or "none"
            raise ModelNotFoundError(f"{name} has no alias {alias!r}; there are: {there}. `seekray models promote` sets one")
        version = str(found["aliases"][alias])
    entry = next((v for v in found["versions"] if v["version"] == version), None)
    if entry is None:
        there = ", ".join(v["version"] for v in found["versions"]) or "none"
        raise ModelNotFoundError(f"{name} has no version {version}; there are: {there}")
    folder = version_bundle(entry, where)
    bundles.check(folder)
    return ResolvedModel(name, version, alias, folder, entry["run_id"])


def _fetched(place: Storage, where: Settings) -> Path:
    """A bundle's folder on this machine; remote ones are kept in the cache by their hash."""
    if (local := place.local_path) is not None:
        return local
    try:
        digest = bundles.sha256(place.read_bytes("manifest.json"))
    except (OSError, FileNotFoundError) as error:
        raise ModelNotFoundError(f"{place.uri} is not a bundle: {error}") from error
    target = where.home / "cache" / "bundles" / digest
    if not (target / "manifest.json").is_file():
        place.download("", target)
    return target
