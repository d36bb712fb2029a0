"""Where batch predictions go: one file in the input's order, or a folder of parts that can be resumed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from seekray.data.values import json_value
from seekray.errors import SeekrayError, UserError
from seekray.storage import Storage, filesystem

KINDS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# Dataset readers (pyarrow, pandas, Spark, our own sources) pass over names that begin with `_`,
# so the folder can be read as a table as it stands.
MANIFEST = "_manifest.json"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_SHOWN_BYTES = 200


@dataclass(frozen=True)
class PartResult:
    """One part's answers. data: encoded as `encode` does; rejects: JSON lines."""

    index: int
    rows: int
    rejected: int
    data: Any
    rejects: Any


class Output(Protocol):
    """Takes parts.

    ordered: they must come in order. part_rows: rows of a part, those of an interrupted run where it is gone on with.
    """

    encoding: str
    ordered: bool
    part_rows: int

    def done(self) -> dict[int, tuple[int, int]]:
        """Parts that are there from an earlier run: index -> rows, rejected."""

    def write(self, part: PartResult) -> None:
        """Keep one part."""

    def finish(self) -> None:
        """All parts are written: show the result."""

    def abandon(self) -> None:
        """Something failed: leave nothing half written."""


def encode(table: pa.Table, encoding: str, rejected: int = 0) -> Any:
    """A part as bytes: `parquet` a file that knows how many rows were rejected, `ipc` a stream, `csv` and `jsonl` text."""
    sink = pa.BufferOutputStream()
    if encoding == "parquet":
        pq.write_table(table.replace_schema_metadata({"seekray.rejected": str(rejected)}), sink)
    elif encoding == "ipc":
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif encoding == "csv":
        pacsv.write_csv(_flat(table), sink, pacsv.WriteOptions(include_header=False))
    else:
        return json_lines(table.to_pylist())
    return sink.getvalue()


def _flat(table: pa.Table) -> pa.Table:
    """Lists of labels as `a|b`: CSV has no lists."""
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            joined = ["|".join(map(str, value)) for value in table.column(i).to_pylist()]
            table = table.set_column(i, field.name, pa.array(joined, pa.string()))
    return table


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line; long bytes are named, not shown."""
    import orjson

    def other(value: Any) -> Any:
        if isinstance(value, bytes) and len(value) > _SHOWN_BYTES:
            return f"<{len(value)} bytes>"
        return json_value(value)

    return b"".join(orjson.dumps(row, default=other, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def open_output(out: str, schema: pa.Schema, identity: Mapping[str, Any]) -> Output:
    """The output that an address asks for: a known suffix is one file, none a folder of parts.

    identity: what a folder's parts belong to (bundle, data, columns) and how they are cut (part_rows).
    Raises UserError for another suffix, or a folder that holds something else.
    """
    suffix = os.path.splitext(out.rstrip("/").rsplit("/", 1)[-1])[1].lower()
    if suffix in KINDS:
        return FileOutput(out, KINDS[suffix], schema, int(identity["part_rows"]))
    if suffix and not Path(out).is_dir():
        raise UserError(
            f"output {out!r}: suffix {suffix!r} is not known; expected {', '.join(KINDS)}, or none for a folder", field="out"
        )
    return FolderOutput(out, identity)


class FolderOutput:
    """`part-000000.parquet`, …, `rejected/_part-000000.jsonl` where rows were rejected, and a manifest.

    A part's number fixes its rows; a part that is there is whole, since files appear at once.
    """

    encoding = "parquet"
    ordered = False

    def __init__(self, out: str, identity: Mapping[str, Any]) -> None:
        self._storage, self._identity = Storage(out), dict(identity)
        self._done: dict[int, tuple[int, int]] = {}
        if self._storage.exists(MANIFEST):
            before = self._storage.read_json(MANIFEST)
            self._check(out, before)
            self._identity = {k: before[k] for k in self._identity}
            self._sweep()
        elif self._storage.list():
            raise UserError(
                f"output {out} is a folder with other files in it; give a new folder, or a file name with a suffix", field="out"
            )
        else:
            self._storage.write_json(MANIFEST, self._identity | {"complete": False})
        self.part_rows = int(self._identity["part_rows"])
        self._find()

    def _check(self, out: str, before: Mapping[str, Any]) -> None:
        others = {"bundle": "another model", "data": "other (or changed) data", "columns": "other columns"}
        for key, name in others.items():
            if before.get(key) != self._identity[key]:
                raise UserError(
                    f"output {out} holds predictions of {name}: its manifest has {_shown(before.get(key))}, "
                    f"this run {_shown(self._identity[key])}; give another folder or delete it",
                    field="out",
                )

    def _sweep(self) -> None:
        """Remove what a killed writer left beside its target."""
        folder = self._storage.local_path
        for torn in folder.glob("**/.*.part") if folder else ():
            torn.unlink(missing_ok=True)

    def _find(self) -> None:
        for name in self._storage.list():
            if match := _PART.fullmatch(name):
                with self._open(name) as file:
                    found = pq.read_metadata(file)
                rejected = int((found.metadata or {}).get(b"seekray.rejected", b"0"))
                self._done[int(match[1])] = (found.num_rows, rejected)

    def _open(self, name: str) -> Any:
        fs, root = filesystem(self._storage.uri)
        return fs.open_input_file(f"{root}/{name}")

    def done(self) -> dict[int, tuple[int, int]]:
        return dict(self._done)

    def write(self, part: PartResult) -> None:
        if part.rejected:  # first, so that a part that is there has its rejects
            self._storage.write_bytes(f"rejected/_part-{part.index:06d}.jsonl", bytes(part.rejects))
        self._storage.write_bytes(f"part-{part.index:06d}.parquet", memoryview(part.data))  # type: ignore[arg-type]
        self._done[part.index] = (part.rows, part.rejected)

    def finish(self) -> None:
        parts = [
            {"name": f"part-{i:06d}.parquet", "rows": rows, "rejected": rejected}
            for i, (rows, rejected) in sorted(self._done.items())
        ]
        self._storage.write_json(MANIFEST, self._identity | {"complete": True, "parts": parts})

    def abandon(self) -> None:
        """Parts stay for the next run."""


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "…"


class FileOutput:
    """One Parquet, CSV or JSON lines file, and `OUT.rejected.jsonl` where rows were rejected.

    Both are written beside their place (for an object store: on this machine's disk) and shown at the end.
    """

    ordered = True

    def __init__(self, out: str, kind: str, schema: pa.Schema, part_rows: int) -> None:
        self.part_rows = part_rows
        self._fs, self._target = filesystem(out)
        self.encoding = "ipc" if kind == "parquet" else kind
        if isinstance(self._fs, pafs.LocalFileSystem):
            target = Path(self._target)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        else:
            self._beside = Path(tempfile.mkdtemp(prefix="seekray-predict-")) / "out"
        self._rejects = self._beside.with_name(self._beside.name + ".rejected")
        self._schema, self._kind, self._last = schema, kind, -1
        self._start()

    def _start(self) -> None:
        self._file = self._beside.open("wb")
        self._writer: pq.ParquetWriter | None = None
        self._rejected: Any = None
        if self._kind == "parquet":
            self._writer = pq.ParquetWriter(self._file, self._schema)
        elif self._kind == "csv":
            pacsv.write_csv(_flat(self._schema.empty_table()), self._file)

    def done(self) -> dict[int, tuple[int, int]]:
        return {}

    def write(self, part: PartResult) -> None:
        if part.index <= self._last:
            raise SeekrayError(f"part {part.index} came after part {self._last}: the answers would not be in the input's order")
        self._last = part.index
        if self._writer is not None:
            self._writer.write_table(pa.ipc.open_stream(part.data).read_all())
        else:
            self._file.write(memoryview(part.data))
        if part.rejected:
            self._rejected = self._rejected or self._rejects.open("wb")
            self._rejected.write(memoryview(part.rejects))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for file in filter(None, (self._file, self._rejected)):
            file.close()

    def finish(self) -> None:
        self._close()
        target = self._target + ".rejected.jsonl"
        if self._rejected is not None:
            self._show(self._rejects, target)
        elif self._fs.get_file_info(target).type == pafs.FileType.File:
            self._fs.delete_file(target)  # of an earlier run
        self._show(self._beside, self._target)

    def _show(self, made: Path, target: str) -> None:
        if isinstance(self._fs, pafs.LocalFileSystem):
            with made.open("rb+") as file:
                os.fsync(file.fileno())
            made.replace(target)
            return
        pafs.copy_files(str(made), target, pafs.LocalFileSystem(), self._fs, use_threads=False)
        made.unlink()
        if not any(made.parent.iterdir()):
            made.parent.rmdir()

    def abandon(self) -> None:
        _quietly(self._close)
        for made in (self._beside, self._rejects):
            made.unlink(missing_ok=True)
        if not isinstance(self._fs, pafs.LocalFileSystem):
            shutil.rmtree(self._beside.parent, ignore_errors=True)


def _quietly(action: Callable[[], None]) -> None:
    with contextlib.suppress(OSError, pa.ArrowException):
        action()
