"""A stream of token ids: in memory while it is small, else in memory-mapped files that any process can open.

Files are `tokens/KEY/PART-00000.bin` below the storage, flat arrays of little-endian uint16 or uint32 whose KEY is a
hash of text, tokenizer and split, so that the same corpus is tokenized once. A process on another machine fetches
them once into its own cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seekray.data.parse import Array
from seekray.settings import settings
from seekray.storage import Storage

SHARD = 64 * 2**20  # bytes of a file; a stream below it travels as it is


def token_type(vocab_size: int) -> np.dtype[np.generic]:
    """The smallest of uint16 and uint32 that holds the ids."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class TokenStream:
    """Tokens one after another, documents with an end token before, between and after them.

    context: tokens of a window. bytes: of the text that the tokens stand for, in UTF-8. The length is the
    number of windows whose targets cover the stream once, the last of them maybe shorter.
    """

    unit = "window"

    def __init__(self, shards: Sequence[Array], context: int, text_bytes: int) -> None:
        self._shards, self.context, self.bytes = list(shards), context, text_bytes
        self._ends = np.cumsum([len(s) for s in self._shards]) if self._shards else np.zeros(0, np.int64)
        self.size = int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return -(-max(0, self.size - 1) // self.context)

    def read(self, start: int, count: int) -> Array:
        """int64 (count,), fewer at the end of the stream."""
        stop = min(start + count, self.size)
        out = np.empty(max(0, stop - start), dtype=np.int64)
        shard = int(np.searchsorted(self._ends, start, side="right"))
        done = 0
        while done < len(out):
            first = int(self._ends[shard]) - len(self._shards[shard])
            part = self._shards[shard][start + done - first : stop - first]
            out[done : done + len(part)] = part
            done, shard = done + len(part), shard + 1
        return out


@dataclass(frozen=True)
class TokenFiles:
    """Where the files of a part are; what a process needs to open them."""

    place: str
    part: str
    sizes: tuple[int, ...]
    dtype: str

    def open(self) -> list[Array]:
        """Memory maps; fetched into this machine's cache first where the storage is not a folder."""
        storage = Storage(self.place)
        folder = storage.local_path or _fetched(storage, self.part, len(self.sizes))
        return [
            np.memmap(folder / file_name(self.part, i), dtype=self.dtype, mode="r", shape=(n,))
            for i, n in enumerate(self.sizes)
        ]


class MappedTokens(TokenStream):
    """A stream in files; it is sent to another process as their names."""

    def __init__(self, files: TokenFiles, context: int, text_bytes: int) -> None:
        super().__init__(files.open(), context, text_bytes)
        self._files = files

    def __reduce__(self) -> tuple[type[MappedTokens], tuple[TokenFiles, int, int]]:
        return (MappedTokens, (self._files, self.context, self.bytes))


class TokenWriter:
    """Takes a part's tokens in order; holds at most a shard of them in memory.

    sizes: tokens of each file written so far; a stream below one shard makes none.
    """

    def __init__(self, vocab_size: int, folder: Path, part: str, shard_bytes: int = SHARD) -> None:
        self.dtype, self._folder, self._part = token_type(vocab_size), folder, part
        self._shard = max(1, shard_bytes // self.dtype.itemsize)
        self._held: list[Array] = []
        self._count = 0
        self.sizes: list[int] = []

    def add(self, tokens: Sequence[int] | Array) -> None:
        """The next tokens of the stream."""
        self._held.append(np.asarray(tokens, dtype=self.dtype))
        self._count += len(self._held[-1])
        if self._count >= self._shard:
            whole = np.concatenate(self._held)
            while len(whole) >= self._shard:
                self._write(whole[: self._shard])
                whole = whole[self._shard :]
            self._held, self._count = [whole.copy()], len(whole)

    def _write(self, tokens: Array) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        tokens.tofile(self._folder / file_name(self._part, len(self.sizes)))
        self.sizes.append(len(tokens))

    def close(self) -> Array | None:
        """The stream where it is below a shard, else None, and all of it is in files."""
        rest = np.concatenate(self._held) if self._held else np.zeros(0, self.dtype)
        self._held = []
        if not self.sizes:
            return rest
        if len(rest):
            self._write(rest)
        return None


def file_name(part: str, number: int) -> str:
    """Of a part's file."""
    return f"{part}-{number:05d}.bin"


def _fetched(storage: Storage, part: str, count: int) -> Path:
    folder = settings().home / "cache" / "tokens" / hashlib.sha256(storage.uri.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    for name in (file_name(part, i) for i in range(count)):
        if not (folder / name).exists():
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:  # several workers may fetch at once
                storage.copy_to(name, file)
            os.replace(file.name, folder / name)
    return folder
