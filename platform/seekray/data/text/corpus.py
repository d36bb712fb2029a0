"""A corpus of texts to token streams: look, divide, train a tokenizer, tokenize. Nothing holds the corpus in memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from seekray.data import split as splits
from seekray.data.options import Data, Split, TextOptions
from seekray.data.parse import Array
from seekray.data.text.source import Piece, pieces
from seekray.data.text.tokenizer import Tokenizer, from_file, train
from seekray.data.text.tokens import MappedTokens, TokenFiles, TokenStream, TokenWriter, file_name, token_type
from seekray.errors import DataError
from seekray.settings import settings
from seekray.storage import Storage

# Of training and of validation: the next token ids, and the bytes of text that they stand for.
Tokens: TypeAlias = list[tuple[Array, int]]
PARTS = ("train", "validation", "test")
EXACT = 1_000_000  # documents; beyond it the parts are drawn one by one, so that memory does not grow
BATCH_CHARS = 1 << 20
HELD_OUT_CHARS = 16 << 20


@dataclass(frozen=True)
class Corpus:
    """What one look at all texts tells."""

    documents: int
    bytes: int
    content: str


@dataclass(frozen=True)
class TextData:
    """Token streams of a corpus. held_out: the texts of the test, or else validation, or else training part."""

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    held_out: pa.Table
    held_out_name: str
    fingerprint: dict[str, Any]
    warnings: list[str]
    documents: int


def look(data: Data) -> Corpus:
    """Count and hash all texts. Raises DataError where there are none."""
    digest = hashlib.blake2b(digest_size=16)
    documents = size = 0
    for piece in pieces(data):
        raw = piece.text.encode()
        digest.update(raw)
        size += len(raw)
        if piece.ends:
            digest.update(b"\xff")  # no byte of UTF-8
            documents += 1
    if not size:
        raise DataError(f"{data.source} has no text", field="data.source")
    return Corpus(documents, size, digest.hexdigest())


def divided(data: Data, corpus: Corpus) -> Iterator[tuple[int, Piece]]:
    """All pieces with their part, 0 train, 1 validation, 2 test. Raises DataError for a split that texts do not have."""
    kind = data.split.kind
    if kind == "last":
        yield from _by_place(data, corpus)
        return
    if kind not in ("random", "column"):
        raise DataError(f"data.split.kind: {kind} given, texts have random, last and column", field="data.split")
    parts = _drawn(data.split, corpus.documents) if kind == "random" else None
    number = 0
    for piece in pieces(data):
        yield (parts(number) if parts else _named(piece, number)), piece
        number += piece.ends


def _drawn(split: Split, documents: int) -> Any:
    """The part of a document by its number."""
    wanted = 1 + bool(split.test) + bool(split.validation)
    if documents < wanted:
        raise DataError(
            f"data.split.kind: random draws whole documents, and the source has {documents}; data.split.kind: last "
            "takes the end of the text",
            field="data.split",
        )
    if documents <= EXACT:
        return splits.assign(split, documents).tolist().__getitem__

    def part(number: int) -> int:
        draw = np.random.default_rng((split.seed, number)).random()
        return 2 if draw < split.test else 1 if draw < split.test + split.validation else 0

    return part


def _named(piece: Piece, number: int) -> int:
    name = (piece.part or "").strip().lower()
    if name not in splits.NAMES:
        raise DataError(f"document {number}: the part to split by is {piece.part!r}, expected train, validation or test")
    return splits.NAMES[name]


def _by_place(data: Data, corpus: Corpus) -> Iterator[tuple[int, Piece]]:
    """The end of all texts is the test, what is before it validation; cut after a paragraph, else a line."""
    split = data.split
    fractions = [1 - split.test - split.validation, 1 - split.test]
    borders = [(part + 1, round(corpus.bytes * f)) for part, f in enumerate(fractions)]
    part = place = 0
    for piece in pieces(data):
        text = piece.text
        while part < 2 and place + len(text.encode()) > borders[part][1]:
            head = text.encode()[: max(0, borders[part][1] - place)].decode(errors="ignore")
            cut = _paragraph(text, len(head))
            if cut:
                yield part, Piece(text[:cut], ends=cut == len(text) and piece.ends)
            place += len(text[:cut].encode())
            text, part = text[cut:], part + 1
        if text:
            yield part, Piece(text, piece.ends)
            place += len(text.encode())


def _paragraph(text: str, start: int) -> int:
    """Where the first paragraph or line that begins at `start` or later begins."""
    for mark in ("\n\n", "\n"):
        if (found := text.find(mark, max(0, start - len(mark)))) >= 0:
            return found + len(mark)
    return len(text)


def prepare_text(data: Data, context: int, vocab_size: int, base: Tokenizer | None = None) -> TextData:
    """Token streams of an experiment's texts, windows of `context` tokens.

    vocab_size: of a tokenizer that is trained here; base: the one to use instead. Raises DataError.
    """
    corpus = look(data)
    options = data.text or TextOptions()
    tokenizer = base or make_tokenizer(options, vocab_size, (p.text for part, p in divided(data, corpus) if part == 0))
    split = hashlib.blake2b(json.dumps(data.split.model_dump(), sort_keys=True).encode(), digest_size=16).hexdigest()
    fingerprint = {
        "content": corpus.content, "split": split, "rows": corpus.documents,
        "schema": hashlib.blake2b(tokenizer.to_bytes(), digest_size=16).hexdigest(),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:24]
    place = Storage(options.shards or f"{settings().storage}/tokens").child(key)
    streams = _Streams(tokenizer, place, context)
    found = streams.known() or streams.fill(_tokens(data, corpus, tokenizer))
    name, texts, cut = _held_out(data, corpus)
    if found["train"].size < 2:
        raise DataError("data.split leaves no training text", field="data.split")
    warnings = [] if name == "test" else [f"there is no test text; the metrics are those of the {name} text"]
    if cut:
        warnings.append(f"the {name} text is evaluated on its first {HELD_OUT_CHARS >> 20} million characters")
    return TextData(
        tokenizer, found["train"], found["validation"], pa.table({options.column: texts}), name, fingerprint, warnings,
        corpus.documents,
    )  # fmt: skip


def make_tokenizer(options: TextOptions, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `data.text.tokenizer` names, trained on texts where it has to be."""
    if options.tokenizer in ("bpe", "char", "byte"):
        return train(options.tokenizer, texts, vocab_size, options.end_token, options.special_tokens)
    return from_file(options.tokenizer, options.end_token, options.special_tokens)


def _held_out(data: Data, corpus: Corpus) -> tuple[str, list[str], bool]:
    """Name and texts of the first part that has any: test, validation, training; and whether some are left out."""
    wanted = 2 if data.split.test or data.split.kind == "column" else 1 if data.split.validation else 0
    for part in range(wanted, -1, -1):
        texts, held, size = [], [], 0
        for found, piece in divided(data, corpus):
            if found == part:
                held.append(piece.text)
                size += len(piece.text)
                if piece.ends:
                    texts.append("".join(held))
                    held = []
                if size > HELD_OUT_CHARS:
                    break
        if held:
            texts.append("".join(held))
        if texts:
            return PARTS[part], texts, size > HELD_OUT_CHARS
    raise DataError(f"{data.source} has no text", field="data.source")


class _Streams:
    """The parts' token streams at one place of the storage."""

    def __init__(self, tokenizer: Tokenizer, place: Storage, context: int) -> None:
        self._tokenizer, self._place, self._context = tokenizer, place, context

    def known(self) -> dict[str, TokenStream] | None:
        """Those in files, where an earlier run has left them whole."""
        if not self._place.exists("meta.json"):
            return None
        return self._open(self._place.read_json("meta.json"))

    def _open(self, meta: dict[str, Any]) -> dict[str, TokenStream]:
        return {
            part: MappedTokens(
                TokenFiles(self._place.uri, part, tuple(entry["sizes"]), entry["dtype"]), self._context, entry["bytes"]
            )
            for part, entry in meta.items()
        }

    def fill(self, tokens: Iterator[Tokens]) -> dict[str, TokenStream]:
        """Streams of tokens as they come; below a shard they stay in memory when all do."""
        local = self._place.local_path
        folder = (local.parent if local else settings().home / "cache") / f".{self._place.uri[-8:]}-{uuid.uuid4().hex[:8]}"
        try:
            writers, sizes = self._write(tokens, folder)
            held = {part: writer.close() for part, writer in writers.items()}
            if all(tokens is not None for tokens in held.values()):
                return {
                    p: TokenStream([t] if len(t) else [], self._context, sizes[p]) for p, t in held.items() if t is not None
                }
            return self._keep(folder, writers, held, sizes)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, tokens: Iterator[Tokens], folder: Path) -> tuple[dict[str, TokenWriter], dict[str, int]]:
        writers = {part: TokenWriter(self._tokenizer.size, folder, part) for part in PARTS[:2]}
        sizes = dict.fromkeys(writers, 0)
        begun: set[str] = set()
        for found in tokens:
            for part, (ids, size) in zip(writers, found, strict=True):
                if len(ids) and part not in begun:
                    writers[part].add([self._tokenizer.end])
                    begun.add(part)
                writers[part].add(ids)
                sizes[part] += size
        return writers, sizes

    def _keep(
        self, folder: Path, writers: dict[str, TokenWriter], held: dict[str, Array | None], sizes: dict[str, int]
    ) -> dict[str, TokenStream]:
        meta = {}
        for part, writer in writers.items():
            if (tokens := held[part]) is not None and len(tokens):
                tokens.tofile(folder / file_name(part, 0))
                writer.sizes.append(len(tokens))
            meta[part] = {"sizes": writer.sizes, "dtype": writer.dtype.str, "bytes": sizes[part]}
        for file in sorted(folder.iterdir()):
            if (local := self._place.local_path) is not None:
                local.mkdir(parents=True, exist_ok=True)
                os.replace(file, local / file.name)
            else:
                self._place.copy_from(file, file.name)
        self._place.write_json("meta.json", meta)
        return self._open(meta)


def _tokens(data: Data, corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Tokens]:
    """Of all texts, batch by batch in their order; here, or on all nodes."""
    if data.text is None or data.text.tokenize == "here":
        yield from (_tokenized(batch, tokenizer) for batch in _batched(divided(data, corpus)))
        return
    from seekray.data.text.ray_data import over_ray

    def cells() -> Iterator[bytes]:
        for batch in _batched(divided(data, corpus)):
            yield json.dumps([[part, piece.text, piece.ends] for part, piece in batch]).encode()

    local = "://" not in data.source or data.source.startswith("file:")
    dtype = token_type(tokenizer.size)
    for found in over_ray(cells, _tokenized_cell, tokenizer, local=local):
        yield [(np.frombuffer(found[i], dtype), int(found[i + 1])) for i in (0, 2)]


def _tokenized(batch: list[tuple[int, Piece]], tokenizer: Tokenizer) -> Tokens:
    encoded = tokenizer.encode([piece.text for _, piece in batch])
    ids: list[list[int]] = [[], []]
    sizes = [0, 0]
    for (part, piece), found in zip(batch, encoded, strict=True):
        ids[part] += [*found, tokenizer.end] if piece.ends else found
        sizes[part] += len(piece.text.encode())
    return [(np.asarray(i, dtype=token_type(tokenizer.size)), size) for i, size in zip(ids, sizes, strict=True)]


def _tokenized_cell(cell: bytes, tokenizer: Tokenizer) -> list[bytes]:
    """`_tokenized` between processes: tokens and size of training, then of validation."""
    batch = [(part, Piece(text, ends)) for part, text, ends in json.loads(cell)]
    return [value for ids, size in _tokenized(batch, tokenizer) for value in (ids.tobytes(), str(size).encode())]


def _batched(parted: Iterator[tuple[int, Piece]]) -> Iterator[list[tuple[int, Piece]]]:
    """Pieces of training and validation, about BATCH_CHARS at a time."""
    batch, size = [], 0
    for part, piece in parted:
        if part < 2:
            batch.append((part, piece))
            size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
