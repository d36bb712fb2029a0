"""A model over a file of any size: streamed in parts, in the input's order, bad rows put aside.

The input is cut into parts of so many rows; a part's answers depend on its rows and the bundle
alone. Small inputs are done in this process; others over Ray Data, where one task reads, actors
that hold the model answer, and this process writes. A part travels as one row with one binary
cell, so that Ray Data, which may merge and split blocks by rows, can never cut one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import LocalFileSystem

from seekray.batch.output import Output, PartResult, encode, open_output
from seekray.batch.parts import Part, Plan, answer_schema, predict_part, read_parts
from seekray.batch.ray_data import PART_BYTES, Connect, Progress, cell, loaded, over_ray, result_row
from seekray.data.options import Data
from seekray.data.sequences.framing import framed_source
from seekray.data.sources import open_source
from seekray.data.sources.source import Source
from seekray.errors import DataError, UserError
from seekray.storage import filesystem

IN_PROCESS_BYTES = 50 * 10**6
MOST_PART_ROWS = 131_072


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
    cannot be used, ResourcesError, ModelNotFoundError, CorruptError.
    """
    from seekray.predictor import Predictor

    predictor = Predictor.load(bundle)
    if not predictor.schema.targets:
        raise UserError(
            f"{predictor.name} predicts nothing, it generates (task {predictor.task}); ask it with `seekray generate`"
        )
    # A record that is no row is put aside like a row that cannot be predicted.
    data = data.like_training(predictor.info.get("reading")).model_copy(update={"on_bad_row": "skip"})
    source = framed_source(open_source(data), getattr(predictor.schema, "frame", None))
    keys = data.key or tuple(k for k in predictor.schema.key if k in source.schema.names)
    columns = tuple(source.names(list(dict.fromkeys([*keys, *(f.name for f in predictor.schema.features)]))))
    first = next(iter(source.batches(columns)), None)
    read = first.schema if first is not None else source.schema
    schema = answer_schema(predictor.schema, read, keys)
    if len(set(schema.names)) < len(schema.names):
        raise DataError(
            f"data.key: a column of {', '.join(keys)} has the name of an answer; they are {', '.join(schema.names)}"
        )
    identity = {
        "format": 1,
        "bundle": predictor.hash,
        "data": fingerprint(data, source),
        "columns": schema.names,
        "part_rows": part_rows or _part_rows(first),
    }
    output = open_output(out, schema, identity)
    plan = Plan(columns, keys, output.part_rows, output.encoding, schema)
    rows, rejected = run_parts(
        plan, source, data, output, lambda part: predict_part(predictor, plan, part),
        worker=Worker, bundle=bundle, distributed=needs_ray(data, workers), workers=workers, cpus=cpus_per_worker,
        gpus=gpus_per_worker, connect=connect, progress=progress,
    )  # fmt: skip
    return {"rows": rows, "rejected": rejected, "out": out}


def run_parts(
    plan: Plan,
    source: Source,
    data: Data,
    output: Output,
    answer: Callable[[Part], PartResult],
    *,
    worker: type[Any],
    bundle: Path | str,
    distributed: bool,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    connect: Connect = nullcontext,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Answer the parts of a source that the output does not have yet; rows answered and put aside, all in all.

    answer: in this process; worker: the actor that does it on Ray, made with `plan`, `files` and `threads`.
    """
    skip = frozenset(output.done())
    try:
        with connect() if distributed else nullcontext():
            if distributed:
                parts = _over_ray(plan, source, data, bundle, skip, output.ordered, worker, workers, cpus, gpus)
            else:
                parts = (answer(part) for part in read_parts(source, plan, skip))
            rows, rejected = _write(output, parts, source.count(), progress)
        output.finish()
    except BaseException:
        output.abandon()
        raise
    return rows, rejected


def _write(output: Output, parts: Iterator[PartResult], total: int | None, progress: Progress | None) -> tuple[int, int]:
    done = output.done().values()
    rows, rejected = sum(d[0] for d in done), sum(d[1] for d in done)
    for part in parts:
        output.write(part)
        rows, rejected = rows + part.rows, rejected + part.rejected
        if progress:
            progress(rows + rejected, total)
    return rows, rejected


def _part_rows(first: pa.RecordBatch | None) -> int:
    if first is None or not first.num_rows:
        return MOST_PART_ROWS
    return int(min(MOST_PART_ROWS, max(1, PART_BYTES // max(1, first.nbytes // first.num_rows))))


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


class Worker:
    """An actor of Ray Data: loads the model once, answers part after part."""

    def __init__(self, plan: Plan, files: Any, threads: int) -> None:
        self._plan, self._predictor = plan, loaded(files, threads, "seekray.predictor:Predictor")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of a part to one row of `result_row`."""
        return result_row(predict_part(self._predictor, self._plan, part_of(batch)))


def part_of(batch: pa.Table) -> Part:
    """The part that travelled as one row {index, first, malformed, table}."""
    (row,) = batch.select(["index", "first", "malformed"]).to_pylist()
    table = pa.ipc.open_stream(batch.column("table")[0].as_buffer()).read_all()
    return Part(row["index"], row["first"], json.loads(row["malformed"]), table)


def _over_ray(
    plan: Plan,
    source: Source,
    data: Data,
    bundle: Path | str,
    skip: frozenset[int],
    ordered: bool,
    worker: type[Any],
    workers: int | None,
    cpus: float,
    gpus: float,
) -> Iterator[PartResult]:
    """Parts answered by actors."""
    import ray

    try:
        # What the source has learned of the files (a CSV's types) need not be learned again.
        known = ray.put(source)
    except TypeError:
        known = None

    def read() -> Iterator[pa.Table]:
        for part in read_parts(ray.get(known) if known is not None else open_source(data), plan, skip):
            numbers = {"index": [part.index], "first": [part.first], "malformed": [json.dumps(part.malformed)]}
            yield pa.table(numbers | {"table": cell(encode(part.table, "ipc"))})

    local = not source.paths or isinstance(filesystem(data.source)[0], LocalFileSystem)
    return over_ray(read, worker, {"plan": plan}, bundle, ordered=ordered, local=local, workers=workers, cpus=cpus, gpus=gpus)
