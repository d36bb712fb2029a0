"""Sequences: what doors bring, ragged and padded; batches by length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from seekray.config import Training
from seekray.data.options import Data
from seekray.data.parse import Rejects
from seekray.data.prepared import Arrays
from seekray.data.sequences.batches import SequenceBatches
from seekray.data.sequences.ragged import Ragged, ends, joined, sequences
from seekray.data.tables.features import FeatureSchema
from seekray.data.tables.fitting import fit
from seekray.errors import DataError

LISTS: list[Any] = [[[1.0, 2.0], [3.0, None]], None, [], [[5.0, 6.0]]]


@pytest.mark.parametrize(
    "column", [LISTS, pa.array(LISTS, pa.list_(pa.list_(pa.float64()))), np.array([*LISTS, 0], dtype=object)[:4]]
)
def test_doors_bring_the_same(column: Any) -> None:
    found = sequences(column, None, "x", Rejects())
    assert found.lengths.tolist() == [2, 0, 0, 1]
    assert np.array_equal(found.values, [[1, 2], [3, np.nan], [5, 6]], equal_nan=True)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1, 2], 3], "some steps are lists"),
        ([[1, 2], [3]], "different numbers of values"),
        ([[1, 2, 3]], "3 numbers a step"),
        ([["a", 2]], "'a' is no number"),
        ("text", "no list given"),
    ],
)
def test_what_is_no_sequence_is_refused_with_its_row(value: Any, reason: str) -> None:
    with pytest.raises(DataError, match=rf"column 'x', row 1: .*{reason}"):
        sequences([[[1, 2]], value], None, "x", Rejects())


def test_rows_of_a_ragged_column() -> None:
    ragged = sequences([[1, 2, 3], [4], [5, 6]], None, "x", Rejects())
    part = ragged[np.array([2, 0, 0])]
    assert part.values[:, 0].tolist() == [5, 6, 1, 2, 3, 1, 2, 3]
    assert part.lengths.tolist() == [2, 3, 3]


def _schema() -> FeatureSchema:
    table = pa.table(
        {"a": [[1.0, 3.0], [5.0]], "b": [[[0.0, 1.0], [2.0, 1.0]], [[4.0, 1.0]]], "word": ["ab", "a"], "y": [0, 1]}
    )
    data = Data(source="-", target="y", features={"a": "sequence", "b": {}, "word": "characters"})
    return fit(table, data, "classification")


def test_lists_and_characters_of_a_row_lie_side_by_side() -> None:
    schema = _schema()
    assert (schema.channels, schema.vocabulary) == (3, (3,))
    found = schema.transform({"a": [[3.0], None], "b": [None, None], "word": ["b", None]})
    assert found["length"].tolist() == [1, 1]
    assert found["sequence"].shape == (2, 1, 3)
    assert found["sequence"].abs().max() < 1e-6  # the mean, or missing
    assert found["symbols"].flatten().tolist() == [2, 0]
    again = FeatureSchema.from_json(schema.to_json())
    assert again == schema
    with pytest.raises(DataError, match="column 'b', row 0: expected 2 values, as many as another list of the row has, got 1"):
        schema.transform({"a": [[1.0, 2.0]], "b": [[[1.0, 2.0]]], "word": [None]})


def test_each_step_may_know_the_characters_before_it() -> None:
    table = pa.table({"word": ["abab", "ab", None], "y": [0, 1, 1]})

    def schema(ngrams: list[int], kept: int = 9) -> FeatureSchema:
        features = {"word": {"kind": "characters", "ngrams": ngrams, "max_categories": kept}}
        return fit(table, Data.model_validate({"source": "-", "target": "y", "features": features}), "classification")

    grams = schema([1, 3])
    # 2-grams: "ab" three times, " a" twice, "ba"; 3-grams: "  a" and " ab" twice, "aba", "bab".
    assert grams.vocabulary == (3, 4, 5)
    found = grams.transform({"word": ["bab", "cab", None]})
    assert found["length"].tolist() == [3, 3, 1]
    assert found["symbols"][0].tolist() == [[2, 0, 0], [1, 3, 0], [2, 1, 4]]
    assert found["symbols"][1].tolist() == [[0, 0, 0], [1, 0, 0], [2, 1, 0]]
    assert found["symbols"][2, 0].tolist() == [0, 0, 0]
    assert schema([1, 2], 2).vocabulary == (3, 3)
    assert schema([1, 1]).to_json() == FeatureSchema.from_json(schema([1, 1]).to_json()).to_json()
    assert FeatureSchema.from_json(grams.to_json()) == grams
    with pytest.raises(DataError, match=r"ngrams: \[2, 3\] given; characters are read one by one"):
        schema([2, 3])


def test_a_row_does_not_depend_on_its_batch() -> None:
    schema = _schema()
    rows: dict[str, list[Any]] = {"a": [[3.0] * n for n in (1, 5, 2)], "b": [None] * 3, "word": ["a", "abcab", None]}
    whole = schema.transform(rows)
    parts = [schema.transform({k: v[i : i + 1] for k, v in rows.items()}) for i in range(3)]
    for name in ("sequence", "symbols", "length"):
        assert torch.equal(joined([p[name] for p in parts]), whole[name])


def _arrays(rows: int) -> Arrays:
    lengths = np.random.default_rng(0).integers(1, 30, size=rows)
    offsets = ends(lengths)
    values = np.repeat(np.arange(rows), lengths).astype(np.float32)[:, None]
    inputs = {"dense": np.zeros((rows, 0), np.float32), "categorical": np.zeros((rows, 0), np.int64), "sequence": values}
    return Arrays(inputs, np.arange(rows), np.arange(rows), offsets)


def _epoch(world: int, **options: Any) -> list[list[int]]:
    """Rows of each global batch."""
    training = Training(batch_size=16, seed=3)
    ranks = [list(SequenceBatches(_arrays(301), training, rank=r, world_size=world, **options)) for r in range(world)]
    return [sorted(torch.cat([batch.rows for batch in step]).tolist()) for step in zip(*ranks, strict=True)]


def test_global_batches_are_the_same_for_any_number_of_workers() -> None:
    alone = _epoch(1)
    assert sorted(row for step in alone for row in step) == list(range(301))
    assert _epoch(2) == alone == _epoch(3)


def test_rows_of_like_length_meet_and_are_padded_with_zeros() -> None:
    arrays = _arrays(301)
    batches = SequenceBatches(arrays, Training(batch_size=16, seed=3))
    steps = padded = 0
    for batch in batches:
        x, length = batch.inputs["sequence"][..., 0], batch.inputs["length"]
        inside = torch.arange(x.shape[1]) < length[:, None]
        assert torch.equal(x, torch.where(inside, batch.rows[:, None].float(), 0.0))
        steps, padded = steps + int(length.sum()), padded + x.numel()
    assert padded < 1.15 * steps
    first = [b.rows.tolist() for b in SequenceBatches(arrays, Training(batch_size=16, seed=3))]
    second = [b.rows.tolist() for b in batches]  # the next epoch
    assert first != second


def test_goes_on_from_its_position() -> None:
    whole = [b.rows.tolist() for b in SequenceBatches(_arrays(301), Training(batch_size=16))]
    cut = SequenceBatches(_arrays(301), Training(batch_size=16))
    some = [batch.rows.tolist() for batch, _ in zip(cut, range(5), strict=False)]
    again = SequenceBatches(_arrays(301), Training(batch_size=16))
    again.load_state_dict(cut.state_dict())
    assert some + [b.rows.tolist() for b in again] == whole[: len(some)] + whole[cut.step :]


def test_ragged_is_read_once() -> None:
    ragged = Ragged(np.zeros((1, 1)), ends(np.array([1])))
    assert sequences(ragged, 1, "x", Rejects()) is ragged
