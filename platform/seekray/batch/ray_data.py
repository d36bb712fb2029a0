"""Parts over Ray Data: one task gives them out, actors that hold the model answer, this process writes.

A part travels as one row with one binary cell, so that Ray Data, which may merge and split blocks by rows,
can never cut one.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.batch.output import PartResult
from seekray.errors import ResourcesError, SeekrayError

Connect = Callable[[], AbstractContextManager[Any]]
Progress = Callable[[int, int | None], None]

PART_BYTES = 8 * 2**20


def cell(data: Any) -> pa.Array:
    """One binary value around a buffer, not copied."""
    data = pa.py_buffer(data)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, data.size])), data])


def result_row(done: PartResult) -> pa.Table:
    """What an actor gives back: one row {index, rows, rejected, data, rejects}."""
    numbers = {"index": [done.index], "rows": [done.rows], "rejected": [done.rejected]}
    return pa.table(numbers | {"data": cell(done.data), "rejects": cell(done.rejects)})


def loaded(files: Any, threads: int, what: str) -> Any:
    """In an actor: the model of a bundle whose files are in the object store. what: `module:Class` with `load`."""
    import tempfile

    import ray
    import torch

    torch.set_num_threads(threads)
    module, _, name = what.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        for file, data in ray.get(files).items():
            (Path(folder) / file).write_bytes(data)
        return getattr(importlib.import_module(module), name).load(folder)


def over_ray(
    read: Callable[[], Iterator[pa.Table]],
    worker: type[Any],
    arguments: Mapping[str, Any],
    bundle: Path | str,
    *,
    ordered: bool,
    local: bool = True,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[PartResult]:
    """Parts answered by actors of the Ray that this process is attached to.

    read: gives a one-row table a part; worker: a class whose instances turn it into `result_row`, made
    with `arguments`, `files` and `threads`. ordered: parts come back in their order. local: what is read
    is on this machine. Raises ResourcesError, and the SeekrayError of an actor.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask, read_datasource
    from ray.data.block import BlockMetadata

    class Parts(Datasource):  # type: ignore[misc]
        """The one task that reads: a text file can only be cut by reading it."""

        supports_distributed_reads = not local  # a local path is this machine's

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *args: Any, **kwargs: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    there, free = (found().get("CPU", 0.0) for found in (ray.cluster_resources, ray.available_resources))
    workers = workers or max(1, int(free / cpus) - 1)
    if workers * cpus > there:
        raise ResourcesError(f"{workers} workers of {cpus:g} CPUs asked for, Ray has {there:g}; give fewer with --workers")
    files = ray.put({p.name: p.read_bytes() for p in Path(bundle).iterdir() if p.is_file()})
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block is one part
    context.execution_options.preserve_order = ordered
    context.raise_original_map_exception = True
    # What waits in the object store, whatever its size: some parts read, some answered, for each actor.
    waiting = (4 + 4 * workers) * PART_BYTES
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=waiting)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it announces its plan and its progress bars' absence
    with DataContext.current(context):
        parts = read_datasource(Parts(), override_num_blocks=1, num_cpus=0).map_batches(
            worker,
            fn_constructor_kwargs={**arguments, "files": files, "threads": max(1, int(cpus))},
            compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        try:
            for batch in parts.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pyarrow"):
                cells = {name: batch.column(name)[0] for name in ("data", "rejects")}
                numbers = {n: batch.column(n)[0].as_py() for n in ("index", "rows", "rejected")}
                yield PartResult(
                    numbers["index"], numbers["rows"], numbers["rejected"],
                    cells["data"].as_buffer(), cells["rejects"].as_buffer(),
                )  # fmt: skip
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, SeekrayError):
                cause = getattr(cause, "cause", None) or cause.__cause__
            if cause is None:
                raise
            raise cause from error
