"""Documents one after another: of text files, of a column of texts, or of a sample."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from seekray.data.columns import missing_column
from seekray.data.options import Data, TextOptions
from seekray.data.parse import as_array, is_text
from seekray.data.sources import open_source
from seekray.data.sources.csv_files import COMPRESSED
from seekray.data.sources.source import reading
from seekray.errors import DataError
from seekray.storage import filesystem

SUFFIXES = (".txt", ".text", ".md", ".rst")
PIECE = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one that is larger than PIECE. ends: the document ends here; part: of a column split."""

    text: str
    ends: bool = True
    part: str | None = None


def pieces(data: Data) -> Iterator[Piece]:
    """All texts of `data.source` in their order; a text file is a document, and so is a row of anything else.

    Raises DataError with the file or row that cannot be read.
    """
    paths = text_files(data.source)
    if paths is None:
        yield from _rows(data)
        return
    files, _ = filesystem(data.source)
    for path in paths:
        yield from _file(files, path)


def text_files(source: str) -> list[str] | None:
    """Paths of the text files that a source is made of; None where it is anything else."""
    if source.startswith("sample:"):
        return None
    files, path = filesystem(source)
    info = files.get_file_info(path)
    if info.type == pafs.FileType.Directory:
        selector = pafs.FileSelector(path, recursive=True)
        found = sorted(i.path for i in files.get_file_info(selector) if i.type == pafs.FileType.File)
        texts = [p for p in found if _is_text(p)]
        if texts and len(texts) < len(found):
            logging.getLogger(__name__).warning("%s: %d files that are no text are not read", source, len(found) - len(texts))
        return texts or None
    return [path] if info.type == pafs.FileType.File and _is_text(path) else None


def _is_text(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(SUFFIXES) and not name.startswith((".", "_"))


def _file(files: Any, path: str) -> Iterator[Piece]:
    """A file in pieces that end with a line."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held = ""
    with reading(path, "UTF-8 text"), files.open_input_stream(path, compression="detect") as stream:
        while block := bytes(stream.read(PIECE)):
            held += decoder.decode(block)
            cut = held.rfind("\n") + 1
            if cut and len(held) >= PIECE:
                yield Piece(held[:cut], ends=False)
                held = held[cut:]
        held += decoder.decode(b"", final=True)
    yield Piece(held)


def _rows(data: Data) -> Iterator[Piece]:
    options = data.text or TextOptions()
    source = open_source(data)
    names = list(source.schema.names)
    if options.column not in names:
        raise missing_column(options.column, names, field="data.text.column")
    by = data.split.by if data.split.kind == "column" else None
    row = 0
    for batch in source.batches([options.column, *([by] if by else [])]):
        column = as_array(batch.column(0))
        if not is_text(column.type) and not pa.types.is_null(column.type):
            raise DataError(f"column {options.column!r} holds {column.type}, expected texts", field="data.text.column")
        parts = batch.column(1).to_pylist() if by else [None] * len(column)
        for text, part in zip(column.to_pylist(), parts, strict=True):
            if text:
                yield Piece(text, part=None if part is None else str(part))
            elif text is None and data.on_bad_row == "error":
                raise DataError(
                    f"column {options.column!r}, row {row}: there is no text; correct it or set data.on_bad_row: skip",
                    field=options.column,
                )
            row += 1
