"""Tokenizing over Ray Data: one task reads, as many as there are CPUs tokenize, this process writes in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pyarrow as pa

from seekray.data.text.tokenizer import Tokenizer
from seekray.errors import ResourcesError

PATIENCE = 120.0  # seconds for a Ray that is being started meanwhile
WAITING = 64 * 2**20  # bytes of text and tokens on their way

Batches = Callable[[], Iterator[bytes]]
Tokenize = Callable[[bytes, Tokenizer], list[bytes]]


@cache
def _opened(file: bytes, end_token: str) -> Tokenizer:
    """In a process that tokenizes: the tokenizer, read once."""
    return Tokenizer(file, end_token)


def over_ray(batches: Batches, tokenize: Tokenize, tokenizer: Tokenizer, *, local: bool) -> Iterator[list[bytes]]:
    """What `tokenize` gives for each batch, in order; memory holds WAITING bytes of them, however many there are.

    local: what `batches` reads is on this machine alone. Raises ResourcesError where there is no Ray.
    """
    import ray
    from ray.data import DataContext, Datasource, ExecutionResources, ReadTask, read_datasource
    from ray.data.block import BlockMetadata

    until = time.monotonic() + PATIENCE
    while not ray.is_initialized():
        if time.monotonic() > until:
            raise ResourcesError(
                "data.text.tokenize: ray given, and there is no Ray; set resources.workers to 1 or more, or tokenize: here",
                field="data.text.tokenize",
            )
        time.sleep(0.1)

    def read() -> Iterator[pa.Table]:
        for batch in batches():
            yield pa.table({"data": pa.array([batch], pa.large_binary())})

    class Texts(Datasource):  # type: ignore[misc]
        """The one task that reads: a compressed or a JSON file can only be cut by reading it."""

        supports_distributed_reads = not local

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *args: Any, **kwargs: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    file, end_token = tokenizer.to_bytes(), tokenizer.end_token

    def encode(batch: pa.Table) -> pa.Table:
        """A batch is one row with one cell, so that Ray Data never cuts one."""
        cells = tokenize(batch.column("data")[0].as_py(), _opened(file, end_token))
        return pa.table({f"{i}": pa.array([cell], pa.large_binary()) for i, cell in enumerate(cells)})

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block is one batch
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=WAITING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it announces its plan and its progress bars' absence
    with DataContext.current(context):
        source = read_datasource(Texts(), override_num_blocks=1, num_cpus=0)
        done = source.map_batches(encode, batch_size=1, batch_format="pyarrow", num_cpus=1)
        for row in done.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pyarrow"):
            yield [row.column(name)[0].as_py() for name in sorted(row.column_names, key=int)]
