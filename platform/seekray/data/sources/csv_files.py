"""Delimited text files: CSV, TSV and their kin."""

from __future__ import annotations

import csv
import io
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs

from seekray.data.columns import listed, missing_column
from seekray.data.parse import NUMBER, shown
from seekray.data.sources.source import BATCH_ROWS, Source, Types, reading
from seekray.data.sources.written import ENCODING_ADVICE, Written, encoding_of, find_delimiter, find_written
from seekray.errors import DataError

HEAD = 1 << 20
# A block and its numbers stay near a core's cache, and the dozens that a reader holds stay small.
BLOCK = 1 << 20
# For rows longer than that.
LARGE_BLOCK = 256 << 20
# Up to here a stream of batches is cut from the whole table; beyond, memory stays at a few blocks.
WHOLE = 128 << 20
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
NULLS = ["", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "Null", "null", "None", "<NA>"]
CONVERSION = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to ([^:]+): invalid value '(.*)'", re.DOTALL
)
WRONG_WIDTH = re.compile(r"Expected (\d+) columns, got (\d+)")


class CsvSource(Source):
    """One or more CSV files with the same header, quoted values may hold newlines.

    A column's type is that of the whole file: whole numbers, numbers, true/false, dates, times, else
    text; one value that does not fit makes it text. Empty cells and NA, NaN, null, None are missing.
    Codes with leading zeros (seen in the first MiB) stay text. How numbers are written (`1.234,5`) is
    found in the first records unless `decimal` is given; `encoding` is that of files that are not UTF-8.
    """

    def __init__(
        self,
        filesystem: Any,
        infos: Sequence[Any],
        delimiter: str | None,
        *,
        skip: bool,
        decimal: str | None = None,
        encoding: str | None = None,
    ) -> None:
        super().__init__("CSV", [info.path for info in infos])
        self._fs, self._infos, self._skip = filesystem, list(infos), skip
        self._decimal, self._given_encoding, self._encoding = decimal, encoding, "utf8"
        self._head = self._read_head(self.paths[0])
        with reading(self.paths[0], "CSV"):
            self._delimiter = delimiter or find_delimiter(self._head)
            self._names = self._header()
        self._types: dict[str, Any] = {}
        self._schema: pa.Schema | None = None
        self._rows: int | None = None
        self._code_columns: dict[str, Any] | None = None
        self._quoted: bool | None = None
        self._written_as: Written | None = None
        self._block = BLOCK

    def _open(self, path: str) -> Any:
        return self._fs.open_input_stream(path, compression="detect")

    def _read_head(self, path: str) -> str:
        with reading(path, "CSV"), self._open(path) as stream:
            raw = bytes(stream.read(HEAD))
        if not raw.strip():
            raise DataError(f"{path} is empty, expected a header and rows", field="data.source")
        self._encoding = encoding_of(raw, self._given_encoding, path)
        # The cut may be in the middle of a character.
        return raw.decode("utf-8-sig" if self._encoding == "utf8" else self._encoding, errors="replace").removeprefix("\ufeff")

    @property
    def reading(self) -> dict[str, str]:
        found = {} if self._written.decimal == "." else {"decimal": self._written.decimal}
        return found if self._encoding == "utf8" else found | {"encoding": self._encoding}

    @property
    def _written(self) -> Written:
        if self._written_as is None:
            codes = list(self._codes())
            self._written_as = find_written(self._head, self._names, self._delimiter, self._decimal, NULLS, codes)
        return self._written_as

    def _read_options(self, *, threads: bool) -> Any:
        return pacsv.ReadOptions(block_size=self._block, use_threads=threads, encoding=self._encoding)

    def _grows(self, error: pa.ArrowInvalid) -> bool:
        """Whether a row was longer than a block, and blocks are larger from now on."""
        if "straddl" not in str(error) or self._block >= LARGE_BLOCK:
            return False
        self._block = min(16 * self._block, LARGE_BLOCK)
        return True

    def _header(self) -> list[str]:
        names = next(csv.reader(io.StringIO(self._head), delimiter=self._delimiter))
        path = self.paths[0]
        if names and all(re.match(NUMBER, n.strip()) for n in names):
            raise DataError(
                f"{path}: the first line is numbers ({listed(names, 4)}), expected column names", field="data.source"
            )
        if twice := next((n for i, n in enumerate(names) if n in names[:i]), None):
            raise DataError(f"{path}: the header has {twice!r} twice; rename one", field="data.source")
        return names

    def _options(self, names: Sequence[str] | None, types: dict[str, Any]) -> Any:
        return pacsv.ConvertOptions(
            null_values=NULLS,
            strings_can_be_null=True,
            include_columns=list(names) if names is not None else None,
            column_types=types,
            decimal_point=self._written.decimal,
        )

    def _parse(self, handler: Callable[[Any], str] | None = None) -> Any:
        if self._quoted is None:
            self._quoted = self._has_quotes()
        return pacsv.ParseOptions(delimiter=self._delimiter, newlines_in_values=self._quoted, invalid_row_handler=handler)

    def _has_quotes(self) -> bool:
        """Whether values may hold newlines; cutting blocks is a third faster where they cannot."""
        if not isinstance(self._fs, pafs.LocalFileSystem) or any(p.endswith(COMPRESSED) for p in self.paths):
            return True
        for path in self.paths:
            with reading(path, "CSV"), open(path, "rb") as file:
                if not os.fstat(file.fileno()).st_size:
                    continue
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                    # Names are often quoted where no value is.
                    end = -1 if any("\n" in name for name in self._names) else view.find(b"\n")
                    if view.find(b'"', end + 1) >= 0:
                        return True
        return False

    @property
    def schema(self) -> pa.Schema:
        if self._schema is None:
            path = self.paths[0]
            with reading(path, "CSV"), self._open(path) as stream:
                options = self._options(None, self._codes())
                read = pacsv.ReadOptions(block_size=HEAD, use_threads=False, encoding=self._encoding)
                try:
                    with pacsv.open_csv(stream, read, self._parse(), options) as reader:
                        self._schema = reader.schema
                except pa.ArrowInvalid:
                    # No rows, or a damaged one: reading says which.
                    self._schema = pa.schema([pa.field(n, pa.string()) for n in self._names])
        return self._schema

    def _codes(self) -> dict[str, Any]:
        """Columns with leading zeros among the first rows: codes, not numbers."""
        if self._code_columns is None:
            self._code_columns = self._find_codes()
        return self._code_columns

    def _find_codes(self) -> dict[str, Any]:
        if not re.search(r"[,;|\s\"]0\d", self._head):
            return {}
        found: dict[str, Any] = {}
        lines = self._head.splitlines()[1:-1] or self._head.splitlines()[1:]
        for record in csv.reader(lines, delimiter=self._delimiter):
            for name, value in zip(self._names, record, strict=False):
                if value[:1] == "0" and value[1:2].isdigit() and value.isdigit():
                    found[name] = pa.string()
        return found

    @property
    def bytes(self) -> int | None:
        return sum(int(info.size) for info in self._infos)

    def count(self) -> int | None:
        return self._rows

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        return self._table(self.names(columns), None)

    def _table(self, names: list[str], types: Types | None) -> pa.Table:
        self.malformed.clear()
        found = []
        before = 0
        for path in self.paths:
            with reading(path, "CSV"):
                table = self._read(path, names, before, self._codes() | dict(types or {}))
            before += table.num_rows + sum(1 for m in self.malformed if m["row"] >= before)
            _check_utf8(table.schema, path)
            found.append(self._written.apply(table, typed=True))
        self._rows = sum(t.num_rows for t in found)
        return found[0] if len(found) == 1 else pa.concat_tables(found, promote_options="permissive")

    def names(self, columns: Sequence[str] | None) -> list[str]:
        if columns is not None and (absent := [c for c in columns if c not in self._names]):
            raise missing_column(absent[0], self._names)
        return list(self._names if columns is None else columns)

    def _read(self, path: str, names: list[str], before: int, types: dict[str, Any]) -> pa.Table:
        options = self._options(names, types)
        try:
            with self._open(path) as stream:
                return pacsv.read_csv(stream, self._read_options(threads=True), self._parse(), options)
        except pa.ArrowInvalid as error:
            if CONVERSION.search(str(error)) and types:
                # What was asked for does not fit all rows.
                return self._read(path, names, before, {})
            if self._grows(error):
                return self._read(path, names, before, types)
            if not WRONG_WIDTH.search(str(error)):
                raise
        # Only one thread knows row numbers.
        with self._malformed(before) as handler, self._open(path) as stream:
            return pacsv.read_csv(stream, self._read_options(threads=False), self._parse(handler), options)

    @contextmanager
    def _malformed(self, before: int) -> Iterator[Callable[[Any], str]]:
        """A handler that notes rows of the wrong width and, unless rows may be skipped, ends the reading."""
        first: list[str] = []

        def handle(row: Any) -> str:
            number = before + row.number - 2
            reason = f"expected {row.expected_columns} values, the row has {row.actual_columns}"
            if not self._skip:
                first.append(f"row {number}: {reason}: {shown(row.text)} (data.on_bad_row: skip leaves such rows out)")
                return "error"
            self.malformed.append({"row": number, "column": None, "value": row.text, "reason": reason})
            return "skip"

        try:
            yield handle
        except pa.ArrowInvalid:
            if first:
                raise DataError(first[0], field="data.source") from None
            raise

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        names = self.names(columns)
        compressed = any(path.endswith(COMPRESSED) for path in self.paths)
        if not compressed and (self.bytes or 0) <= WHOLE:
            yield from self._table(names, types).to_batches(max_chunksize=BATCH_ROWS)
            return
        known = dict(types or {})
        if not known.keys() >= set(names):
            known = self._whole_types(names, known)
        self.malformed.clear()
        before = 0
        for path in self.paths:
            seen = 0
            with reading(path, "CSV"):
                for batch in self._stream(path, names, known, before):
                    seen += batch.num_rows
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield self._written.apply(batch.slice(start, BATCH_ROWS), typed=False)
            before += seen + sum(1 for m in self.malformed if m["row"] >= before)

    def _stream(self, path: str, names: list[str], types: dict[str, Any], before: int) -> Iterator[pa.RecordBatch]:
        """A file's batches; begun again, with what was given left out, where a row is longer than a block."""
        given = 0
        while True:
            self.malformed[:] = [m for m in self.malformed if m["row"] < before]
            row = 0
            try:
                with self._malformed(before) as handler, self._open(path) as stream:
                    read = self._read_options(threads=not self._skip)
                    parse = self._parse(handler if self._skip else None)
                    with pacsv.open_csv(stream, read, parse, self._options(names, types)) as reader:
                        for batch in reader:
                            row += batch.num_rows
                            if row > given:
                                yield batch.slice(max(0, batch.num_rows - (row - given)))
                                given = row
                return
            except pa.ArrowInvalid as error:
                if not self._grows(error):
                    raise

    def _whole_types(self, names: list[str], types: dict[str, Any]) -> dict[str, Any]:
        """Types that hold for all rows, by a pass over the files that begins again where one does not."""
        if self._types.keys() >= set(names):
            return self._types
        types = self._codes() | types
        rows = 0
        for path in self.paths:
            with reading(path, "CSV"):
                while True:
                    try:
                        types, seen = self._check_types(path, names, types)
                        break
                    except pa.ArrowInvalid as error:
                        if not self._grows(error):
                            types = types | self._wider(error, types)
            rows += seen
        self._types, self._rows = types, rows
        return types

    def _check_types(self, path: str, names: list[str], types: dict[str, Any]) -> tuple[dict[str, Any], int]:
        rows = 0
        with self._open(path) as stream:
            keep = self._parse((lambda row: "skip") if self._skip else None)
            read = self._read_options(threads=True)
            with pacsv.open_csv(stream, read, keep, self._options(names, types)) as reader:
                self._types = types = {field.name: field.type for field in reader.schema}
                for batch in reader:
                    rows += batch.num_rows
                _check_utf8(reader.schema, path)
        return types, rows

    def _wider(self, error: pa.ArrowInvalid, types: dict[str, Any]) -> dict[str, Any]:
        """The types after a failed conversion; raises any other error again."""
        found = CONVERSION.search(str(error))
        if not found:
            raise error
        name, kind, value = self._names[int(found[1])], found[2], found[3]
        known = types | {n: t for n, t in self._types.items() if n not in types}
        plain = value.strip().replace(self._written.decimal, ".")
        if kind in ("null", "int64") and re.match(NUMBER, plain):
            whole = kind == "null" and re.match(r"^-?\d{1,18}$", plain)
            return known | {name: pa.int64() if whole else pa.float64()}
        if kind == "null":
            return known | {name: _type_of(value)}
        return known | {name: pa.string()}


def _check_utf8(schema: pa.Schema, path: str) -> None:
    """PyArrow reads a column that is not UTF-8 as bytes."""
    if bad := next((f.name for f in schema if pa.types.is_binary(f.type)), None):
        raise DataError(f"{path}: column {bad!r} is not UTF-8; {ENCODING_ADVICE}", field="data.encoding")


def _type_of(value: str) -> Any:
    """The type that a single value would be given."""
    try:
        return pacsv.read_csv(io.BytesIO(b'x\n"' + value.encode() + b'"\n')).schema.field(0).type
    except pa.ArrowInvalid:
        return pa.string()
