"""Long tables and series become rows: honest about gaps, time and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seekray.data.options import Data
from seekray.data.prepared import Prepared
from seekray.data.sequences.framing import Frame, frame_of, frame_table
from seekray.data.tables.prepare import prepare
from seekray.errors import DataError


def _series(tmp_path: Path, steps: int = 200, **columns: Any) -> Path:
    """A step a minute, with a hole after step 119, a missing value at 50, and a covariate that is known in advance."""
    minutes = np.arange(steps) + 30 * (np.arange(steps) >= 120)
    values = np.arange(steps, dtype=np.float64)
    table = pa.table(
        {
            "when": pa.array(np.datetime64("2026-01-01T00:00:00") + (60 * minutes).astype("m8[s]")),
            "y": pa.array(np.where(np.arange(steps) == 50, np.nan, values), from_pandas=True),
            "holiday": np.arange(steps) % 7,
            **columns,
        }
    )
    path = tmp_path / "series.parquet"
    pq.write_table(table.take(pa.array(np.random.default_rng(0).permutation(steps))), path)
    return path


def _data(path: Path, split: dict[str, Any] | None = None, **sequence: Any) -> Data:
    options = {"time": "when", "columns": ["y"], "future": ["holiday"], "history": 8, "horizon": 3, "gap": "2m"} | sequence
    given = {"kind": "time", "by": "when", "test": 0.2, "validation": 0.1} | (split or {})
    return Data.model_validate({"source": str(path), "target": "y", "sequence": options, "split": given})


def _prepared(data: Data) -> Prepared:
    return prepare(data, "forecast")


def _frame(data: Data) -> Frame:
    return frame_of(data, "forecast", pq.read_schema(data.source).names)


def test_windows_hold_no_gap_and_no_missing_value(tmp_path: Path) -> None:
    data = _data(_series(tmp_path))
    table = frame_table(pq.read_table(data.source), _frame(data)).table
    begins = [past[0] for past in table["y"].to_pylist()]
    allowed = [i for i in range(200 - 10) if not (i <= 50 < i + 11) and not (i < 120 < i + 11)]
    assert begins == allowed
    for begin, past, ahead, known in zip(begins, *(table[n].to_pylist() for n in ("y", "y_next", "holiday_next")), strict=True):
        assert past == [begin + i for i in range(8)]
        assert ahead == [begin + 8 + i for i in range(3)]
        assert known == [(begin + 8 + i) % 7 for i in range(3)]


def test_no_window_straddles_a_split_and_scaling_knows_the_training_span_alone(tmp_path: Path) -> None:
    prepared = _prepared(_data(_series(tmp_path)))
    state = next(f.state for f in prepared.schema.features if f.name == "y")

    def span(arrays: Any) -> tuple[float, float]:
        past = arrays.inputs["sequence"][:, 0] * state["std"][0] + state["mean"][0]
        ahead = arrays.targets * prepared.schema.target_std + prepared.schema.target_mean  # type: ignore[attr-defined]
        return float(past.min()), float(ahead.max())

    train, validation = span(prepared.train), span(prepared.validation)
    held = prepared.held_out
    first = min(past[0] for past in held["y"].to_pylist())
    assert train[1] < validation[0] < validation[1] < first
    assert state["mean"][0] <= train[1]
    assert len(prepared.train) + len(prepared.validation) + len(held) < prepared.rows  # those that straddle are in no part


def test_several_series_are_told_apart(tmp_path: Path) -> None:
    path = _series(tmp_path, who=[f"p{i % 2}" for i in range(200)])
    data = _data(path, gap=None, id="who", future=[])
    table = frame_table(pq.read_table(path), _frame(data)).table
    for who, past in zip(table["who"].to_pylist(), table["y"].to_pylist(), strict=True):
        assert {value % 2 for value in past} == {int(who[1])}
    only = frame_table(pq.read_table(path), _frame(data), targets=False, only_last=True).table
    assert sorted(row["y"][-1] for row in only.to_pylist()) == [198.0, 199.0]


def test_a_forecast_of_a_file_begins_at_its_last_known_value(tmp_path: Path) -> None:
    path = _series(tmp_path)
    frame = _frame(_data(path))
    table = pq.read_table(path).sort_by("when")
    unknown = table.set_column(1, "y", pa.array([*table["y"].to_pylist()[:-3], None, None, None]))
    (row,) = frame_table(unknown, frame, targets=False, only_last=True).table.to_pylist()
    assert row["y"][-1] == 196.0
    assert row["holiday_next"] == [(197 + i) % 7 for i in range(3)]
    (short,) = frame_table(table, frame, targets=False, only_last=True).short
    assert "the next 3 values of holiday are missing" in short["reason"]


def test_rows_that_cannot_be_read_raise_or_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    lines = ["when,y", *(f"2026-01-01T{t // 60:02}:{t % 60:02}:00,{t}" for t in reversed(range(200)))]
    lines[6] = lines[6].replace(",194", ",much")
    lines[9] = lines[9].replace("2026", "year")
    path.write_text("\n".join(lines))
    data = _data(path, gap=None, future=[], columns=["y"])
    with pytest.raises(DataError, match="row 8: expected a date"):
        _prepared(data)
    found = _prepared(data.model_copy(update={"on_bad_row": "skip"}))
    assert [(r["row"], r["column"], r["value"]) for r in found.rejected[:2]] == [
        (5, "y", "much"),
        (8, "when", "year-01-01T03:11:00"),
    ]
    assert found.warnings[0].startswith("2 rows are left out; the first: row 5, y: expected a number")


def test_repeated_times_count_once(tmp_path: Path) -> None:
    path = _series(tmp_path)
    table = pq.read_table(path).sort_by("when")
    pq.write_table(pa.concat_tables([table, table.slice(5, 2)]), path)
    prepared = _prepared(_data(path))
    assert "2 rows repeat a 'when' of their series" in prepared.warnings[0]


def test_an_id_a_row_for_classification_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    rows = [
        {"who": w, "t": t, "x": float(t), "age": 30 + w, "y": "ab"[w % 2], "s": "ud"[t % 2]}
        for w in range(20)
        for t in range(w + 3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    sequence = {"time": "t", "id": "who", "columns": ["x"], "static": ["age"]}
    data = Data.model_validate({"source": str(path), "target": "y", "sequence": sequence})
    table = frame_table(pq.read_table(path), frame_of(data, "classification", ["who", "t", "x", "age", "y", "s"])).table
    assert [len(x) for x in table["x"].to_pylist()] == [w + 3 for w in range(20)]
    assert table["who"].to_pylist() == list(range(20))
    assert table["age"].to_pylist() == [30 + w for w in range(20)]
    prepared = prepare(data, "classification")
    assert {f.name: f.kind for f in prepared.schema.features} == {"x": "sequence", "age": "numeric"}
    labels = prepare(data.model_copy(update={"target": "s"}), "labelling")
    assert len(labels.train.targets) == labels.train.offsets[-1]  # type: ignore[attr-defined]
    wrong = data.model_copy(update={"target": "s"})
    with pytest.raises(DataError, match="'s' is not the same in all steps of a sequence"):
        prepare(wrong, "classification")


def test_too_short_a_series_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run of steps without a gap or a missing 'y' is 160 long"):
        _prepared(_data(_series(tmp_path), history=157))
