"""What a generator makes, of any size, into a file or a folder.

Rows are a stream that the seed fixes: row number i is the same whoever makes it and however the rows are cut
into parts. So parts can be made on any worker, and an interrupted folder is gone on with. Small requests are
made in this process; others over Ray Data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from seekray.batch.output import PartResult, encode, open_output
from seekray.batch.ray_data import PART_BYTES, Connect, Progress, loaded, over_ray, result_row
from seekray.errors import UserError
from seekray.generator import Generator
from seekray.images import image_column, write_images

IN_PROCESS_ROWS = 500_000
MOST_PART_ROWS = 65_536


def conditions(given: Sequence[str]) -> dict[str, str]:
    """`--where COLUMN=VALUE`, each as texts; the model reads the values as it reads a column's. Raises UserError."""
    for text in given:
        if "=" not in text:
            raise UserError(f"--where: {text!r} given, expected column=value", field="where")
    return {name: value for name, _, value in (text.partition("=") for text in given)}


def generate(
    bundle: Path | str,
    request: Mapping[str, Any],
    out: str,
    *,
    workers: int | None = None,
    connect: Connect = nullcontext,
    progress: Progress | None = None,
    part_rows: int | None = None,
) -> dict[str, Any]:
    """Make what `request` asks for into `out`; returns `{rows, out}`.

    bundle: a local bundle folder of a generator of rows. request: fields of the family's `Request`, with
    `rows`. out: `….parquet`, `….csv` or `….jsonl`, or a folder: of PNG files with a contact sheet for a model of
    images, else of Parquet parts with a manifest, which an interrupted run goes on with. workers: actors on Ray;
    0: this process; None: this process up to 500,000 rows. connect: gives a Ray to attach to.

    Raises UserError for a request or an output that cannot be used, ResourcesError, ModelNotFoundError, CorruptError.
    """
    generator = Generator.load(bundle)
    if not {"rows", "first"} <= set(generator.fields):
        raise UserError(f"{generator.name} does not make rows (family {generator.info['family']}, task {generator.task})")
    rows = int(generator.request(request).rows)
    first = generator.generate(**{**request, "rows": min(rows, 256)})
    if image_column(first) and "." not in out.rstrip("/").rsplit("/", 1)[-1]:
        return {"rows": write_images(_tables(generator, request, rows, 1024), Path(out)), "out": out}
    size = part_rows or int(min(MOST_PART_ROWS, max(256, PART_BYTES * len(first) // max(1, first.nbytes))))
    identity = {
        "format": 1, "bundle": generator.hash, "data": dict(request), "columns": first.schema.names, "part_rows": size,
    }  # fmt: skip
    output = open_output(out, first.schema, identity)
    done = output.done()
    todo = [i for i in range(-(-rows // output.part_rows)) if i not in done]
    distributed = workers > 0 if workers is not None else rows > IN_PROCESS_ROWS
    made = sum(count for count, _ in done.values())
    try:
        with connect() if distributed else nullcontext():
            plan = Plan(dict(request), rows, output.part_rows, output.encoding)
            if distributed:
                parts = over_ray(plan.read(todo), Worker, {"plan": plan}, bundle, ordered=output.ordered, workers=workers)
            else:
                parts = (plan.make(generator, index) for index in todo)
            for part in parts:
                output.write(part)
                made += part.rows
                if progress:
                    progress(made, rows)
        output.finish()
    except BaseException:
        output.abandon()
        raise
    return {"rows": made, "out": out}


def _tables(generator: Generator, request: Mapping[str, Any], rows: int, size: int) -> Iterator[pa.Table]:
    for first in range(0, rows, size):
        yield generator.generate(**{**request, "rows": min(size, rows - first), "first": first})


class Plan:
    """How a request is cut into parts; every process of a run is told."""

    def __init__(self, request: Mapping[str, Any], rows: int, part_rows: int, encoding: str) -> None:
        self._request, self._rows, self._part_rows, self._encoding = request, rows, part_rows, encoding

    def read(self, indices: list[int]) -> Callable[[], Iterator[pa.Table]]:
        """What the one reading task gives out: numbers of parts."""

        def parts() -> Iterator[pa.Table]:
            for index in indices:
                yield pa.table({"index": [index]})

        return parts

    def make(self, generator: Generator, index: int) -> PartResult:
        """One part, encoded."""
        first = index * self._part_rows
        count = min(self._part_rows, self._rows - first)
        table = generator.generate(**{**self._request, "rows": count, "first": first})
        return PartResult(index, len(table), 0, encode(table, self._encoding), b"")


class Worker:
    """An actor of Ray Data: loads the model once, makes part after part."""

    def __init__(self, plan: Plan, files: Any, threads: int) -> None:
        self._plan, self._generator = plan, loaded(files, threads, "seekray.generator:Generator")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row {index} to one row of `result_row`."""
        return result_row(self._plan.make(self._generator, batch.column("index")[0].as_py()))
