"""Where Ray runs: an address that was given, the head that `serve up` left running, or one of our own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil

from seekray.config import Resources
from seekray.errors import ClusterError, ResourcesError
from seekray.ray_environment import STAY_ON_LOOPBACK, private_ray_environment, worker_processes
from seekray.settings import Settings


@dataclass(frozen=True)
class Address:
    """A running Ray. token_file: where its token is, None for Ray's own place."""

    gcs: str
    token_file: str | None = None


def find(settings: Settings, address: str | None = None) -> Address | None:
    """The Ray to attach to, or None to start one."""
    if given := address or settings.ray_address:
        return Address(given)
    try:
        left = json.loads((settings.home / "serve.json").read_text())
        host, _, port = left["gcs"].rpartition(":")
        socket.create_connection((host, int(port)), timeout=2).close()  # the file may have outlived its Ray
        return Address(left["gcs"], left["token_file"])
    except (OSError, ValueError, KeyError):
        return None


@contextlib.contextmanager
def connect(settings: Settings, resources: Resources | None = None, address: str | None = None) -> Iterator[None]:
    """Attach this process to Ray, or start one that ends with the block. Raises ClusterError."""
    place = find(settings, address)
    if place is None:
        # ray.init turns token authentication on by itself.
        environment = private_ray_environment(preload=resources is not None) | STAY_ON_LOOPBACK
    elif place.token_file:
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": place.token_file} | STAY_ON_LOOPBACK
    else:
        environment = {}
    with mock.patch.dict(os.environ, environment):  # Ray reads some of it when it is imported
        quiet()
        import ray

        if ray.is_initialized():
            yield
            return
        if place is None and resources:
            _check_fits(resources)
        try:
            if place is None:
                ray.init(
                    address="local",  # without, Ray joins whatever cluster was last started on this machine
                    num_cpus=worker_processes(resources) if resources else None,
                    include_dashboard=False,
                    log_to_driver=False,
                    _node_ip_address="127.0.0.1",
                )
            else:
                ray.init(address=place.gcs, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"at {place.gcs}" if place else "could be started on this machine"
            raise ClusterError(
                f"no Ray {where}: {str(error).splitlines()[0]}. Look at --address, RAY_ADDRESS and `seekray doctor`"
            ) from error
        try:
            _keep_token_private()
            yield
        finally:
            ours = _ray_processes() if place is None else []
            ray.shutdown()
            _end(ours)


def _ray_processes() -> list[psutil.Process]:
    """Of the Ray that this process has started: its daemons and all below them."""
    import ray

    found = []
    for _, daemon in ray._private.worker._global_node.live_processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # it crashed
            top = psutil.Process(daemon.pid)
            found += [top, *top.children(recursive=True)]
    return found


def _end(processes: list[psutil.Process]) -> None:
    """They end with their raylet, but one was seen that hung on its way out and would have stayed for good."""
    for process in psutil.wait_procs(processes, timeout=1)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _check_fits(resources: Resources) -> None:
    """What this machine will never have is refused before a Ray starts on it. Raises ResourcesError."""
    least, cpus, gpus = resources.span[0], resources.cpus_per_worker or 1, resources.gpus_per_worker or 0
    cores = os.cpu_count() or 1
    there, asked = f"{cores} CPU", f"{least} workers of {cpus:g} CPU"
    enough = least * cpus <= cores
    if gpus:
        import torch

        found = torch.cuda.device_count()
        there, asked = f"{there} and {found} GPU", f"{asked} and {gpus:g} GPU"
        enough = enough and least * gpus <= found
    if not enough:
        raise ResourcesError(
            f"asked: {asked}; there: {there} on this machine. Lower resources.workers or cpus_per_worker, "
            "or name a larger cluster with --address",
            field="resources",
        )


def _keep_token_private() -> None:
    """ray.init writes the user's token with the usual mode; whoever reads it can run code in Ray's processes."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)


def quiet() -> None:
    """What Ray says in this process goes to the run's log file, not to the terminal."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # noqa: F401  (installs its handlers on import)

    logger = logging.getLogger("ray")
    logger.handlers.clear()
    logger.propagate = True
