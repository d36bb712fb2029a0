"""Ray Train's TorchTrainer with its controller in this process instead of an actor.

Reason, measured on two cores: a stock run starts seven Python processes one after another before
the first step; most of them serve features that a run does not use. With the controller here and
those left out, the first step comes in less than half the time (docs/benchmarks.md). Everything
that differs from Ray 2.60 is on this page, and the version is pinned.

* The controller runs on this thread: Ctrl-C raises here, callbacks run here.
* No placement-group cleaner (the group ends with the job), no dataset manager (no Ray Data), no
  preemption watcher, and for a fixed number of workers no autoscaling coordinator.
* No synchronisation actor: seekray's workers do not call `ray.train.report`.
* Worker processes come from Ray's pool, which has imported torch while the driver was starting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any
from unittest import mock

import psutil
import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import state as worker_group_state
from ray.train.v2._internal.execution.worker_group import worker_group

POLL_SECONDS = 0.5  # a poll costs a worker 2 ms of its core
START_SECONDS = 20  # after which an elastic group is tried again with the nodes that are there then


class _NoCoordinator:
    """For a fixed number of workers nobody is asked for more resources."""

    def send_resource_request(self, *_: Any) -> None:
        return None

    maybe_send_resource_request = cancel_resource_request = send_resource_request


class _NoBarrier:
    """In place of the SynchronizationActor."""

    @classmethod
    def options(cls, **_: Any) -> type[_NoBarrier]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> _NoBarrier:
        return cls()


def _nothing(*_: Any) -> None:
    return None


def use_node_interface() -> None:
    """Runs on each worker, before its process group: Gloo otherwise listens at the address that the machine's
    name resolves to, which on Debian is a loopback (127.0.1.1) that the other nodes cannot reach."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Group(worker_group.WorkerGroup):  # type: ignore[misc]
    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:
        # Upstream adds env_vars, and any env_vars means a fresh process instead of a pooled one.
        return dict(custom_runtime_env)

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        ray.get([worker.actor.execute.remote(use_node_interface) for worker in workers])
        # As upstream, but without controller_actor: the driver is no actor.
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=None,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{key: values[rank] for key, values in train_context_args.items()},
                )
                for rank, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Group


def _count_living_nodes_only(policy: Any) -> None:
    """Ray's coordinator offers a dead node for up to 20 s more, and a group that waits for it waits for START_SECONDS."""
    reserved = policy._get_reserved_resources

    def living() -> Any:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        found = reserved()
        return found and {node: resources for node, resources in found.items() if node in alive}

    policy._get_reserved_resources = living


class DriverTrainer(TorchTrainer):  # type: ignore[misc]
    """See the module's text; used like TorchTrainer."""

    def _create_default_callbacks(self) -> list[Any]:
        left_out = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, left_out)]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        if not self.scaling_config.elasticity_enabled:
            kwargs["scaling_policy"]._coordinator_client = _NoCoordinator()
            kwargs["scaling_policy"].after_controller_start = _nothing
        else:
            _count_living_nodes_only(kwargs["scaling_policy"])
        with contextlib.ExitStack() as stack:
            environment = {
                "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
                "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # it would configure this process's logging
            }
            if self.scaling_config.elasticity_enabled:  # a node may die between the count and the start
                environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_SECONDS)
            stack.enter_context(mock.patch.dict(os.environ, environment))
            stack.enter_context(mock.patch.object(worker_group, "SynchronizationActor", _NoBarrier))
            stack.enter_context(mock.patch.object(worker_group_state, "_shutdown_sync_actor", _nothing))
            controller = _Controller(**kwargs)
            controller._health_check_interval_s = POLL_SECONDS
            events = asyncio.new_event_loop()  # not asyncio.run: Ctrl-C has to raise at once
            try:
                events.run_until_complete(controller.run())
                return controller.get_result()
            finally:
                group = controller.get_worker_group()
                if group and group.has_started():
                    group.abort()
                events.close()
