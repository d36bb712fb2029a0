"""How a Ray of our own is started: lean, and with workers that are ready when the run is."""

from __future__ import annotations

import math
import os

from seekray.config import Resources

STAY_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray replaces 127.0.0.1 by the machine's address unless this says that more nodes will never join."""


def private_ray_environment(*, preload: bool = True) -> dict[str, str]:
    """Environment for `ray.init`, measured in docs/benchmarks.md. preload: workers will train."""
    # Idle worker processes import these while the driver is still reading data.
    modules = {"RAY_preload_python_modules": "torch,seekray.ray_train"} if preload else {}
    return modules | {
        # The raylet tries its object store once and then sleeps this long (default 1000 ms).
        "RAY_raylet_client_connect_timeout_milliseconds": "20",
        "RAY_raylet_client_num_connect_attempts": "500",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
    }


def worker_processes(resources: Resources) -> int:
    """CPUs that a Ray of our own declares: it starts, and preloads, a process for each."""
    cores = os.cpu_count() or 1
    most = resources.span[1]
    return min(cores, max(most, math.ceil(most * (resources.cpus_per_worker or 1))))
