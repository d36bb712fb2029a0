"""The doctor's checks of the machine: each looks at one thing and says what it found and what to do about it."""

from __future__ import annotations

import email.utils
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from seekray.inspect.texts import mib
from seekray.settings import Settings

GIB = 2**30
TIMEOUT_S = 2.0
CLOCK_SKEW_S = 60.0


@dataclass(frozen=True)
class Check:
    """What one look found. advice: what to do where the state is note or wrong."""

    name: str
    state: Literal["ok", "note", "wrong"]
    found: str
    advice: str = ""


def machine(settings: Settings, address: str | None) -> Sequence[Check]:
    """Cores and memory that this process may use."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = load > 2 * usable
    of = f" of {cores}" if usable < cores else ""
    memory = psutil.virtual_memory()
    low = memory.available < GIB
    return [
        Check(
            "cores",
            "note" if busy else "ok",
            f"{usable}{of}, load {load:.1f}",
            "other programs keep the machine busy; timings will be slow" if busy else "",
        ),
        Check(
            "memory",
            "note" if low else "ok",
            f"{mib(memory.total)}, {mib(memory.available)} available",
            "less than 1 GiB is available; end other programs or use fewer workers" if low else "",
        ),
    ]


def gpus(settings: Settings, address: str | None) -> Sequence[Check]:
    """GPUs that the driver sees and torch can use."""
    seen = _nvidia_smi()
    if not seen and not any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")):
        return [Check("gpus", "ok", "none; everything runs on the CPU")]
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if seen and not names:
        return [
            Check(
                "gpus",
                "wrong",
                f"the driver sees {', '.join(seen)}, torch {torch.__version__} cannot use it",
                "install torch's CUDA build, or set resources.gpus_per_worker: 0",
            )
        ]
    return [Check("gpus", "ok", ", ".join(names) if names else "none; everything runs on the CPU")]


def _nvidia_smi() -> list[str]:
    binary = shutil.which("nvidia-smi")
    if binary is None:
        return []
    command = [binary, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def versions(settings: Settings, address: str | None) -> Sequence[Check]:
    """Python and the packages, against what this seekray asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wrong = []
    shown = [f"python {platform.python_version()}"]
    try:
        own = importlib.metadata.metadata("seekray")
        needed = [Requirement(r) for r in importlib.metadata.requires("seekray") or () if "extra ==" not in r]
        python = SpecifierSet(own["Requires-Python"])
    except importlib.metadata.PackageNotFoundError:
        return [Check("versions", "wrong", "seekray is not installed as a package", "pip install -e . in its folder")]
    if platform.python_version() not in python:
        wrong.append(f"python {platform.python_version()}, expected {python}")
    for requirement in needed:
        try:
            have = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if requirement.name in ("torch", "ray", "mlflow"):
            shown.append(f"{requirement.name} {have}")
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} {have}, expected {requirement.specifier}")
    shown.insert(0, f"seekray {own['Version']}")
    if wrong:
        return [Check("versions", "wrong", "; ".join(wrong), "make install (or pip install -r requirements.lock)")]
    return [Check("versions", "ok", ", ".join(shown))]


def disk(settings: Settings, address: str | None) -> Sequence[Check]:
    """Room for runs and for Ray's sessions."""
    found = []
    seen = set()
    for name, folder in (("disk", settings.home), ("temporary disk", Path(tempfile.gettempdir()))):
        at = existing(folder)
        if at.stat().st_dev in seen:
            continue
        seen.add(at.stat().st_dev)
        free = shutil.disk_usage(at).free
        state: Literal["ok", "note", "wrong"] = "wrong" if free < GIB else "note" if free < 5 * GIB else "ok"
        advice = f"make room at {at}: checkpoints and Ray's sessions need some GiB"
        found.append(Check(name, state, f"{mib(free)} free at {at}", advice if state != "ok" else ""))
    return found


def shared_memory(settings: Settings, address: str | None) -> Sequence[Check]:
    """/dev/shm, where Ray keeps its objects."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Check("shared memory", "ok", "no /dev/shm on this system")]
    usage = shutil.disk_usage(folder)
    if usage.free < GIB:
        advice = "Ray will put objects on the disk, which is slow; in a container: --shm-size=4g"
        return [Check("shared memory", "note", f"{mib(usage.free)} free of {mib(usage.total)} in /dev/shm", advice)]
    return [Check("shared memory", "ok", f"{mib(usage.free)} free in /dev/shm")]


def clock(settings: Settings, address: str | None) -> Sequence[Check]:
    """This machine's time, against the tracking server's where there is one, else against the installation's."""
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if settings.tracking_uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{settings.tracking_uri.rstrip('/')}/health", timeout=TIMEOUT_S) as answer:
                told = answer.headers.get("Date")
        except (OSError, ValueError):
            told = None
        if told and (skew := now - email.utils.parsedate_to_datetime(told).timestamp()) and abs(skew) > CLOCK_SKEW_S:
            way = "ahead of" if skew > 0 else "behind"
            return [Check("clock", "wrong", f"{shown}, {abs(skew):.0f} s {way} {settings.tracking_uri}", "set the clock (NTP)")]
    installed = Path(sys.modules[__name__].__file__ or __file__).stat().st_mtime
    if now < installed - CLOCK_SKEW_S:
        return [Check("clock", "wrong", f"{shown}, before this seekray was installed", "set the clock (NTP)")]
    return [Check("clock", "ok", shown)]


def existing(path: Path) -> Path:
    """The path, or its nearest parent that is there."""
    while not path.exists():
        path = path.parent
    return path
