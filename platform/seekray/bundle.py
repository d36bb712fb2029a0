"""The bundle: the only contract between training and everything after it.

A folder with `model.safetensors`, `bundle.json`, `sample.json`, what the schema adds (a tokenizer,
say) and `manifest.json` (the sha256 of each). It never changes once written; its hash, the sha256 of
the manifest, is its name everywhere.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from seekray.data.schema import Schema
from seekray.data.values import json_value
from seekray.errors import CorruptError
from seekray.manifest import check, sha256
from seekray.models import get_family
from seekray.storage import Storage
from seekray.system import versions

FORMAT = 1
FILES = ("bundle.json", "model.safetensors", "sample.json")


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. `info` is bundle.json; `tensors` are `module/key`; `sample` is sample.json."""

    info: dict[str, Any]
    schema: Schema
    tensors: dict[str, Tensor]
    sample: dict[str, Any]
    hash: str


def write(
    storage: Storage,
    folder: str,
    info: Mapping[str, Any],
    schema: Schema,
    tensors: Mapping[str, Tensor],
    sample: Mapping[str, Any],
) -> str:
    """Write a bundle, the manifest last; returns its hash."""
    head = {
        "format": FORMAT,
        **info,
        "schema": schema.to_json(),
        "versions": versions(),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    files = {
        "bundle.json": _json(head),
        "model.safetensors": save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}),
        "sample.json": _json(sample),
        **schema.files(),
    }
    for name, data in files.items():
        storage.write_bytes(f"{folder}/{name}", data)
    manifest = _json({"files": {name: sha256(data) for name, data in files.items()}})
    storage.write_bytes(f"{folder}/manifest.json", manifest)
    return sha256(manifest)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def load(folder: Path) -> Bundle:
    """Check and read a bundle. Raises ModelNotFoundError, CorruptError."""
    digest = check(folder)
    info = json.loads((folder / "bundle.json").read_bytes())
    if info.get("format") != FORMAT:
        raise CorruptError(f"bundle {folder} has format {info.get('format')}, this seekray reads {FORMAT}")
    names = json.loads((folder / "manifest.json").read_bytes())["files"]
    extra = {name: (folder / name).read_bytes() for name in names if name not in FILES}
    return Bundle(
        info=info,
        schema=get_family(info["family"]).schema(info["schema"], extra),
        tensors=load_tensors((folder / "model.safetensors").read_bytes()),
        sample=json.loads((folder / "sample.json").read_bytes()),
        hash=digest,
    )


def sample_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as JSON, features only."""
    return [{name: json_value(row[name]) for name in names} for row in rows]
