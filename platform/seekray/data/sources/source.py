"""What every source is: a schema, and rows in batches, of the columns asked for only."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seekray.data.columns import check_columns
from seekray.errors import DataError, SeekrayError

BATCH_ROWS = 65_536
Types = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. pyarrow's own FileInfo cannot be sent to another process."""

    path: str
    size: int


class Source(ABC):
    """Rows of a sample, a file or a folder.

    description: what it is (of a sample: where it comes from and its licence). paths: its files.
    malformed: records that could not be read as rows at all, filled while reading where
    `data.on_bad_row` is skip: {row, column, value, reason}; their row numbers are not those of any row read.
    """

    def __init__(self, description: str, paths: Sequence[str] = ()) -> None:
        self.description = description
        self.paths = list(paths)
        self.malformed: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Columns and types from a short look; of CSV and JSON, those of the first rows."""

    @property
    def bytes(self) -> int | None:
        """Size of the files, None where it is not known."""
        return None

    @property
    def reading(self) -> dict[str, str]:
        """What of `data:` other files like these need to be read alike, where it was found or given: `decimal`, `encoding`."""
        return {}

    def count(self) -> int | None:
        """Number of rows, None where only reading tells."""
        return None

    @abstractmethod
    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        """Rows in their order, all with one schema; only `columns` are read. Raises DataError.

        types: CSV only, what columns are read as; without, a type that fits all rows is found first,
        which reads a large file twice.
        """

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of `columns`. Raises DataError."""
        found = list(self.batches(columns))
        if found:
            return pa.Table.from_batches(found)
        return plain_schema(self.schema, self.names(columns)).empty_table()

    def names(self, columns: Sequence[str] | None) -> list[str]:
        """The columns to read. Raises DataError naming the nearest where one is not there."""
        have = self.schema.names
        if columns is None:
            return list(have)
        check_columns(columns, have)
        return list(columns)


class TableSource(Source):
    """Rows of a table that is read whole, when they are first asked for."""

    def __init__(self, description: str, paths: Sequence[str] = ()) -> None:
        super().__init__(description, paths)
        self._table: pa.Table | None = None

    @abstractmethod
    def _read(self) -> pa.Table:
        """The table, read anew."""

    @property
    def whole(self) -> pa.Table:
        """The table, read once."""
        if self._table is None:
            self._table = self._read()
        return self._table

    @property
    def schema(self) -> pa.Schema:
        return self.whole.schema

    def count(self) -> int | None:
        return int(self.whole.num_rows)

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        yield from self.whole.select(self.names(columns)).to_batches(max_chunksize=BATCH_ROWS)


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turn the errors of PyArrow and of the file system into DataError."""
    try:
        yield
    except SeekrayError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there", field="data.source") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        if "OAuth2 access token" in str(error):
            raise DataError(
                f"{path}: Google Cloud gave no access; log in with `gcloud auth application-default login`, "
                "or set GOOGLE_APPLICATION_CREDENTIALS to a key file",
                field="data.source",
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"{path} cannot be read as {what}; it may be truncated or of another format: {reason}", field="data.source"
        ) from error


def plain_type(kind: Any) -> Any:
    """The type that columns of `kind` have once read: no dictionaries, decimals, views or extensions."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    return kind


def plain_schema(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """`names` of a schema with plain types."""
    return pa.schema([pa.field(name, plain_type(schema.field(name).type)) for name in names])


def plain(batch: Any, schema: pa.Schema) -> Any:
    """A batch or table with the columns and types of `schema`. Raises ArrowInvalid."""
    arrays = []
    for field in schema:
        array = batch.column(field.name)
        if isinstance(array.type, pa.BaseExtensionType):
            chunked = isinstance(array, pa.ChunkedArray)
            array = pa.chunked_array([c.storage for c in array.chunks]) if chunked else array.storage
        if pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        arrays.append(array if array.type == field.type else array.cast(field.type, safe=False))
    if isinstance(batch, pa.Table):
        return pa.Table.from_arrays(arrays, schema=schema)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
