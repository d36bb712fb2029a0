"""JSON lines: an object a line."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import orjson
import pyarrow as pa
import pyarrow.json as pajson

from seekray.data.parse import category, shown
from seekray.data.sources.source import BATCH_ROWS, Source, Types, reading
from seekray.errors import DataError

HEAD = 1 << 20
BLOCK = 16 << 20
WHOLE = 64 << 20
# The class has a property of that name.
Raw: TypeAlias = bytes


class JsonSource(Source):
    """One or more files of JSON lines (or one JSON list of objects).

    A column's type is that of all rows; where whole numbers and texts meet, all become text. A name
    that is not in a row is a missing value.
    """

    def __init__(self, filesystem: Any, infos: Sequence[Any], *, skip: bool) -> None:
        super().__init__("JSON lines", [info.path for info in infos])
        self._fs, self._infos, self._skip = filesystem, list(infos), skip
        self._head: pa.Schema | None = None
        self._whole: pa.Schema | None = None

    @property
    def bytes(self) -> int | None:
        return sum(int(info.size) for info in self._infos)

    @property
    def schema(self) -> pa.Schema:
        if self._whole is not None:
            return self._whole
        if self._head is None:
            with reading(self.paths[0], "JSON lines"):
                first = next(self._blocks(self.paths[0], HEAD), b"")
                if not first.strip():
                    raise DataError(f"{self.paths[0]} is empty, expected an object a line", field="data.source")
                table = self._parse(first, None, 0, [])
                self._head = table.schema
        return self._head

    def _blocks(self, path: str, size: int) -> Iterator[Raw]:
        """Pieces of whole lines; a JSON text has no newline inside a value."""
        with self._fs.open_input_stream(path, compression="detect") as stream:
            rest = b""
            while chunk := bytes(stream.read(size)):
                if not rest and chunk.lstrip()[:1] == b"[":
                    yield _lines(path, chunk + bytes(stream.read()))
                    return
                whole, newline, tail = chunk.rpartition(b"\n")
                if newline:
                    yield rest + whole + newline
                    rest = tail
                else:
                    rest += chunk
            if rest:
                yield rest

    def names(self, columns: Sequence[str] | None) -> list[str]:
        # A name may come late in the file: only all rows tell that it is not there.
        if columns is not None and any(c not in self.schema.names for c in columns):
            self._whole_schema()
        return super().names(columns)

    def _whole_schema(self) -> pa.Schema:
        if self._whole is None:
            found: list[pa.Schema] = []
            row = 0
            for path in self.paths:
                with reading(path, "JSON lines"):
                    for block in self._blocks(path, BLOCK):
                        malformed: list[dict[str, Any]] = []
                        table = self._parse(block, None, row, malformed)
                        row += table.num_rows + len(malformed)
                        found = [_unified(found[0], table.schema) if found else table.schema]
            self._whole = found[0] if found else self.schema
        return self._whole

    def batches(self, columns: Sequence[str] | None = None, types: Types | None = None) -> Iterator[pa.RecordBatch]:
        if (self.bytes or 0) <= WHOLE:
            yield from self.table(columns).to_batches(max_chunksize=BATCH_ROWS)
            return
        whole = self._whole_schema()
        names = self.names(columns)
        schema = pa.schema([whole.field(name) for name in names])
        for table in self._tables(schema):
            yield from table.to_batches(max_chunksize=BATCH_ROWS)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        tables = list(self._tables(None))
        schema = tables[0].schema if tables else self.schema
        for table in tables[1:]:
            schema = _unified(schema, table.schema)
        self._whole = schema
        names = super().names(columns)
        wanted = pa.schema([schema.field(name) for name in names])
        return pa.concat_tables([_cast(t, wanted) for t in tables]) if tables else wanted.empty_table()

    def _tables(self, schema: pa.Schema | None) -> Iterator[pa.Table]:
        self.malformed.clear()
        row = 0
        for path in self.paths:
            with reading(path, "JSON lines"):
                for block in self._blocks(path, BLOCK):
                    table = self._parse(block, schema, row, self.malformed)
                    row += table.num_rows + sum(1 for m in self.malformed if m["row"] >= row)
                    yield table if schema is None else _cast(table, schema)

    def _parse(self, block: Raw, schema: pa.Schema | None, first: int, malformed: list[dict[str, Any]]) -> pa.Table:
        options = pajson.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="ignore" if schema is not None else "infer"
        )
        try:
            return pajson.read_json(io.BytesIO(block), pajson.ReadOptions(block_size=4 << 20), options)
        except pa.ArrowInvalid:
            # A bad line or a column of mixed types: line by line tells which.
            return self._parse_lines(block, first, malformed)

    def _parse_lines(self, block: Raw, first: int, malformed: list[dict[str, Any]]) -> pa.Table:
        rows: list[dict[str, Any]] = []
        number = first - 1
        for line in block.split(b"\n"):
            if not line.strip():
                continue
            number += 1
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                self._bad(malformed, number, line, f"not JSON: {error}")
                continue
            if isinstance(value, dict):
                rows.append(value)
            else:
                self._bad(malformed, number, line, "expected an object")
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: _array([row.get(name) for row in rows]) for name in names})

    def _bad(self, malformed: list[dict[str, Any]], row: int, line: Raw, reason: str) -> None:
        text = line.decode("utf-8", "replace")
        if not self._skip:
            raise DataError(f"row {row}: {reason}: {shown(text)} (data.on_bad_row: skip leaves it out)")
        malformed.append({"row": row, "column": None, "value": text, "reason": reason})


def _lines(path: str, text: bytes) -> bytes:
    """A JSON list of objects as lines."""
    try:
        rows = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path} begins like a JSON list but is not JSON: {error}", field="data.source") from error
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([v if v is None or isinstance(v, str) else _text(v) for v in values], pa.string())


def _text(value: Any) -> str | None:
    try:
        return category(value)
    except TypeError:
        return orjson.dumps(value).decode()


def _unified(a: pa.Schema, b: pa.Schema) -> pa.Schema:
    """One schema for both; types that do not meet become text."""
    fields: dict[str, pa.Field] = {f.name: f for f in a}
    for field in b:
        have = fields.get(field.name)
        if have is None:
            fields[field.name] = field
        elif have.type != field.type:
            try:
                fields[field.name] = pa.unify_schemas(
                    [pa.schema([have]), pa.schema([field])], promote_options="permissive"
                ).field(0)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                fields[field.name] = pa.field(field.name, pa.string())
    return pa.schema(list(fields.values()))


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if column.type != field.type:
            if pa.types.is_string(field.type):
                column = pa.array([None if v is None else _text(v) for v in column.to_pylist()], pa.string())
            else:
                column = column.cast(field.type, safe=False)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)
