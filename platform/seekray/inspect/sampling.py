"""A table to look at: all rows of a small source, the first ones of a large, and how many there are."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa

from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.data.sources.csv_files import COMPRESSED, CsvSource
from seekray.data.sources.json_files import JsonSource
from seekray.data.sources.source import Source
from seekray.storage import filesystem

WHOLE_BYTES = 32 * 2**20
HEAD_BYTES = 8 * 2**20
SAMPLE_ROWS = 50_000


@dataclass(frozen=True)
class Sample:
    """table: the rows looked at. rows: of the whole source. whole: the table is all of it. estimated: `rows` is.

    reading: see `Source`.
    """

    table: pa.Table
    rows: int
    whole: bool
    estimated: bool
    malformed: int
    paths: tuple[str, ...]
    bytes: int | None
    reading: dict[str, str] = field(default_factory=dict)


def take_sample(data: Data, columns: list[str] | None = None) -> Sample:
    """Rows of a source in a second or so, whatever its size. Raises DataError."""
    lenient = data.model_copy(update={"on_bad_row": "skip"})
    source = open_source(lenient)
    size, paths = source.bytes, tuple(source.paths)
    text = isinstance(source, (CsvSource, JsonSource))
    packed = text and any(p.endswith(COMPRESSED) for p in paths)
    small = size is None or size <= (WHOLE_BYTES // 8 if packed else WHOLE_BYTES)
    count = source.count()
    if small and (count is None or count <= SAMPLE_ROWS):
        table = source.table(columns)
        return Sample(table, table.num_rows, True, False, len(source.malformed), paths, size, source.reading)
    if text:
        table, malformed, share = _head(source, lenient, columns)
        return Sample(
            table, max(table.num_rows, round(table.num_rows * share)), False, True, malformed, paths, size, source.reading
        )
    table = _first(source, columns)
    rows = count if count is not None else _by_bytes(source, table)
    whole = rows <= table.num_rows
    return Sample(table, max(rows, table.num_rows), whole, count is None and not whole, 0, paths, size)


def _head(source: Source, data: Data, columns: list[str] | None) -> tuple[pa.Table, int, float]:
    """The first rows of the first file, read as a file of their own; and the whole's size in heads."""
    path = source.paths[0]
    fs, _ = filesystem(data.source)
    packed = path.endswith(COMPRESSED)
    with fs.open_input_file(path) as raw:
        stream = pa.CompressedInputStream(raw, pa.Codec.detect(path).name) if packed else raw
        head = bytes(stream.read(HEAD_BYTES))
        used = raw.tell() if packed else len(head)
    head = head[: head.rfind(b"\n") + 1] or head
    suffix = PurePosixPath(path.removesuffix(PurePosixPath(path).suffix) if packed else path).suffix
    with tempfile.TemporaryDirectory(prefix="seekray-look-") as folder:
        copy = Path(folder) / f"head{suffix}"
        copy.write_bytes(head)
        part = open_source(data.model_copy(update={"source": str(copy)}))
        table = part.table(columns).slice(0, SAMPLE_ROWS)
        rows = len(part.malformed) + (part.count() or table.num_rows)
    share = (source.bytes or used) / max(1, used) * rows / max(1, table.num_rows)
    return table, len(part.malformed), share


def _first(source: Source, columns: list[str] | None) -> pa.Table:
    batches, rows, size = [], 0, 0
    for batch in source.batches(columns):
        batches.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= SAMPLE_ROWS or size >= WHOLE_BYTES:
            break
    return pa.Table.from_batches(batches).slice(0, SAMPLE_ROWS) if batches else source.schema.empty_table()


def _by_bytes(source: Source, table: pa.Table) -> int:
    return round((source.bytes or 0) / max(1, int(table.nbytes)) * int(table.num_rows))
