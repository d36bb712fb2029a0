"""`train --dry-run`: what a training would read, build, use and send, and what would be refused. Starts nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from seekray import cluster
from seekray.config import Experiment, Resources
from seekray.data import split as splits
from seekray.data.columns import as_columns
from seekray.data.features import FeatureSchema
from seekray.data.fitting import fit
from seekray.data.options import Data
from seekray.data.parse import Rejects
from seekray.data.prepare import Prepared, prepare, used_columns
from seekray.data.sources import open_source
from seekray.errors import SeekrayError
from seekray.inspect.ask_cluster import Cluster, ask
from seekray.inspect.look import bad_rows
from seekray.inspect.sampling import take_sample
from seekray.inspect.texts import count, mib
from seekray.models import get_family
from seekray.settings import Settings, settings
from seekray.storage import filesystem

EXACT_BYTES = 16 * 2**20  # a larger source is not read whole
PATIENCE_S = 3.0  # of the steps that ask a network or walk a folder
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Read:
    """What is known of the data. parts: rows of train, validation and test."""

    schema: FeatureSchema | None
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
    pool = ThreadPoolExecutor(3)
    asked = pool.submit(_there, where, experiment.resources, address)
    sent = pool.submit(_package)
    stored = pool.submit(_storage, experiment.storage or where.storage)
    try:
        read = _read(experiment, refused)
        warnings += read.warnings
        model = _model(experiment, read, refused)
        training = _steps(experiment, read)
        _check_rows(experiment, read, refused)
        there = _await(asked, "resources", warnings)
        resources = _resources(experiment.resources, there, refused, warnings)
        storage = _await(stored, "storage", warnings) or {"uri": experiment.storage or where.storage}
        refused += storage.pop("refused", [])
        refused += _unseen(experiment, where, there, storage)
        package = _await(sent, "what would be sent", warnings)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
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
        return future.result(timeout=PATIENCE_S)
    except TimeoutError:
        warnings.append(f"{what}: no answer in {PATIENCE_S:g} s")
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
            prepared = prepare(data, task)
            train, validation = len(prepared.train.rows), len(prepared.validation.rows)
            parts = {"train": train, "validation": validation, "test": prepared.rows - train - validation}
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
        except (NotImplementedError, RuntimeError):
            modules = family.build(experiment.model, read.schema)
    except ValueError as error:
        refused.append(str(error))
        return None
    parameters = sum(p.numel() for m in modules.values() for p in m.parameters())
    return {"parameters": parameters, "bytes": 4 * parameters, "modules": sorted(modules)}


def _steps(experiment: Experiment, read: Read) -> dict[str, Any]:
    training = experiment.training
    per_epoch = math.ceil(read.parts["train"] / training.batch_size)
    if read.prepared is not None:
        import torch

        where = {"rank": 0, "world_size": 1, "device": "cpu", "dtype": torch.float32, "pin_memory": False}
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


# ---- where it would run


def _there(where: Settings, resources: Resources, address: str | None) -> Cluster | None:
    """The cluster that would be used, None for this machine."""
    if resources.span[1] == 0:
        return None
    place = cluster.find(where, address)
    return None if place is None else ask(place)


def _resources(asked: Resources, there: Cluster | None, refused: list[str], warnings: list[str]) -> dict[str, Any]:
    import torch

    least, most = asked.span
    cpus = asked.cpus_per_worker or 1.0
    local_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there is None:
        total = {"CPU": float(_cores()), "GPU": float(local_gpus)}
        nodes = [total]
        place = "this process" if most == 0 else "a Ray of its own on this machine"
    else:
        total = {"CPU": there.total("CPU"), "GPU": there.total("GPU")}
        nodes = [n.free for n in there.nodes]
        place = f"the Ray at {there.address}"
        if there.error:
            refused.append(f"--address: {there.error}")
    gpus = asked.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if total["GPU"] >= max(1, least) else 0.0
    found = {
        "place": place,
        "workers": list(asked.span) if least != most else least,
        "cpus_per_worker": asked.cpus_per_worker or (None if most == 0 else cpus),
        "gpus_per_worker": gpus,
        "there": total | {"nodes": len(nodes)},
    }
    if most == 0 or (there is not None and there.error):
        if most == 0 and asked.gpus_per_worker and not local_gpus:
            warnings.append("resources.gpus_per_worker: no GPU is here; the CPU would be used")
        return found
    room = sum(_places(node, cpus, gpus) for node in nodes)
    found["room"] = room
    if room < least:
        text = (
            f"resources: asked {least} workers of {cpus:g} CPU{f' and {gpus:g} GPU' if gpus else ''}; there are "
            f"{total['CPU']:g} CPU and {total['GPU']:g} GPU on {len(nodes)} node(s), room for {room} such workers now"
        )
        if asked.wait is None:
            refused.append(f"{text}. Lower resources.workers or cpus_per_worker, or set resources.wait (for example 30m)")
        else:
            warnings.append(f"{text}; it would wait up to {asked.wait:g} s")
    return found


def _cores() -> int:
    return os.cpu_count() or 1


def _places(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-6)
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus + 1e-6)) if gpus else by_cpu


def _storage(uri: str) -> dict[str, Any]:
    """Whether runs can be kept there, without leaving anything."""
    found: dict[str, Any] = {"uri": uri}
    try:
        files, path = filesystem(uri)
    except SeekrayError as error:
        return found | {"refused": [f"storage: {error.message}"]}
    if not hasattr(files, "type_name") or files.type_name != "local":
        try:
            files.get_file_info(path.split("/")[0])
        except OSError as error:
            return found | {"refused": [f"storage: {uri} cannot be reached: {str(error).splitlines()[0][:300]}"]}
        return found
    place = Path(path)
    while not place.exists():
        place = place.parent
    found["free_bytes"] = shutil.disk_usage(place).free
    if not place.is_dir():
        return found | {"refused": [f"storage: {place} is a file, expected a folder"]}
    if not os.access(place, os.W_OK | os.X_OK):
        return found | {"refused": [f"storage: {place} cannot be written by this user; set storage or SEEKRAY_STORAGE"]}
    if found["free_bytes"] < 2**30:
        return found | {"refused": [f"storage: {place} has {mib(found['free_bytes'])} free, expected 1 GiB or more"]}
    return found


def _unseen(experiment: Experiment, where: Settings, there: Cluster | None, storage: Mapping[str, Any]) -> list[str]:
    """Local paths that a cluster on other machines does not see."""
    if there is None or there.here or there.error:
        return []
    from seekray.parcel import on_network_file_system

    found = []
    uri = str(storage["uri"])
    if "://" not in uri or uri.startswith("file://"):
        files, path = filesystem(uri)
        if not on_network_file_system(Path(path)):
            found.append(
                f"storage: {uri} is a folder of this machine, which the workers at {there.address} do not see; "
                "set storage (or SEEKRAY_STORAGE) to s3://… or a shared folder"
            )
    source = experiment.data.source
    submitted = there.address.startswith("http")
    if submitted and "://" not in source and not source.startswith("sample:"):
        if not on_network_file_system(Path(source).resolve()):
            found.append(
                f"data.source: {source} is on this machine, where a job at {there.address} does not see it; "
                "`seekray submit --ship-data` sends up to 50 MiB along"
            )
    return found


def _package() -> dict[str, Any]:
    """What `seekray submit` would send from this folder."""
    from seekray import parcel

    sizes = {name: path.stat().st_size for name, path in parcel.files(Path.cwd().resolve()).items()}
    largest = sorted(sizes, key=lambda n: sizes[n], reverse=True)[:3]
    return {
        "bytes": sum(sizes.values()),
        "files": len(sizes),
        "largest": [{"name": n, "bytes": sizes[n]} for n in largest],
    }


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
        lines.append(
            f"package    {mib(package['bytes'])} in {count(package['files'], 'file')} would go to a cluster with `seekray submit`"
        )
    if found["register"]:
        lines.append(f"register   {found['register']}")
    lines += [f"note       {text}" for text in found["warnings"]]
    lines += [f"REFUSED    {text}" for text in found["refused"]]
    return "\n".join(lines)
