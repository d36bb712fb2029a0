"""The loop on Ray Train workers: what is sent there, what comes back, what the cluster must have."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from seekray import errors, loop
from seekray.checkpoint import Checkpoints
from seekray.config import Experiment, Resources
from seekray.data.prepared import Prepared
from seekray.data.schema import Schema
from seekray.driver_trainer import DriverTrainer
from seekray.errors import ResourcesError, SeekrayError
from seekray.interrupts import Interrupts
from seekray.mailbox import Mailbox
from seekray.models import get_family
from seekray.progress import Progress
from seekray.session import Listener, Point, Session
from seekray.storage import Storage

# How often an elastic run looks whether more workers would fit: a restart goes back to the last checkpoint.
RESIZE_SECONDS = 60.0


class TrainSession(Session):
    """A session on a Ray Train worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    def use_threads(self, work: int) -> None:
        """As many as the worker has CPUs; set before the session."""


class _Post:
    """Sends what rank 0 says to the driver."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self.rank = 0

    def points(self, new: Sequence[Point]) -> None:
        if self.rank == 0 and new:
            self._mailbox.put("points", [asdict(p) for p in new])

    def progress(self, state: Mapping[str, Any]) -> None:
        self._mailbox.show(dict(state))


class _Forward(logging.Handler):
    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        self._mailbox.put("warning", record.getMessage())


def train_worker(sent: Mapping[str, Any]) -> None:
    """Runs on each worker. An error that another try would meet again is told, not raised: Ray replaces lost workers only."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    mailbox = Mailbox(sent["run_id"], f"{time.time_ns():020d}/")
    logger = logging.getLogger("seekray")
    forward = _Forward(mailbox)
    if rank == 0:
        logger.addHandler(forward)
    try:
        _train(sent, mailbox)
    except (RuntimeError, ConnectionError) as error:
        if not isinstance(error, torch.OutOfMemoryError):
            raise  # a peer is gone: the group is replaced and goes on from the last checkpoint
        mailbox.put("error", ["failed", f"out of memory: {error}; lower training.batch_size or raise accumulate", None])
    except SeekrayError as error:
        mailbox.put("error", [error.code, error.message, error.field])
    except Exception as error:
        logger.exception("worker %d failed", rank)
        mailbox.put("error", ["failed", f"worker {rank}: {type(error).__name__}: {error}", None])
    finally:
        logger.removeHandler(forward)


def _train(sent: Mapping[str, Any], mailbox: Mailbox) -> None:
    experiment = Experiment.model_validate(sent["experiment"])
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker or 1)))
    run = Storage(sent["storage"])
    if not run.exists("experiment.json"):
        raise ResourcesError(
            f"storage {run.uri} is not visible from node {ray.util.get_node_ip_address()}; "
            "on several machines set storage (or SEEKRAY_STORAGE) to a shared folder or an s3:// URI"
        )
    schema, data = shared(experiment, ray.get(sent["data"]))
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    post = _Post(mailbox)
    context = ray.train.get_context()
    place = (context.get_world_rank(), context.get_world_size()) if experiment.resources.shard else ()
    checkpoint = Checkpoints(run).latest(*place)
    session = TrainSession(experiment.training, run, listener=post, resume_from=checkpoint, device=device)
    post.rank = session.rank
    for pulse in loop.epochs(experiment, session, schema, data["train"], data["validation"], data["initial"]):
        if sent["until"] is not None and len(pulse.state.history) >= sent["until"]:
            pulse.end()
            break
    if session.rank == 0:
        mailbox.put("done", None)


class _Stop(BaseException):
    """A worker told an error: its peers wait for it in vain. Not an Exception, which Ray would retry."""


class _Collect(WorkerGroupCallback):  # type: ignore[misc]
    """Empties the mailbox while the controller polls."""

    def __init__(self, mailbox: Mailbox, listener: Listener, interrupts: Interrupts) -> None:
        self._mailbox, self._listener, self._interrupts = mailbox, listener, interrupts
        self.error: SeekrayError | None = None
        self.done = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray sends a run's callbacks to its workers, where they are not used; a tracker's pen stays here."""
        return {}

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        self._interrupts.check()
        self.collect()
        if self.error is not None:
            raise _Stop

    def collect(self) -> None:
        for kind, body in self._mailbox.take():
            if kind == "points":
                self._listener.points([Point(**p) for p in body])
            elif kind == "progress":
                self._listener.progress(body)
            elif kind == "warning":
                logging.getLogger("seekray.worker").warning(body)
            elif kind == "error":
                self.error = self.error or _error(*body)
            elif kind == "done":
                self.done = True


def _error(code: str, message: str, field: str | None) -> SeekrayError:
    kinds = {k.code: k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, SeekrayError)}
    return kinds.get(code, SeekrayError)(message, field=field)


def share(prepared: Prepared) -> Any:
    """Put data where every worker of a node reads the same memory; the reference to it."""
    schema = prepared.schema
    return ray.put(
        {"schema": schema.to_json(), "files": schema.files()}
        | {name: getattr(prepared, name) for name in ("train", "validation", "initial")}
    )


def shared(experiment: Experiment, data: Mapping[str, Any]) -> tuple[Schema, Mapping[str, Any]]:
    """What `share` put there: the schema, and `train`, `validation` and `initial`."""
    return get_family(experiment.family).schema(data["schema"], data["files"]), data


def fit(
    experiment: Experiment,
    run_id: str,
    run: Storage,
    data: Any,
    listener: Listener,
    progress: Progress,
    *,
    until: int | None = None,
) -> None:
    """Run the loop on the cluster that this process is connected to. Raises SeekrayError.

    data: as `share` gives it. until: an epoch after which to stop, with a checkpoint.
    """
    resources = experiment.resources
    gpus = require(resources, progress)
    mailbox = Mailbox(run_id)
    mailbox.take()
    interrupts = Interrupts()
    collect = _Collect(mailbox, listener, interrupts)
    scratch = tempfile.mkdtemp(prefix="seekray-train-")  # Ray Train wants a folder; only this process touches it
    per_worker = {"CPU": resources.cpus_per_worker or 1} | ({"GPU": gpus} if gpus else {})
    trainer = DriverTrainer(
        train_worker,
        train_loop_config={
            "experiment": experiment.as_json(),
            "run_id": run_id,
            "storage": run.uri,
            "data": data,
            "until": until,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=bool(gpus),
            resources_per_worker=per_worker,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name="run",
            storage_path=scratch,
            callbacks=[collect],
            # A lost node may cost a group that was started for it too, which the controller counts as its own failure.
            failure_config=FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=2 + resources.max_failures
            ),
        ),
    )
    try:
        with interrupts:
            trainer.fit()
    except _Stop:
        pass
    except WorkerGroupError as error:
        collect.collect()
        reasons = "; ".join(f"rank {rank}: {type(e).__name__}: {e}" for rank, e in error.worker_failures.items())
        raise collect.error or SeekrayError(
            f"training failed after {resources.max_failures} replacements of lost workers: {reasons[:2000]}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    collect.collect()
    if not collect.done:
        raise collect.error or SeekrayError("the workers ended without finishing the run")


def require(resources: Resources, progress: Progress) -> float:
    """Check that the cluster has what the run asks for; returns GPUs a worker.

    Raises ResourcesError with what is asked and what is there, at once or after `resources.wait`.
    """
    least = resources.span[0]
    cpus = resources.cpus_per_worker or 1
    patience = time.monotonic() + (resources.wait if resources.wait is not None else 3)
    told, requested = 0.0, False
    while True:
        total = ray.cluster_resources()
        gpus = resources.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if total.get("GPU", 0) >= least else 0.0
        free = ray._private.state.available_resources_per_node()
        places = sum(_places(node, cpus, gpus) for node in free.values())
        if places >= least:
            return gpus
        asked = f"{least} workers of {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        there = f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU on {len(free)} node(s)"
        room = f"room for {places} such workers now"
        now = time.monotonic()
        if now >= patience:
            raise ResourcesError(
                f"asked: {asked}; there: {there}, {room}. "
                "Lower resources.workers or cpus_per_worker, or set resources.wait (for example 30m)",
                field="resources",
            )
        if resources.wait is not None and now - told > 10:
            progress.say(f"waiting for resources: asked {asked}; there {there}, {room}")
            told = now
            if not requested:
                _ask_autoscaler(least, cpus, gpus)
                requested = True
        time.sleep(0.5)


def _places(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-6)
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus + 1e-6)) if gpus else by_cpu


def _ask_autoscaler(workers: int, cpus: float, gpus: float) -> None:
    from ray.autoscaler.sdk import request_resources

    bundle = {"CPU": math.ceil(cpus)} | ({"GPU": math.ceil(gpus)} if gpus else {})
    request_resources(bundles=[bundle] * workers)
