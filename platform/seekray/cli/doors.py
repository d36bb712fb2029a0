"""`verify`: all doors of a model, the endpoint's among them."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.cli.serve import models_to_serve

if TYPE_CHECKING:
    from seekray.model_ref import ResolvedModel
    from seekray.predictor import Predictor
    from seekray.settings import Settings

ROWS = 2000


def verify_all(reference: str, data: str | None) -> dict[str, Any]:
    """Send rows of `data`, and rows made troublesome, through every door. The result is kept with the version.

    A generator is sent the requests that its bundle keeps. Raises UserError, ModelNotFoundError.
    """
    from seekray.errors import UserError
    from seekray.generator import Generator, load_model
    from seekray.model_ref import resolve
    from seekray.settings import settings
    from seekray.tracking import registry
    from seekray.tracking.artifacts import fresh_copy
    from seekray.verify import door_of, generator_doors, local_doors, verify
    from seekray_serve.lifecycle import deploy
    from seekray_serve.lifecycle.doors import endpoint_doors, generation_doors
    from seekray_serve.lifecycle.instance import free_ports

    where = settings()
    model = resolve(reference, where)
    loaded = load_model(model.bundle)
    generates = isinstance(loaded, Generator)
    if data is None and not generates:
        raise UserError(f"verify of {reference} needs rows: --data FILE", field="data")
    rows = loaded.sample["requests"] if isinstance(loaded, Generator) else _rows(loaded, str(data))
    with tempfile.TemporaryDirectory(prefix="sk-verify-") as folder:
        doors = generator_doors(model.bundle) if generates else local_doors(model.bundle)
        entry = registry.version(model.name, model.version, where) if model.version else None
        if entry is not None:
            copy = fresh_copy(entry, where, Path(folder) / "fresh")
            doors["fresh download"] = door_of(load_model(copy))
        # A server of its own, on loopback, so that what is verified is this version and nobody's traffic is touched.
        own = dataclasses.replace(where, home=Path(folder) / "home")
        try:
            served = models_to_serve([f"{model.name}/{model.version}" if model.version else reference])
            up = deploy.up(served, own, port=free_ports(1)[0], insecure_no_auth=True)
            doors |= (generation_doors if generates else endpoint_doors)(up["models"][0]["url"], model.name)
            found: dict[str, Any] = verify(doors, rows)
        finally:
            deploy.down(own)
    return _kept(found if generates else found | {"data": data}, loaded.hash, model, where)


def _rows(predictor: Predictor, data: str) -> list[dict[str, Any]]:
    """Rows of a file as JSON values, and rows made troublesome."""
    from seekray.data.options import Data
    from seekray.data.sequences.framing import framed_source
    from seekray.data.sources import open_source
    from seekray.data.values import json_value
    from seekray.verify import rows_with_trouble

    names = [f.name for f in predictor.schema.features]
    source = open_source(Data(source=data).like_training(predictor.info.get("reading")))
    source = framed_source(source, getattr(predictor.schema, "frame", None), only_last=False)
    known = [n for n in names if n in source.schema.names]
    batch = next(iter(source.batches(known)))
    rows = [{n: json_value(v) for n, v in row.items()} for row in batch.slice(0, ROWS).to_pylist()]
    return rows + rows_with_trouble(predictor.schema, rows[:50])


def _kept(found: dict[str, Any], digest: str, model: ResolvedModel, where: Settings) -> dict[str, Any]:
    """The result, kept with the version where there is one."""
    from seekray.tracking import registry

    if model.version:
        kept = {"bundle": digest, "passed": found["passed"], "doors": [d["door"] for d in found["doors"]]}
        registry.set_version_tag(model.name, model.version, "verified", kept, where)
    return found | {"bundle": digest}
