"""A model from elsewhere becomes a run with a bundle and a registered version, as if it had been trained here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from seekray import bundle as bundles
from seekray.errors import UserError
from seekray.generator import open_model
from seekray.settings import Settings
from seekray.tracking.card import model_card
from seekray.tracking.sender import start_sender
from seekray.tracking.spool import Tracker
from seekray.trainer import new_run_id, runs_storage

PROMPTS = ("Hello", "The")  # whose answers the bundle keeps, to be compared with


@dataclass(frozen=True)
class Imported:
    """run_id, bundle: of the run that was made for it; version: None where the registry has not been reached yet."""

    run_id: str
    bundle: str
    model: str
    version: str | None


def import_huggingface(folder: Path, name: str, settings: Settings) -> Imported:
    """Read a folder of `transformers`, write its bundle, register it as `name`. Raises UserError, TrackingError."""
    from seekray.huggingface import read_folder

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with config.json, tokenizer.json and safetensors", field="folder")
    config, schema, tensors = read_folder(folder)
    run_id = new_run_id(name)
    run = runs_storage(None, settings).child(run_id)
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]
    info: dict[str, Any] = {
        "name": name, "run_id": run_id, "family": "lm", "task": "pretrain", "model": config.model_dump(mode="json"),
        "serve": {}, "fingerprint": {"imported": folder.name, "config": digest}, "held_out": "none", "metrics": {},
        "intervals": {},
    }  # fmt: skip
    model = open_model(info, schema, tensors)
    sample = model.examples(pa.table({schema.column: list(PROMPTS)}))  # type: ignore[union-attr]
    tracker = Tracker(run, run_id)
    tracker.start(name, {"imported": str(folder), "model": info["model"]}, {"family": "lm", "task": "pretrain"})
    with start_sender(run, settings) as sender:
        bundle_hash = bundles.write(run, "bundle", info, schema, tensors, sample)
        tracker.text("model_card.md", model_card(info | {"schema": schema.to_json(), "hash": bundle_hash}))
        tracker.model("bundle", name)
        tracker.finish("finished")
        sent = sender.wait()
    local = run.local_path
    return Imported(run_id, str(local / "bundle") if local else f"{run.uri}/bundle", name, sent.version if sent else None)
