"""sha256 manifests: what a bundle's files must be. Imports no torch, so that looking at a bundle is quick."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from seekray.errors import CorruptError, ModelNotFoundError


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def check(folder: Path) -> str:
    """Check every file of a bundle; returns its hash, that of the manifest. Raises ModelNotFoundError, CorruptError."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise ModelNotFoundError(f"{folder} is not a bundle: it has no manifest.json")
    raw = file.read_bytes()
    try:
        digests = json.loads(raw)["files"]
    except (ValueError, KeyError) as error:
        raise CorruptError(f"{file} cannot be read: {error}") from error
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256((folder / name).read_bytes()) != digest:
            raise CorruptError(f"bundle {folder}: {name} is missing or does not match its sha256; fetch it again")
    return sha256(raw)
