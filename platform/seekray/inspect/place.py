"""Where a training would run and keep its runs, and what would be sent there; nothing is started or written."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seekray import cluster
from seekray.config import Experiment, Resources
from seekray.errors import SeekrayError
from seekray.inspect.ask_cluster import Cluster, ask
from seekray.inspect.texts import mib
from seekray.settings import Settings
from seekray.storage import filesystem

PATIENCE_S = 3.0  # for whoever is asked over a network


def there(where: Settings, resources: Resources, address: str | None) -> Cluster | None:
    """The cluster that would be used, None for this machine."""
    if resources.span[1] == 0:
        return None
    place = cluster.find(where, address)
    return None if place is None else ask(place, PATIENCE_S)


def resources(asked: Resources, there: Cluster | None, refused: list[str], warnings: list[str]) -> dict[str, Any]:
    """What is asked and what is there; what is missing goes to `refused`."""
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


def storage(uri: str) -> dict[str, Any]:
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


def unseen(experiment: Experiment, there: Cluster | None, uri: str) -> list[str]:
    """Local paths that a cluster on other machines does not see."""
    if there is None or there.here or there.error:
        return []
    found = []
    if _only_here(uri):
        found.append(
            f"storage: {uri} is a folder of this machine, which the workers at {there.address} do not see; "
            "set storage (or SEEKRAY_STORAGE) to s3://… or a shared folder"
        )
    source = experiment.data.source
    if there.address.startswith("http") and not source.startswith("sample:") and _only_here(source):
        found.append(
            f"data.source: {source} is on this machine, where a job at {there.address} does not see it; "
            "`seekray submit --ship-data` sends up to 50 MiB along"
        )
    return found


def _only_here(uri: str) -> bool:
    from seekray.parcel import on_network_file_system

    if "://" in uri and not uri.startswith("file://"):
        return False
    return not on_network_file_system(Path(filesystem(uri)[1]))


def package() -> dict[str, Any]:
    """What `seekray submit` would send from this folder."""
    from seekray import parcel

    sizes = {name: path.stat().st_size for name, path in parcel.files(Path.cwd().resolve()).items()}
    largest = sorted(sizes, key=lambda n: sizes[n], reverse=True)[:3]
    return {
        "bytes": sum(sizes.values()),
        "files": len(sizes),
        "largest": [{"name": n, "bytes": sizes[n]} for n in largest],
    }
