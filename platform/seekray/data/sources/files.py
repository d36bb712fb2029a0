"""Typed files: Parquet, Arrow IPC, and folders of images or sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from seekray.data.sources.source import BATCH_ROWS, Source, Types, plain, plain_schema, reading
from seekray.errors import DataError

FILES_PER_BATCH = 256


class FileSource(Source):
    """Files whose sizes are known."""

    def __init__(self, description: str, filesystem: Any, infos: Sequence[Any]) -> None:
        super().__init__(description, [info.path for info in infos])
        self._fs, self._infos = filesystem, list(infos)
        self._schema: pa.Schema | None = None

    @property
    def bytes(self) -> int | None:
        return sum(int(info.size) for info in self._infos)


class ParquetSource(FileSource):
    """One file, or a folder whose `name=value` subfolders are columns (hive partitions)."""

    def __init__(self, filesystem: Any, infos: Sequence[Any], root: str | None) -> None:
        super().__init__("Parquet", filesystem, infos)
        import pyarrow.dataset as pads

        for info in infos:
            if not info.size:
                raise DataError(f"{info.path} is empty, expected Parquet", field="data.source")
        where = root or self.paths[0]
        with reading(where, "Parquet"):
            partitioning = pads.HivePartitioning.discover(infer_dictionary=False)
            options = {"format": "parquet", "filesystem": filesystem, "partitioning": partitioning}
            base = {"partition_base_dir": root} if root else {}
            dataset = pads.dataset(self.paths, **options, **base)
            if len(infos) > 1:
                # A column that is whole in one file may have fractions in the next.
                schemas = [f.physical_schema for f in dataset.get_fragments()]
                schema = pa.unify_schemas([*schemas, dataset.schema], promote_options="permissive")
                dataset = pads.dataset(self.paths, schema=schema.remove_metadata(), **options, **base)
        self._dataset, self._where = dataset, where

    @property
    def schema(self) -> pa.Schema:
        return self._dataset.schema

    def count(self) -> int | None:
        with reading(self._where, "Parquet"):
            return int(self._dataset.count_rows())

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        names = self.names(columns)
        schema = plain_schema(self.schema, names)
        import pyarrow.dataset as pads
        import pyarrow.parquet as pq

        with reading(self._where, "Parquet"):
            # Not the dataset's scanner: it keeps the bytes of the file that it has read.
            for fragment in self._dataset.get_fragments():
                constants = pads.get_partition_keys(fragment.partition_expression)
                with self._fs.open_input_file(fragment.path) as stream:
                    file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
                    there = [n for n in names if n in file.schema_arrow.names]
                    for batch in file.iter_batches(BATCH_ROWS, columns=there):
                        found = dict(zip(there, batch.columns, strict=True))
                        arrays = [_column(found, constants, n, schema, batch.num_rows) for n in names]
                        yield plain(pa.RecordBatch.from_arrays(arrays, names=names), schema)


def _column(found: Mapping[str, Any], constants: Mapping[str, Any], name: str, schema: pa.Schema, rows: int) -> Any:
    """A column of a file, of its folder's name, or of nulls where this file lacks it."""
    if name in found:
        return found[name]
    return pa.repeat(pa.scalar(constants[name]), rows) if name in constants else pa.nulls(rows, schema.field(name).type)


class ArrowSource(FileSource):
    """Arrow IPC: the file format (Feather too) and the stream format."""

    def __init__(self, filesystem: Any, infos: Sequence[Any]) -> None:
        super().__init__("Arrow IPC", filesystem, infos)
        self._rows: int | None = None

    def _readers(self, columns: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
        for path in self.paths:
            with self._fs.open_input_file(path) as file:
                is_file = file.read(6) == b"ARROW1"
                file.seek(0)
                opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
                if columns is not None:
                    names = opened(file).schema.names
                    file.seek(0)
                    options = pa.ipc.IpcReadOptions(included_fields=[names.index(c) for c in columns])
                    yield path, opened(file, options=options)
                else:
                    yield path, opened(file)

    @property
    def schema(self) -> pa.Schema:
        if self._schema is None:
            with reading(self.paths[0], "Arrow IPC"):
                for _, reader in self._readers(None):
                    self._schema = reader.schema
                    break
        return self._schema

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        names = self.names(columns)
        schema = plain_schema(self.schema, names)
        for path, reader in self._readers(names):
            with reading(path, "Arrow IPC"):
                whole = hasattr(reader, "get_batch")
                source = (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader
                for batch in source:
                    # The format has no checksums: wrong offsets or text would be read as they are.
                    batch.validate(full=True)
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield plain(batch.slice(start, BATCH_ROWS), schema)


class MediaSource(FileSource):
    """Images or sounds in a folder a class: columns `image` or `audio` (the file's bytes), `label` (the folder) and `path`.

    Files directly in the root have no label.
    """

    def __init__(self, filesystem: Any, infos: Sequence[Any], root: str, column: str) -> None:
        super().__init__({"image": "images by class", "audio": "sounds by class"}[column], filesystem, infos)
        self._column = column
        self._relative = [PurePosixPath(path[len(root) :].lstrip("/")) for path in self.paths]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(self._column, pa.binary()), ("label", pa.string()), ("path", pa.string())])

    def count(self) -> int | None:
        return len(self.paths)

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        names = self.names(columns)
        for start in range(0, len(self.paths), FILES_PER_BATCH):
            part = slice(start, start + FILES_PER_BATCH)
            found: dict[str, list[Any]] = {}
            if self._column in names:
                found[self._column] = [self._read(path) for path in self.paths[part]]
            found["label"] = [p.parts[0] if len(p.parts) > 1 else None for p in self._relative[part]]
            found["path"] = [str(p) for p in self._relative[part]]
            yield pa.RecordBatch.from_pydict({n: pa.array(found[n], self.schema.field(n).type) for n in names})

    def _read(self, path: str) -> Any:
        with reading(path, f"an {self._column}"), self._fs.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())
