"""The beginning of a source, prepared as the family would prepare all of it, for counts that are told as estimates."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from seekray.config import Experiment
from seekray.data.options import Data
from seekray.data.prepared import Prepared
from seekray.data.sources import open_source
from seekray.data.sources.csv_files import COMPRESSED
from seekray.data.sources.source import reading
from seekray.data.text.source import text_files
from seekray.inspect.sampling import take_sample
from seekray.storage import filesystem

MOST_FILES = 64


@dataclass(frozen=True)
class Head:
    """prepared: the beginning. bytes: of it. times: how many of it the source is. documents: its text files, if it has such."""

    prepared: Prepared
    bytes: int
    times: float
    documents: int | None = None


def sizes(source: str) -> Mapping[str, int] | None:
    """Bytes of each text file of a source; None where it is anything else."""
    paths = text_files(source)
    if paths is None:
        return None
    fs, _ = filesystem(source)
    return {info.path: int(info.size) for info in fs.get_file_info(paths)}


def source_size(data: Data) -> tuple[int | None, int | None]:
    """Bytes and rows of a source, None where only reading tells. Raises DataError."""
    files = sizes(data.source)
    if files is not None:
        return sum(files.values()), None
    source = open_source(data)
    return source.bytes, source.count()


def prepare_head(experiment: Experiment, most: int) -> Head:
    """The beginning of an experiment's data, at most so many bytes and what a sample has. Raises DataError."""
    files = sizes(experiment.data.source)
    if files is None:
        return _of_table(experiment, most)
    with tempfile.TemporaryDirectory(prefix="seekray-look-") as folder:
        read, used = 0, 0
        chosen = [path for path, size in files.items() if size][:MOST_FILES] or list(files)[:1]
        for number, path in enumerate(chosen):
            text, compressed = _text_of(experiment.data.source, path, most // len(chosen))
            (Path(folder) / f"{number:04}.txt").write_bytes(text)
            read, used = read + len(text), used + compressed
        source = folder if len(files) > 1 else f"{folder}/0000.txt"
        return Head(_elsewhere(experiment, source), read, sum(files.values()) / max(1, used), len(files))


def _text_of(source: str, path: str, most: int) -> tuple[bytes, int]:
    """The first bytes of a text file, up to the end of a line, and how many bytes of the file they take."""
    fs, _ = filesystem(source)
    with reading(path, "UTF-8 text"), fs.open_input_file(path) as raw:
        packed = PurePosixPath(path).name.lower().endswith(COMPRESSED)
        stream = pa.CompressedInputStream(raw, pa.Codec.detect(path).name) if packed else raw
        # Decompression reads ahead: more of it tells how dense the file is.
        text = bytes(stream.read(16 * most if packed else most + 1))
        density = raw.tell() / max(1, len(text)) if packed else 1.0
    if len(text) <= most:
        return text, round(len(text) * density)
    text = text[:most]
    cut = text.rfind(b"\n") + 1
    while not cut and text and text[-1] & 0xC0 == 0x80:  # no line ends: at least no character is cut
        text = text[:-1]
    kept = text[:cut] if cut else text[:-1]
    return kept, round(len(kept) * density)


def _of_table(experiment: Experiment, most: int) -> Head:
    sample = take_sample(experiment.data)
    table = sample.table
    rows = max(1, min(len(table), int(len(table) * most / max(1, table.nbytes))))
    table = table.slice(0, rows)
    with tempfile.TemporaryDirectory(prefix="seekray-look-") as folder:
        pq.write_table(table, f"{folder}/head.parquet")
        prepared = _elsewhere(experiment, f"{folder}/head.parquet")
    return Head(prepared, table.nbytes, sample.rows / rows)


def _elsewhere(experiment: Experiment, source: str) -> Prepared:
    data = experiment.data.model_copy(update={"source": source})
    return here(experiment.model_copy(update={"data": data})).prepare()


def here(experiment: Experiment) -> Experiment:
    """The experiment with its texts tokenized in this process: a look starts no Ray."""
    data = experiment.data
    if data.text is None:
        return experiment
    text = data.text.model_copy(update={"tokenize": "here"})
    return experiment.model_copy(update={"data": data.model_copy(update={"text": text})})
