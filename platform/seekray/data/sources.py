"""Where rows come from: samples, CSV, Parquet, JSON lines, Arrow IPC, image folders; local or remote."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.json as pajson

from seekray.data.options import Data
from seekray.data.samples import load_sample
from seekray.errors import DataError
from seekray.storage import filesystem

FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".jsonl": "json", ".ndjson": "json", ".arrow": "ipc", ".feather": "ipc", ".ipc": "ipc",
}  # fmt: skip
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
BLOCK = 4 * 2**20
Types = Mapping[str, pa.DataType]


class Source:
    """Rows behind one address, read through PyArrow in batches.

    schema: columns and types (for CSV, as its first block looks). paths: files, none for a sample.
    bytes: size on disk, None for a sample. description: for a sample, its source and licence.
    """

    schema: pa.Schema
    paths: Sequence[str] = ()
    bytes: int | None = None
    description = ""

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        """Record batches of some columns, in order. types: for CSV, what the columns are read as. Raises DataError."""
        raise AssertionError("a Source is made by open_source")

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows at once, types inferred over the whole. Raises DataError."""
        batches = list(self.batches(columns))
        schema = batches[0].schema if batches else pa.schema([f for f in self.schema if columns is None or f.name in columns])
        return pa.Table.from_batches(batches, schema)

    def count(self) -> int | None:
        """Number of rows where it is known without reading them."""
        return None


class TableSource(Source):
    """Rows that are in memory."""

    def __init__(self, table: pa.Table, description: str = "") -> None:
        self._table, self.schema, self.description = table, table.schema, description

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        table = self._table if columns is None else self._table.select(list(columns))
        yield from table.to_batches(max_chunksize=65536)

    def count(self) -> int | None:
        return int(self._table.num_rows)


class DatasetSource(Source):
    """Parquet (file, folder, hive partitions) and Arrow IPC files."""

    def __init__(self, dataset: pads.Dataset, paths: Sequence[str], size: int) -> None:
        self._dataset, self.schema, self.paths, self.bytes = dataset, dataset.schema, paths, size

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        try:
            scanner = self._dataset.scanner(
                columns=None if columns is None else list(columns), batch_size=65536, batch_readahead=2, fragment_readahead=1
            )
            yield from (b for b in scanner.to_batches() if b.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{_shown(self.paths)} cannot be read: {_first(error)}; is a file cut off or damaged?") from error

    def count(self) -> int | None:
        try:
            return int(self._dataset.count_rows())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{_shown(self.paths)} cannot be read: {_first(error)}; is a file cut off or damaged?") from error


class TextSource(Source):
    """CSV and JSON lines."""

    def __init__(self, fs: pafs.FileSystem, paths: Sequence[str], size: int, kind: str, delimiter: str | None) -> None:
        self._fs, self.paths, self.bytes, self._kind = fs, paths, size, kind
        self._delimiter = delimiter
        if kind == "csv":
            self._delimiter = delimiter or _delimiter(self._head())
        first = next(iter(self._open(paths[0], None, None)), None)
        if first is None:
            raise DataError(f"{paths[0]} has no rows")
        self.schema = first.schema

    def _head(self) -> str:
        with self._fs.open_input_stream(self.paths[0]) as stream:
            head = bytes(stream.read(65536))
        if not head.strip():
            raise DataError(f"{self.paths[0]} is empty; expected a line of column names and rows")
        try:
            return head.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if error.start > len(head) - 4:
                return head[: error.start].decode("utf-8-sig")
            raise DataError(f"{self.paths[0]} is not UTF-8 text (byte {error.start}); convert it first") from error

    def _options(self, columns: Sequence[str] | None, types: Types | None) -> dict[str, Any]:
        return {
            "parse_options": pacsv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            "convert_options": pacsv.ConvertOptions(
                include_columns=None if columns is None else list(columns),
                column_types=dict(types or {}),
                strings_can_be_null=True,
                null_values=["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"],
            ),
        }

    def _open(self, path: str, columns: Sequence[str] | None, types: Types | None) -> Iterator[pa.RecordBatch]:
        try:
            if self._kind == "csv":
                with self._fs.open_input_stream(path) as stream:
                    read = pacsv.ReadOptions(block_size=BLOCK)
                    yield from pacsv.open_csv(stream, read_options=read, **self._options(columns, types))
            else:
                with self._fs.open_input_stream(path) as stream:
                    for batch in pajson.open_json(stream, read_options=pajson.ReadOptions(block_size=BLOCK)):
                        yield batch if columns is None else batch.select([c for c in columns if c in batch.schema.names])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as {self._kind}: {_first(error)}") from error

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        for path in self.paths:
            yield from (b for b in self._open(path, columns, types) if b.num_rows)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        tables = []
        for path in self.paths:
            try:
                with self._fs.open_input_stream(path) as stream:
                    if self._kind == "csv":
                        found = pacsv.read_csv(stream, **self._options(columns, None))
                    else:
                        found = pajson.read_json(stream)
                        found = found if columns is None else found.select([c for c in columns if c in found.column_names])
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} cannot be read as {self._kind}: {_first(error)}") from error
            tables.append(found)
        return pa.concat_tables(tables, promote_options="permissive")


class ImageFolder(Source):
    """A folder of images by class: columns `image` (the file's bytes), `label` (its folder) and `path`."""

    def __init__(self, fs: pafs.FileSystem, paths: Sequence[str], size: int) -> None:
        self._fs, self.paths, self.bytes = fs, paths, size
        self.schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("path", pa.string())])

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        names = list(columns) if columns is not None else self.schema.names
        for start in range(0, len(self.paths), 256):
            paths = self.paths[start : start + 256]
            made: dict[str, Any] = {"label": [PurePosixPath(p).parent.name for p in paths], "path": list(paths)}
            if "image" in names:
                made["image"] = [self._bytes(p) for p in paths]
            yield pa.RecordBatch.from_pydict({n: made[n] for n in names}, pa.schema([self.schema.field(n) for n in names]))

    def _bytes(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())

    def count(self) -> int | None:
        return len(self.paths)


def open_source(data: Data) -> Source:
    """The source that an experiment names. Raises DataError."""
    address = data.source
    if address.startswith("sample:"):
        return TableSource(*load_sample(address.removeprefix("sample:")))
    fs, path = filesystem(address)
    try:
        info = fs.get_file_info(path)
    except OSError as error:
        raise DataError(f"{address} cannot be reached: {_first(error)}", field="data.source") from error
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{address}: no such file or folder; data.source is a path, sample:NAME, s3:// or gs://", field="data.source")
    if info.type == pafs.FileType.File:
        files = [info]
    else:
        selector = pafs.FileSelector(path, recursive=True)
        found = fs.get_file_info(selector)
        files = sorted((f for f in found if f.type == pafs.FileType.File), key=lambda f: str(f.path))
        files = [f for f in files if not any(p.startswith((".", "_")) for p in f.path[len(path) :].split("/") if p)]
    kinds = {_kind(f.path) for f in files} - {None}
    if len(kinds) != 1:
        what = "no data files" if not kinds else f"files of several kinds ({', '.join(sorted(map(str, kinds)))})"
        raise DataError(f"{address} holds {what}; expected one of {', '.join([*FORMATS, *sorted(IMAGES)])}", field="data.source")
    kind = kinds.pop()
    files = [f for f in files if _kind(f.path) == kind]
    paths, size = [f.path for f in files], sum(f.size for f in files)
    if size == 0:
        raise DataError(f"{address} is empty; expected rows", field="data.source")
    if kind == "image":
        return ImageFolder(fs, paths, size)
    if kind in ("csv", "json"):
        return TextSource(fs, paths, size, kind, data.delimiter)
    try:
        if kind == "ipc" and not _is_ipc_file(fs, paths[0]):
            with fs.open_input_stream(paths[0]) as stream:
                return TableSource(pa.ipc.open_stream(stream).read_all())
        base = path if info.type == pafs.FileType.Directory else None
        dataset = pads.dataset(paths, format=kind, filesystem=fs, partitioning="hive", partition_base_dir=base)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{address} cannot be read as {kind}: {_first(error)}; is the file cut off or damaged?") from error
    return DatasetSource(dataset, paths, size)


def _kind(path: str) -> str | None:
    suffix = PurePosixPath(path).suffix.lower()
    return "image" if suffix in IMAGES else FORMATS.get(suffix)


def _is_ipc_file(fs: pafs.FileSystem, path: str) -> bool:
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read(6)) == b"ARROW1"


def _delimiter(head: str) -> str:
    line = next(csv.reader(io.StringIO(head), delimiter="\0"), [""])[0]
    counts = {d: line.count(d) for d in (",", ";", "\t", "|")}
    best = max(counts, key=lambda d: counts[d])
    return best if counts[best] else ","


def _shown(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
