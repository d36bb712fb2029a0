"""`train --dry-run`: what a training would read, build, use and send, and what would be refused. Starts nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.data.schema import Schema
from seekray.errors import SeekrayError
from seekray.inspect import place
from seekray.inspect.head import Head, here, prepare_head, source_size
from seekray.inspect.later import later
from seekray.inspect.sampling import WHOLE_BYTES
from seekray.inspect.texts import count, mib
from seekray.models import get_family
from seekray.models.supervised import Supervised
from seekray.settings import settings

EXACT_BYTES = 16 * 2**20  # a larger source is not read whole
EXACT_ROWS = 200_000
OWN_EXACT_BYTES = 2 * 2**20  # the same where a family has a schema of its own
HEAD_BYTES = 2**20  # what is read then: a tokenizer is trained on it and all of it tokenized in a second
T = TypeVar("T")


@dataclass(frozen=True)
class Read:
    """What is known of the data. parts: rows of train, validation and test; unit: what they are where they are no rows.

    prepared: where all of it was read.
    """

    schema: Schema | None
    parts: dict[str, int]
    rows: int
    estimated: bool
    bytes: int | None
    rejected: int = 0
    prepared: Prepared | None = None
    warnings: tuple[str, ...] = ()
    unit: str = "row"
    exact_rows: bool = False


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
    """All rows where they are few, else the first ones; what cannot be read goes to `refused`."""
    data = experiment.data
    nothing = Read(None, {"train": 0, "validation": 0, "test": 0}, 0, False, None)
    # A family with a schema of its own (tokens, codes) takes longer over its data.
    own = type(get_family(experiment.family)).schema is not Supervised.schema
    try:
        size, rows = source_size(data)
        if (size or 0) > (OWN_EXACT_BYTES if own else EXACT_BYTES) or (rows or 0) > EXACT_ROWS:
            return _estimated(prepare_head(experiment, HEAD_BYTES if own else WHOLE_BYTES), size)
        prepared = here(experiment).prepare()
    except SeekrayError as error:
        refused.append(error.message)
        return nothing
    except (pa.ArrowException, OSError) as error:
        refused.append(f"data.source: {data.source} cannot be read: {str(error).splitlines()[0]}")
        return nothing
    rejected = len({r["row"] for r in prepared.rejected})
    warnings, unit = tuple(prepared.warnings), getattr(prepared.train, "unit", "row")
    return Read(prepared.schema, _lengths(prepared), prepared.rows, False, size, rejected, prepared, warnings, unit)


def _lengths(prepared: Prepared) -> dict[str, int]:
    test = len(prepared.held_out) if prepared.held_out_name == "test" else 0
    return {"train": len(prepared.train), "validation": len(prepared.validation), "test": test}


def _estimated(head: Head, size: int | None) -> Read:
    """What the beginning of the data tells of all of it."""
    found, times = head.prepared, head.times
    rows = head.documents or round(found.rows * times)
    parts = {name: round(length * times) for name, length in _lengths(found).items()}
    if head.documents is not None:  # the test is kept as texts, not as windows
        parts["test"] = round(_lengths(found)["test"] * rows / max(1, found.rows))
    first = count(found.rows, "row") if head.documents is None else mib(head.bytes)
    warnings = [f"the data is large: all of it is estimated from its first {first}", *found.warnings]
    unit = getattr(found.train, "unit", "row")
    return Read(found.schema, parts, rows, True, size, 0, None, tuple(warnings), unit, head.documents is not None)


def _data(experiment: Experiment, read: Read) -> dict[str, Any]:
    schema = read.schema
    kinds: dict[str, int] = {}
    categorical: dict[str, int] = {}
    if schema:
        for feature in schema.features:
            kinds[feature.kind] = kinds.get(feature.kind, 0) + 1
        names = [f.name for f in schema.features if f.kind == "categorical"]
        if len(schema.cardinalities) == len(names):  # a generator has codes instead
            categorical = dict(zip(names, schema.cardinalities, strict=True))
    return {
        "source": experiment.data.source,
        "bytes": read.bytes,
        "rows": read.rows,
        "exact_rows": read.exact_rows or not read.estimated,
        "unit": read.unit,
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
    return {"parameters": parameters, "estimated": read.estimated, "bytes": 4 * parameters, "modules": sorted(modules)}


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


def _named(number: int, part: str, unit: str) -> str:
    return f"{number:,} {part}" if not unit else count(number, f"{part} {unit}")


def dry_run_text(found: Mapping[str, Any]) -> str:
    """For people."""
    data, training, resources = found["data"], found["training"], found["resources"]
    about = "about " if data["estimated"] else ""
    unit = "" if data["unit"] == "row" else data["unit"]
    whole = ("" if data["exact_rows"] else "about ") + count(data["rows"], "document" if unit else "row")
    kinds = ", ".join(f"{n} {kind}" for kind, n in data["kinds"].items())
    lines = [
        f"{found['name']}: {found['family']}, {found['task']} (dry run, nothing is started)",
        f"data       {data['source']}: {whole}; "
        f"{_named(data['train'], 'training', unit)}, "
        f"{_named(data['validation'], 'validation', unit)}, {_named(data['test'], 'test', unit and 'text')}"
        + (f", {data['rejected']:,} rejected" if data["rejected"] else ""),
    ]
    if data["features"]:
        sizes = ", ".join(f"{name} {size:,}" for name, size in list(data["categorical"].items())[:6])
        more = f"; categories: {sizes}{', …' if len(data['categorical']) > 6 else ''}" if sizes else ""
        lines.append(f"features   {count(data['features'], 'column')} ({kinds}) → {data['dense_size']:,} numbers{more}")
    if found["model"]:
        lines.append(f"model      {about}{count(found['model']['parameters'], 'parameter')} ({mib(found['model']['bytes'])})")
    until = " at most (early stopping)" if training["early_stopping"] else ""
    lines.append(
        f"training   {about}{count(training['steps'], 'step')} of {training['batch_size']} {data['unit']}s, "
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
