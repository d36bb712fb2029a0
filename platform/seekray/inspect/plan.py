"""`train --dry-run`: what a training would read, build, use and send, and what would be refused. Starts nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from seekray.config import Experiment
from seekray.data import split as splits
from seekray.data.columns import as_columns
from seekray.data.options import Data
from seekray.data.parse import Rejects
from seekray.data.prepared import Prepared
from seekray.data.schema import Schema
from seekray.data.sources import open_source
from seekray.data.tables.fitting import fit
from seekray.data.tables.prepare import used_columns
from seekray.errors import SeekrayError
from seekray.inspect import place
from seekray.inspect.later import later
from seekray.inspect.look import bad_rows
from seekray.inspect.sampling import take_sample
from seekray.inspect.texts import count, mib
from seekray.models import get_family
from seekray.settings import settings

EXACT_BYTES = 16 * 2**20  # a larger source is not read whole
T = TypeVar("T")


@dataclass(frozen=True)
class Read:
    """What is known of the data. parts: rows of train, validation and test."""

    schema: Schema | None
    parts: dict[str, int]
    rows: int
    estimated: bool
    bytes: int | None
    rejected: int = 0
    prepared: Prepared | None = None
    warnings: tuple[str, ...] = ()


def dry_run(experiment: Experiment, *, address: str | None = None) -> dict[str, Any]:
    """What `train` would do with this experiment: data, model, steps, resources, package, and what is refused."""
    refused: list[str] = []
    warnings: list[str] = []
    where = settings()
    asked = later(lambda: place.there(where, experiment.resources, address))
    sent = later(place.package)
    stored = later(lambda: place.storage(experiment.storage or where.storage))
    read = _read(experiment, refused)
    warnings += read.warnings
    model = _model(experiment, read, refused)
    training = _steps(experiment, read)
    _check_rows(experiment, read, refused)
    there = _await(asked, "resources", warnings)
    resources = place.resources(experiment.resources, there, refused, warnings)
    storage = _await(stored, "storage", warnings) or {"uri": experiment.storage or where.storage}
    refused += storage.pop("refused", [])
    refused += place.unseen(experiment, there, storage["uri"])
    package = _await(sent, "what would be sent", warnings)
    return {
        "name": experiment.name,
        "family": experiment.family,
        "task": experiment.task,
        "data": _data(experiment, read),
        "model": model,
        "training": training,
        "resources": resources,
        "storage": storage,
        "package": package,
        "register": experiment.register_as,
        "warnings": list(dict.fromkeys(warnings)),
        "refused": list(dict.fromkeys(refused)),
    }


def _await(future: Future[T], what: str, warnings: list[str]) -> T | None:
    try:
        return future.result(timeout=place.PATIENCE_S)
    except TimeoutError:
        warnings.append(f"{what}: no answer in {place.PATIENCE_S:g} s")
    except (SeekrayError, OSError, ValueError) as error:
        warnings.append(f"{what}: {error}")
    return None


# ---- data and model


def _read(experiment: Experiment, refused: list[str]) -> Read:
    """All rows where they are few, else a sample; what cannot be read goes to `refused`."""
    data, task = experiment.data, experiment.task
    nothing = Read(None, {"train": 0, "validation": 0, "test": 0}, 0, False, None)
    try:
        source = open_source(data)
        size = source.bytes
        if (size is None or size <= EXACT_BYTES) and (source.count() or 0) <= 200_000:
            prepared = experiment.prepare()
            train, validation = len(prepared.train), len(prepared.validation)
            parts = {
                "train": train,
                "validation": validation,
                "test": len(prepared.held_out) if prepared.held_out_name == "test" else 0,
            }
            rejected = len({r["row"] for r in prepared.rejected})
            return Read(prepared.schema, parts, prepared.rows, False, size, rejected, prepared, tuple(prepared.warnings))
        names = used_columns(data, source.schema.names)
        sample = take_sample(data, names)
        bad, first = bad_rows(sample.table, data, task)
        warnings = [] if sample.whole else [f"the data is large: counted from its first {sample.table.num_rows:,} rows"]
        table = sample.table
        if bad:
            text = f"data: {len(bad)} of {table.num_rows:,} rows looked at cannot be used ({first})"
            (warnings if data.on_bad_row == "skip" else refused).append(text)
            table = table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), list(bad))))
        schema = fit(table, data, task)
        return Read(schema, _parts(data, sample.rows, table), sample.rows, not sample.whole, size, 0, None, tuple(warnings))
    except SeekrayError as error:
        refused.append(error.message)
        return nothing
    except (pa.ArrowException, OSError) as error:
        refused.append(f"data.source: {data.source} cannot be read: {str(error).splitlines()[0]}")
        return nothing


def _parts(data: Data, rows: int, table: pa.Table) -> dict[str, int]:
    """Rows of each part, of a given column by the sample's shares."""
    if data.split.kind == "column" and data.split.by:
        keys = splits.split_keys(data.split, as_columns(table)[data.split.by], Rejects(strict=False))
        shares = {"validation": float(np.mean(keys == splits.VALIDATION)), "test": float(np.mean(keys == splits.TEST))}
    else:
        shares = {"validation": data.split.validation, "test": data.split.test}
    found = {name: round(share * rows) for name, share in shares.items()}
    return {"train": rows - sum(found.values()), **found}


def _data(experiment: Experiment, read: Read) -> dict[str, Any]:
    schema = read.schema
    kinds: dict[str, int] = {}
    categorical: dict[str, int] = {}
    if schema:
        for feature in schema.features:
            kinds[feature.kind] = kinds.get(feature.kind, 0) + 1
        names = [f.name for f in schema.features if f.kind == "categorical"]
        categorical = dict(zip(names, schema.cardinalities, strict=True))
    return {
        "source": experiment.data.source,
        "bytes": read.bytes,
        "rows": read.rows,
        "estimated": read.estimated,
        **read.parts,
        "rejected": read.rejected,
        "features": len(schema.features) if schema else 0,
        "kinds": kinds,
        "dense_size": schema.dense_size if schema else 0,
        "categorical": categorical,
        "outputs": schema.num_outputs if schema and (schema.targets or schema.features) else 0,
    }


def _model(experiment: Experiment, read: Read, refused: list[str]) -> dict[str, Any] | None:
    """Parameters, without memory for them (torch's meta device)."""
    if read.schema is None:
        return None
    import torch

    family = get_family(experiment.family)
    try:
        try:
            with torch.device("meta"):
                modules = family.build(experiment.model, read.schema)
        except (NotImplementedError, RuntimeError):  # a family that computes while it builds
            modules = family.build(experiment.model, read.schema)
    except (ValueError, SeekrayError) as error:
        refused.append(str(error))
        return None
    parameters = sum(p.numel() for m in modules.values() for p in m.parameters())
    return {"parameters": parameters, "bytes": 4 * parameters, "modules": sorted(modules)}


def _steps(experiment: Experiment, read: Read) -> dict[str, Any]:
    training = experiment.training
    per_epoch = math.ceil(read.parts["train"] / training.batch_size)
    if read.prepared is not None:
        import torch

        where: dict[str, Any] = {"rank": 0, "world_size": 1, "device": "cpu", "dtype": torch.float32, "pin_memory": False}
        per_epoch = get_family(experiment.family).batches(read.prepared.train, training, **where).steps_per_epoch
    steps = training.max_steps or (training.epochs or 20) * per_epoch
    return {
        "batch_size": training.batch_size,
        "steps_per_epoch": per_epoch,
        "epochs": math.ceil(steps / per_epoch) if per_epoch else 0,
        "steps": steps,
        "early_stopping": training.early_stopping is not None,
    }


def _check_rows(experiment: Experiment, read: Read, refused: list[str]) -> None:
    """Contradictions that show only with the data."""
    if read.schema is None:
        return
    most = experiment.resources.span[1]
    if read.parts["train"] < most:
        refused.append(f"resources.workers: {most} for {read.parts['train']} training rows; use fewer workers")
    if experiment.training.early_stopping and not read.parts["validation"]:
        refused.append("training.early_stopping needs validation rows; the split left none (data.split.validation)")


def dry_run_text(found: Mapping[str, Any]) -> str:
    """For people."""
    data, training, resources = found["data"], found["training"], found["resources"]
    about = "about " if data["estimated"] else ""
    kinds = ", ".join(f"{n} {kind}" for kind, n in data["kinds"].items())
    lines = [
        f"{found['name']}: {found['family']}, {found['task']} (dry run, nothing is started)",
        f"data       {data['source']}: {about}{count(data['rows'], 'row')}; {data['train']:,} training, "
        f"{data['validation']:,} validation, {data['test']:,} test"
        + (f", {data['rejected']:,} rejected" if data["rejected"] else ""),
    ]
    if data["features"]:
        sizes = ", ".join(f"{name} {size:,}" for name, size in list(data["categorical"].items())[:6])
        more = f"; categories: {sizes}{', …' if len(data['categorical']) > 6 else ''}" if sizes else ""
        lines.append(f"features   {count(data['features'], 'column')} ({kinds}) → {data['dense_size']:,} numbers{more}")
    if found["model"]:
        lines.append(f"model      {count(found['model']['parameters'], 'parameter')} ({mib(found['model']['bytes'])})")
    until = " at most (early stopping)" if training["early_stopping"] else ""
    lines.append(
        f"training   {about}{count(training['steps'], 'step')} of {training['batch_size']} rows, "
        f"{count(training['epochs'], 'epoch')}{until}"
    )
    there = resources["there"]
    workers = resources["workers"]
    who = "this process, without Ray" if workers == 0 else f"{workers} worker(s) on {resources['place']}"
    each = f", {resources['cpus_per_worker']:g} CPU each" if resources["cpus_per_worker"] else ""
    each += f", {resources['gpus_per_worker']:g} GPU each" if resources["gpus_per_worker"] else ""
    lines.append(
        f"resources  {who}{each}; there: {there['CPU']:g} CPU, {there['GPU']:g} GPU on {count(there['nodes'], 'node')}"
    )
    free = found["storage"].get("free_bytes")
    lines.append(f"storage    {found['storage']['uri']}" + (f" ({mib(free)} free)" if free is not None else ""))
    if package := found["package"]:
        size = f"{mib(package['bytes'])} in {count(package['files'], 'file')}"
        lines.append(f"package    {size} would go to a cluster with `seekray submit`")
    if found["register"]:
        lines.append(f"register   {found['register']}")
    lines += [f"note       {text}" for text in found["warnings"]]
    lines += [f"REFUSED    {text}" for text in found["refused"]]
    return "\n".join(lines)
