"""A model over a file of any size: streamed in parts, in the input's order, bad rows put aside.

The input is cut into parts of so many rows; a part's answers depend on its rows and the bundle
alone. Small inputs are done in this process; others over Ray Data, where one task reads, actors
that hold the model answer, and this process writes. A part travels as one row with one binary
cell, so that Ray Data, which may merge and split blocks by rows, can never cut one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from seekray.batch_output import Output, PartResult, encode, open_output
from seekray.batch_parts import AsText, Plan, answer_schema, nearest, predict_part, read_parts
from seekray.data.options import Data
from seekray.data.sources import Source, open_source
from seekray.errors import DataError, SeekrayError
from seekray.storage import filesystem

if TYPE_CHECKING:
    from seekray.data.features import FeatureSchema

Connect = Callable[[], AbstractContextManager[Any]]
Progress = Callable[[int, int | None], None]

IN_PROCESS_BYTES = 50 * 10**6
PART_BYTES = 16 * 2**20
MOST_PART_ROWS = 262_144


def needs_ray(data: Data, workers: int | None = None) -> bool:
    """Whether a run goes over Ray: more than 50 MB of data, or workers asked for."""
    return workers > 0 if workers is not None else (open_source(data).bytes or 0) >= IN_PROCESS_BYTES


def predict(
    bundle: Path | str,
    data: Data,
    out: str,
    *,
    workers: int | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    connect: Connect = nullcontext,
    progress: Progress | None = None,
    part_rows: int | None = None,
) -> dict[str, Any]:
    """Answer every row of `data` into `out`; returns `{rows, rejected, out}`: answered, put aside, where.

    bundle: a local bundle folder. out: `….parquet`, `….csv` or `….jsonl` (put aside: `OUT.rejected.jsonl`),
    or a folder of parts with `rejected/` and a manifest, which an interrupted run goes on with; both may be
    on an object store. data.key: columns carried through; without, those of the experiment that are
    there, else `row`, the number from 0. workers: actors on Ray; 0: this process; None: this process for
    less than 50 MB. connect: gives a Ray to attach to, entered only where it is used. progress: called
    with rows done and all rows, where known. part_rows: rows of a part, by default about 16 MB.

    Raises DataError for a missing column or data that cannot be read, UserError for an output that
    cannot be used, ModelNotFoundError, CorruptError.
    """
    from seekray.predictor import Predictor

    predictor = Predictor.load(bundle)
    source = open_source(data)
    names = [f.name for f in predictor.schema.features]
    keys = data.key or tuple(k for k in predictor.schema.key if k in source.schema.names)
    for name in [*names, *keys]:
        if name not in source.schema.names:
            raise DataError(f"{data.source}: column {name!r} is missing{nearest(name, source.schema.names)}", field=name)
    columns = tuple(dict.fromkeys([*keys, *names]))
    types = _types(predictor.schema, source)
    first = next(iter(source.batches(columns, types)), None)
    read = first.schema if first is not None else pa.schema([source.schema.field(c) for c in columns])
    schema = answer_schema(predictor.schema, read, keys)
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"data.key: {', '.join(keys)} and the answers {', '.join(schema.names[len(keys) :])} share a name")
    identity = {
        "format": 1,
        "bundle": predictor.hash,
        "data": fingerprint(data, source),
        "columns": schema.names,
        "part_rows": part_rows or _part_rows(first),
        "as_text": [],
    }
    output = open_output(out, schema, identity)
    plan = Plan(data, columns, keys, types, output.part_rows, output.encoding, schema)
    distributed = needs_ray(data, workers)
    total = source.count()
    try:
        with connect() if distributed else nullcontext():
            while True:
                plan = _as_text(plan, output.as_text)
                parts: Iterator[PartResult]
                if distributed:
                    parts = _over_ray(plan, bundle, output, workers, cpus_per_worker, gpus_per_worker)
                else:
                    parts = (predict_part(predictor, plan, *p) for p in read_parts(plan, frozenset(output.done())))
                try:
                    rows, rejected = _write(output, parts, total, progress)
                    break
                except AsText as error:
                    name = str(error)
                    # A number is the same read as text; another column's answers may not be.
                    numeric = name in {f.name for f in predictor.schema.features if f.kind == "numeric"}
                    output.restart([*output.as_text, name], keep=numeric and name not in keys)
        output.finish()
    except BaseException:
        output.abandon()
        raise
    return {"rows": rows, "rejected": rejected, "out": out}


def _write(output: Output, parts: Iterator[PartResult], total: int | None, progress: Progress | None) -> tuple[int, int]:
    done = output.done().values()
    rows, rejected = sum(d[0] for d in done), sum(d[1] for d in done)
    for part in parts:
        output.write(part)
        rows, rejected = rows + part.rows, rejected + part.rejected
        if progress:
            progress(rows + rejected, total)
    return rows, rejected


def _types(schema: FeatureSchema, source: Source) -> dict[str, pa.DataType]:
    """Numeric features are read as float64: a CSV column of integers may have a fraction further down."""
    numeric = [f.name for f in schema.features if f.kind == "numeric"]
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
    return {n: pa.float64() for n in numeric if any(is_kind(source.schema.field(n).type) for is_kind in plain)}


def _as_text(plan: Plan, names: Sequence[str]) -> Plan:
    schema = plan.schema
    for key in set(names) & set(plan.keys):
        schema = schema.set(schema.get_field_index(key), pa.field(key, pa.string()))
    return dataclasses.replace(plan, types={**plan.types, **dict.fromkeys(names, pa.string())}, schema=schema)


def _part_rows(first: pa.RecordBatch | None) -> int:
    if first is None or not first.num_rows:
        return MOST_PART_ROWS
    return int(min(MOST_PART_ROWS, max(64, PART_BYTES // max(1, first.nbytes // first.num_rows))))


def fingerprint(data: Data, source: Source) -> dict[str, Any]:
    """What tells whether data is the same without reading it: each file's path, size and time of change."""
    import hashlib

    if not source.paths:
        return {"source": data.source, "files": 0}
    fs, _ = filesystem(data.source)
    digest = hashlib.sha256()
    for info in fs.get_file_info(list(source.paths)):
        digest.update(f"{info.path}\0{info.size}\0{info.mtime_ns}\n".encode())
    return {"source": data.source, "files": len(source.paths), "hash": digest.hexdigest()[:16]}


# ---- over Ray


class Worker:
    """An actor of Ray Data: loads the model once, answers part after part."""

    def __init__(self, plan: Plan, files: Any, threads: int) -> None:
        import tempfile

        import ray
        import torch

        from seekray.predictor import Predictor

        torch.set_num_threads(threads)
        self._plan = plan
        with tempfile.TemporaryDirectory() as folder:
            for name, data in ray.get(files).items():
                (Path(folder) / name).write_bytes(data)
            self._predictor = Predictor.load(folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row {part, table} to one row {part, rows, rejected, data, rejects}."""
        (cell,) = batch.column("table")
        table = pa.ipc.open_stream(cell.as_buffer()).read_all()
        done = predict_part(self._predictor, self._plan, batch.column("part")[0].as_py(), table)
        numbers = {"part": [done.index], "rows": [done.rows], "rejected": [done.rejected]}
        return pa.table(numbers | {"data": _cell(done.data), "rejects": _cell(done.rejects)})


def _cell(data: Any) -> pa.Array:
    """One binary value around a buffer, not copied."""
    data = pa.py_buffer(data)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, data.size])), data])


def _over_ray(
    plan: Plan, bundle: Path | str, output: Output, workers: int | None, cpus: float, gpus: float
) -> Iterator[PartResult]:
    """Parts answered by actors; in order where the output wants it."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, read_datasource
    from ray.data.block import BlockMetadata

    skip = frozenset(output.done())

    def read() -> Iterator[pa.Table]:
        for index, table in read_parts(plan, skip):
            yield pa.table({"part": [index], "table": _cell(encode(table, "ipc"))})

    class Parts(Datasource):  # type: ignore[misc]
        """The one task that reads: a text file can only be cut by reading it."""

        supports_distributed_reads = "://" in plan.data.source  # a local path is this machine's

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *args: Any, **kwargs: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1) / cpus) - 1)
    files = ray.put({p.name: p.read_bytes() for p in Path(bundle).iterdir() if p.is_file()})
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block is one part
    context.execution_options.preserve_order = output.ordered
    context.raise_original_map_exception = True
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with DataContext.current(context):
        parts = read_datasource(Parts(), override_num_blocks=1, num_cpus=0.5).map_batches(
            Worker,
            fn_constructor_kwargs={"plan": plan, "files": files, "threads": max(1, int(cpus))},
            compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        try:
            for batch in parts.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pyarrow"):
                cells = {name: batch.column(name)[0] for name in ("data", "rejects")}
                numbers = {n: batch.column(n)[0].as_py() for n in ("part", "rows", "rejected")}
                yield PartResult(
                    numbers["part"], numbers["rows"], numbers["rejected"],
                    cells["data"].as_buffer(), cells["rejects"].as_buffer(),
                )  # fmt: skip
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, (SeekrayError, AsText)):
                cause = getattr(cause, "cause", None) or cause.__cause__
            if cause is None:
                raise
            raise cause from error
