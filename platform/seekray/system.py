"""What this process and its machine are using, and what they run on."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

# Of glibc's malloc.h: parameters of `mallopt`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the allocator keep what training steps free for the next step, up to 256 MiB.

    By itself glibc gives a step's activations back to the kernel and takes as many fresh, zeroed pages for the next
    one, most of all in a thread, which is where a Ray worker trains: some 700 page faults, 6 % of a step of 20 ms.
    Other allocators have no such switch and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


@cache
def _process() -> psutil.Process:
    psutil.cpu_percent()
    return psutil.Process()


def system_metrics() -> dict[str, float]:
    """CPU and memory now, and the GPU's memory where one is used; MiB and percent."""
    memory = psutil.virtual_memory()
    values = {
        "system/process_memory_mib": _process().memory_info().rss / 2**20,
        "system/memory_percent": float(memory.percent),
        "system/cpu_percent": psutil.cpu_percent(),
    }
    import torch

    if torch.cuda.is_available():
        values["system/gpu_memory_mib"] = torch.cuda.memory_allocated() / 2**20
    return values


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("seekray", "torch", "ray", "mlflow", "pyarrow", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state(folder: Path | None = None) -> dict[str, str]:
    """Commit and dirty flag of the working folder, {} outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}
