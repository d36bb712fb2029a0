"""Where rows come from: `open_source` finds the reader of a sample, a file or a folder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from seekray.data.options import Data
from seekray.data.samples import sample
from seekray.data.samples.package_data import Sample
from seekray.data.sources.csv_files import COMPRESSED, CsvSource
from seekray.data.sources.files import ArrowSource, MediaSource, ParquetSource
from seekray.data.sources.json_files import JsonSource
from seekray.data.sources.source import Source, SourceFile, TableSource, reading
from seekray.errors import DataError
from seekray.storage import filesystem

FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet", ".parq": "parquet",
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow",
    ".feather": "arrow",
    ".png": "image", ".jpg": "image", ".jpeg": "image", ".bmp": "image", ".gif": "image", ".webp": "image",
    ".tif": "image", ".tiff": "image", ".ppm": "image", ".pgm": "image",
    ".wav": "audio", ".flac": "audio", ".ogg": "audio",
}  # fmt: skip
EXPECTED = "CSV (.csv, .tsv), Parquet, JSON lines (.jsonl), Arrow IPC (.arrow), or a folder of images or sounds by class"


class SampleSource(TableSource):
    """A data set that an installed package brings."""

    def __init__(self, found: Sample) -> None:
        super().__init__(found.description)
        self._sample = found

    def _read(self) -> pa.Table:
        return self._sample.read()

    @property
    def bytes(self) -> int | None:
        return int(self.whole.nbytes)

    def count(self) -> int | None:
        return self._sample.rows


def open_source(data: Data) -> Source:
    """The source that `data.source` names; only headers and folders are read here.

    Raises DataError where there is nothing, nothing known, or several formats in one folder, and
    UserError for an unknown scheme.
    """
    if data.source.startswith("sample:"):
        return SampleSource(sample(data.source.removeprefix("sample:")))
    files, path = filesystem(data.source)
    with reading(data.source, "a file or folder"):
        info = files.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise _not_found(data.source, files, path)
        if info.type == pafs.FileType.File:
            return _open(_format_of(files, info), data, files, [info], None)
        selector = pafs.FileSelector(path, recursive=True)
        infos = [i for i in files.get_file_info(selector) if i.type == pafs.FileType.File and not _hidden(i.path, path)]
    known = sorted((i for i in infos if _suffix(i.path) in FORMATS), key=lambda i: i.path)
    formats = sorted({FORMATS[_suffix(i.path)] for i in known})
    if len(formats) != 1:
        found = f"has files of {' and '.join(formats)}" if formats else "has no data files"
        raise DataError(f"{data.source} {found}, expected one of {EXPECTED}", field="data.source")
    source = _open(formats[0], data, files, known, path)
    if others := [i.path for i in infos if _suffix(i.path) not in FORMATS]:
        source.warnings.append(f"{data.source}: {len(others)} files of other formats are not read, such as {others[0]}")
    return source


def _open(kind: str, data: Data, files: Any, found: list[Any], root: str | None) -> Source:
    infos = [SourceFile(info.path, int(info.size or 0)) for info in found]
    skip = data.on_bad_row == "skip"
    delimiter = data.delimiter or ("\t" if _suffix(infos[0].path) == ".tsv" else None)
    readers: dict[str, Callable[[], Source]] = {
        "csv": lambda: CsvSource(files, infos, delimiter, skip=skip, decimal=data.decimal, encoding=data.encoding),
        "json": lambda: JsonSource(files, infos, skip=skip),
        "parquet": lambda: ParquetSource(files, infos, root),
        "arrow": lambda: ArrowSource(files, infos),
        "image": lambda: MediaSource(files, infos, root or str(PurePosixPath(infos[0].path).parent), kind),
        "audio": lambda: MediaSource(files, infos, root or str(PurePosixPath(infos[0].path).parent), kind),
    }
    if all(info.size == 0 for info in infos):
        raise DataError(f"{data.source} is empty, expected rows", field="data.source")
    return readers[kind]()


def _suffix(path: str) -> str:
    name = PurePosixPath(path).name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return PurePosixPath(name).suffix


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(path[len(root) :].lstrip("/")).parts)


def _format_of(files: Any, info: Any) -> str:
    if found := FORMATS.get(_suffix(info.path)):
        return found
    with files.open_input_stream(info.path) as stream:
        head = bytes(stream.read(512))
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if head.lstrip().startswith((b"{", b"[")):
        return "json"
    if b"\x00" not in head and (b"," in head or b"\t" in head or b";" in head):
        return "csv"
    raise DataError(f"{info.path} is of no known format, expected {EXPECTED}", field="data.source")


def _not_found(source: str, files: Any, path: str) -> DataError:
    folder, _, name = path.rpartition("/")
    near: list[str] = []
    if isinstance(files, pafs.LocalFileSystem):
        selector = pafs.FileSelector(folder or "/", allow_not_found=True)
        near = difflib.get_close_matches(name, [i.base_name for i in files.get_file_info(selector)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return DataError(f"data.source: {source} is not there{hint}", field="data.source")
