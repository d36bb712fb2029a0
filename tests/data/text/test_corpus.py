"""Texts: tokenizers, token streams and their windows, documents, splits, memory."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seekray.config import Training
from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.data.text import corpus as texts
from seekray.data.text import source as text_source
from seekray.data.text import tokens as token_files
from seekray.data.text.batches import TokenBatches, shuffled, text_batches
from seekray.data.text.corpus import prepare_text
from seekray.data.text.source import pieces
from seekray.data.text.tokenizer import Tokenizer, from_file, train
from seekray.data.text.tokens import MappedTokens, TokenStream, TokenWriter
from seekray.errors import DataError

END = "<|endoftext|>"
SAMPLE = ["Hello, world.\n\n  two  spaces\t<|endoftext|>", "Ünïcode 文字 and 🙂", "x = {'a': 1}"]


class TestTokenizers:
    @pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
    def test_text_comes_back_and_training_is_deterministic(self, kind: str) -> None:
        tokenizer = train(kind, SAMPLE * 20, 320, END)
        assert [tokenizer.decode(ids) for ids in tokenizer.encode(SAMPLE)] == SAMPLE
        assert train(kind, SAMPLE * 20, 320, END).to_bytes() == tokenizer.to_bytes()
        again = copy.deepcopy(tokenizer)
        assert again.encode(SAMPLE) == tokenizer.encode(SAMPLE)

    def test_a_special_token_in_a_text_is_text(self) -> None:
        tokenizer = train("bpe", SAMPLE, 300, END)
        assert tokenizer.end not in tokenizer.encode(SAMPLE[:1])[0]
        assert tokenizer.end in tokenizer.encode(SAMPLE[:1], special=True)[0]

    def test_bytes_need_no_training_and_know_every_text(self) -> None:
        tokenizer = train("byte", [], 1, END)
        assert tokenizer.size == 257
        assert [len(ids) for ids in tokenizer.encode(SAMPLE)] == [len(t.encode()) for t in SAMPLE]

    def test_bpe_has_merges_and_the_size_asked_for(self) -> None:
        tokenizer = train("bpe", ["low lower lowest new newer newest " * 10], 270, END)
        assert tokenizer.size == 270
        assert len(tokenizer.encode(["lower newest"])[0]) < 8

    def test_a_file_is_taken_as_it_is(self, tmp_path: Path) -> None:
        own = train("bpe", SAMPLE * 20, 300, "</s>")
        (tmp_path / "tokenizer.json").write_bytes(own.to_bytes())
        taken = from_file(str(tmp_path / "tokenizer.json"), "</s>", ["<|user|>"])
        assert taken.encode(SAMPLE) == own.encode(SAMPLE)
        assert taken.end == own.end
        assert taken.id_of("<|user|>") == own.size
        with pytest.raises(DataError, match="bpe, char, byte or the path"):
            from_file(str(tmp_path / "no.json"), END)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(DataError, match="cannot be read"):
            from_file(str(tmp_path / "tokenizer.json"), END)

    def test_too_small_a_vocabulary(self) -> None:
        with pytest.raises(DataError, match="257 entries"):
            train("bpe", SAMPLE, 200, END)


class TestStreams:
    def test_documents_are_separated(self, tmp_path: Path, home: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ["one", "two", "three", "four"]))
        data = Data(source=str(path), split={"test": 0, "validation": 0.25}, text={"tokenizer": "byte"})
        found = prepare_text(data, 8, 300)
        end = found.tokenizer.end
        stream = found.train.read(0, 1000)
        assert stream[0] == stream[-1] == end
        words = "".join("|" if i == end else found.tokenizer.decode([int(i)]) for i in stream)
        (left_out,) = found.held_out["text"].to_pylist()
        assert words == "|" + "|".join(w for w in ["one", "two", "three", "four"] if w != left_out) + "|"
        assert found.train.bytes == len(words) - 4
        assert found.held_out_name == "validation"
        assert found.validation.read(0, 100).tolist() == [end, *found.tokenizer.encode([left_out])[0], end]

    def test_every_token_is_a_target_once_in_evaluation(self) -> None:
        stream = TokenStream([np.arange(50, dtype="<u2"), np.arange(50, 103, dtype="<u2")], 8, 1000)
        for world in (1, 3):
            ranks = [text_batches(stream, Training(), evaluate=True, rank=r, world_size=world) for r in range(world)]
            batches = [b for rank in ranks for b in rank]
            targets = np.concatenate([b.targets[b.targets >= 0].numpy() for b in batches])
            assert sorted(targets.tolist()) == list(range(1, 103))
            assert sum(float(b.inputs["bytes"].sum()) for b in batches) == pytest.approx(1000)
            assert all((b.inputs["tokens"] + 1)[b.targets >= 0].equal(b.targets[b.targets >= 0]) for b in batches)

    def test_training_windows_are_whole_and_each_comes_once(self) -> None:
        stream = TokenStream([np.arange(1003, dtype="<u2")], 10, 1)
        seen = []
        batches = TokenBatches(stream, batch_size=16, seed=3)
        for _ in range(2):
            firsts = np.concatenate([b.inputs["tokens"][:, 0].numpy() for b in batches])
            assert len(set(firsts.tolist())) == len(firsts) == batches.num_rows == 99
            assert (np.sort(firsts) % 10 == np.sort(firsts)[0] % 10).all()
            seen.append(firsts)
        assert not np.array_equal(*seen)

    def test_position_is_exact_and_ranks_share_the_same_windows(self) -> None:
        stream = TokenStream([np.arange(997, dtype="<u2")], 7, 1)
        whole = [b.inputs["tokens"] for b in TokenBatches(stream, batch_size=8)]
        cut = TokenBatches(stream, batch_size=8)
        for _ in zip(range(5), cut, strict=False):
            pass
        on = TokenBatches(stream, batch_size=8)
        on.load_state_dict(cut.state_dict())
        assert all(a.equal(b.inputs["tokens"]) for a, b in zip(whole[5:], on, strict=True))
        ranks = [list(TokenBatches(stream, batch_size=8, parts=2, rank=r, world_size=3)) for r in range(3)]
        first = np.concatenate([b.inputs["tokens"].numpy() for rank in ranks for b in rank[:2]])
        assert sorted(map(tuple, first)) == sorted(map(tuple, whole[0].numpy()))
        assert {b.global_rows for rank in ranks for b in rank[:2]} == {8 * 7}

    @pytest.mark.parametrize("size", [1, 2, 7, 64, 1000, 4097])
    def test_shuffled_is_a_permutation(self, size: int) -> None:
        order = shuffled(np.arange(size), size, 5)
        assert sorted(order.tolist()) == list(range(size))
        if size > 7:
            assert (order != shuffled(np.arange(size), size, 6)).any()
            assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.3

    def test_files_are_mapped_by_whoever_opens_them(self, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TokenWriter.__init__, "__defaults__", (500,))
        path = tmp_path / "long.txt"
        path.write_text("".join(f"line {i}\n" for i in range(300)))
        data = Data(source=str(path), split={"kind": "last", "test": 0.1, "validation": 0.2}, text={"tokenizer": "byte"})
        found = prepare_text(data, 16, 300)
        assert isinstance(found.train, MappedTokens)
        kind, arguments = found.train.__reduce__()
        again = kind(*arguments)
        assert again.read(0, 10**6).tolist() == found.train.read(0, 10**6).tolist()
        assert len(list((home / "storage" / "tokens").glob("*/train-*.bin"))) > 3
        parts = [found.tokenizer.decode(s.read(1, 10**6).tolist()) for s in (found.train, found.validation)]
        assert "".join([*parts, *found.held_out["text"].to_pylist()]) == path.read_text()
        monkeypatch.setattr(texts._Streams, "fill", None)  # not tokenized a second time
        assert prepare_text(data, 16, 300).fingerprint == found.fingerprint

    @pytest.mark.ray
    def test_ray_data_gives_the_same_streams_in_the_same_order(
        self, tmp_path: Path, home: Path, ray_cluster: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(texts, "BATCH_CHARS", 2000)
        path = tmp_path / "d.jsonl"
        path.write_text("".join(json.dumps({"text": f"document {i} " * (i % 7 + 1)}) + "\n" for i in range(300)))
        data = {"source": str(path), "split": {"test": 0.1, "validation": 0.2}}
        found = [
            prepare_text(Data.model_validate(data | {"text": {"tokenizer": "bpe", "tokenize": how}}), 16, 300)
            for how in ("here", "ray")
        ]
        for part in ("train", "validation"):
            here, there = (getattr(f, part) for f in found)
            assert here.size > 100
            assert here.bytes == there.bytes
            assert here.read(0, 10**6).tolist() == there.read(0, 10**6).tolist()

    def test_a_remote_storage_is_fetched_once(self, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        writer = TokenWriter(300, tmp_path / "w", "train", 64)
        writer.add(np.arange(100))
        assert writer.close() is None
        files = token_files.TokenFiles(str(tmp_path / "w"), "train", tuple(writer.sizes), writer.dtype.str)
        monkeypatch.setattr(token_files.Storage, "local_path", None)
        stream = MappedTokens(files, 8, 1)
        assert stream.read(0, 200).tolist() == list(range(100))
        (tmp_path / "w" / "train-00000.bin").unlink()
        assert MappedTokens(files, 8, 1).read(0, 5).tolist() == [0, 1, 2, 3, 4]


class TestReading:
    def read(self, source: Path, **options: object) -> list[str]:
        return [p.text for p in pieces(Data.model_validate({"source": str(source)} | options))]

    def test_the_same_texts_from_every_format(self, tmp_path: Path, home: Path) -> None:
        rows = ["first", "second\nline", "third"]
        (tmp_path / "f").mkdir()
        for i, row in enumerate(rows):
            (tmp_path / "f" / f"{i}.txt").write_text(row)
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))
        pq.write_table(pa.table({"text": rows, "n": [1, 2, 3]}), tmp_path / "a.parquet")
        assert self.read(tmp_path / "f") == self.read(tmp_path / "a.jsonl") == self.read(tmp_path / "a.parquet") == rows

    def test_a_text_that_is_not_there(self, tmp_path: Path, home: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
        with pytest.raises(DataError, match="row 1: there is no text"):
            self.read(tmp_path / "a.jsonl")
        assert self.read(tmp_path / "a.jsonl", on_bad_row="skip") == ["a"]
        with pytest.raises(DataError, match="'body' is not in the data"):
            self.read(tmp_path / "a.jsonl", text={"column": "body"})
        (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00bad")
        with pytest.raises(DataError, match="UTF-8"):
            self.read(tmp_path / "b.txt")

    def test_one_document_cannot_be_drawn_from(self, tmp_path: Path, home: Path) -> None:
        (tmp_path / "b.txt").write_text("one\n\ntwo\n")
        with pytest.raises(DataError, match="kind: last"):
            prepare_text(Data(source=str(tmp_path / "b.txt")), 8, 300)

    def test_memory_does_not_grow_with_the_corpus(self, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Python's and NumPy's peak while a corpus of 1 MB and one of 4 MB are prepared and an epoch's windows are read."""
        monkeypatch.setattr(TokenWriter.__init__, "__defaults__", (1 << 16,))
        monkeypatch.setattr(text_source, "PIECE", 1 << 16)
        monkeypatch.setattr(texts, "BATCH_CHARS", 1 << 16)
        peaks = []
        for megabytes in (1, 4):
            path = tmp_path / f"{megabytes}.txt"
            path.write_text("the quick brown fox\n" * (megabytes * 50_000))
            data = Data(source=str(path), split={"kind": "last", "test": 0, "validation": 0.01}, text={"tokenizer": "byte"})
            tracemalloc.start()
            found = prepare_text(data, 1024, 300)
            for _ in zip(range(200), TokenBatches(found.train, batch_size=8), strict=False):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < peaks[0] * 1.2, peaks


def test_pydocs_has_no_paragraph_twice() -> None:
    found: Sequence[str] = open_source(Data(source="sample:pydocs")).table()["text"].to_pylist()
    paragraphs = [p for text in found for p in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 1500
    assert 300_000 < sum(len(t) for t in found) < 500_000


def test_a_tokenizer_is_sent_as_its_file() -> None:
    tokenizer = train("bpe", SAMPLE, 300, END)
    kind, (file, end) = tokenizer.__reduce__()
    assert (kind, end) == (Tokenizer, END)
    assert kind(file, end).encode(SAMPLE) == tokenizer.encode(SAMPLE)
