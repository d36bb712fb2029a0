"""Boolean, timestamp, text, image and vector features."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.data.conftest import picture, schema_of

from seekray.data.media import grams
from seekray.errors import DataError


class TestOtherKinds:
    def test_boolean(self) -> None:
        schema = schema_of({"b": [True, False, None]})
        assert schema.transform({"b": [True, False, None, 1, 0, "yes", "F"]})["dense"].tolist() == [
            [1, 0], [0, 0], [0.5, 1], [1, 0], [0, 0], [1, 0], [0, 0],
        ]  # fmt: skip
        for value in (2, "maybe", [True]):
            with pytest.raises(DataError, match="'b', row 0"):
                schema.transform({"b": [value]})

    def test_timestamp_forms_are_one(self) -> None:
        moments = [dt.datetime(2024, 2, 29, 18, 0), dt.datetime(2024, 3, 1, 6, 30), None]
        schema = schema_of({"t": moments})
        assert schema.dense_size == 8
        whole = schema.transform({"t": moments})["dense"]
        seconds = [m and m.replace(tzinfo=dt.UTC).timestamp() for m in moments]
        for column in (
            ["2024-02-29T18:00:00", "2024-03-01 06:30", None],
            ["2024-02-29T19:00:00+01:00", "2024-03-01T06:30:00Z", ""],
            seconds,
            [s and int(s * 1000) for s in seconds],
            pa.array(["2024-02-29 18:00:00", "2024-03-01 06:30", None]),
            pa.array(["2024-02-29T18:00Z", "2024-03-01T06:30:00.000000000", None]),
            pa.array(moments, pa.timestamp("ns", "Asia/Tokyo")),
            pa.array(moments, pa.timestamp("s")),
            np.array(moments, dtype="M8[ms]"),
        ):
            assert torch.equal(schema.transform({"t": column})["dense"], whole), column
        line, _, hour_sin, hour_cos = whole[0, :4].tolist()
        assert line == pytest.approx(-1, abs=1e-6)
        assert (hour_sin, hour_cos) == pytest.approx((-1, 0), abs=1e-6)
        assert whole[2, 1:].tolist() == [1, 0, 0, 0, 0, 0, 0]

    def test_dates_and_times_of_day(self) -> None:
        days = schema_of({"t": [dt.date(2024, 1, 1), dt.date(2024, 1, 8)]})
        assert torch.equal(
            days.transform({"t": ["2024-01-08"]})["dense"], days.transform({"t": [dt.date(2024, 1, 8)]})["dense"]
        )
        clock = schema_of({"t": pa.array([3600, 7200], pa.time32("s"))})
        assert torch.equal(clock.transform({"t": ["02:00"]})["dense"], clock.transform({"t": [dt.time(2)]})["dense"])

    def test_a_bad_time_is_shown(self) -> None:
        schema = schema_of({"t": [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2)]})
        for column in (["2024-01-01", "soon"], pa.array(["2024-01-01", "soon"]), pa.array(["2024-01-01", "2024-13-45"])):
            with pytest.raises(DataError, match="'t', row 1: expected a date"):
                schema.transform({"t": column})

    def test_text_is_counted_hashed_and_of_one_length(self) -> None:
        options = {"kind": "text", "buckets": 512, "ngrams": [1, 1]}
        schema = schema_of({"t": ["to be or not to be", "that is the question"]}, {"t": options})
        got = schema.transform({"t": ["to be or not to be", "TO BE, or not! to be", "", None, "question"]})["dense"]
        assert schema.dense_size == 512
        assert torch.equal(got[0], got[1])
        assert not got[2:4].any()
        values = sorted(got[0][got[0] > 0].tolist())
        assert len(values) == 4
        assert values[3] / values[0] == pytest.approx(math.log(3) / math.log(2), rel=1e-5)
        assert got[0].norm() == pytest.approx(float(got[4].norm()), rel=1e-5)
        chars = schema_of({"t": ["abcd", "bcde"]}, {"t": {"kind": "text", "analyzer": "char", "ngrams": [3, 3]}})
        assert int((chars.transform({"t": ["abcd"]})["dense"] > 0).sum()) == 2
        with pytest.raises(DataError, match="'t', row 0: expected a text, got 3"):
            schema.transform({"t": [3]})

    def test_characters_of_words_know_where_a_word_begins_and_ends(self) -> None:
        assert list(grams("Ab  c", "char_word", 1, 3)) == ["a", "b", " a", "ab", "b ", " ab", "ab ", "c", " c", "c ", " c "]
        assert list(grams("c", "char_word", 4, 4)) == []
        options = {"kind": "text", "analyzer": "char_word", "ngrams": [3, 3], "buckets": 4096}
        schema = schema_of({"t": ["the end", "then"]}, {"t": options})
        begins, inside, far = (schema.transform({"t": [t]})["dense"][0] > 0 for t in ("the x", "bathed", "end the"))
        whole = schema.transform({"t": ["the end"]})["dense"][0] > 0
        assert int((begins & whole).sum()) == 3, "' th', 'the' and 'he '"
        assert int((inside & whole).sum()) == 1, "'the' alone"
        assert torch.equal(far, whole), "n-grams end with their word"

    def test_image_is_resized_scaled_and_standardised(self) -> None:
        blobs = [picture((255, 0, 128)), picture((0, 0, 64), form="JPEG")]
        schema = schema_of({"p": blobs}, {"p": {"kind": "image", "size": [5, 4], "channels": 3}})
        got = schema.transform({"p": blobs})["dense"]
        assert got.shape == (2, 60)
        red, green, blue = got[0].reshape(20, 3)[7].tolist()
        assert red == pytest.approx(1, abs=0.02)
        assert blue == pytest.approx(1, abs=0.05)
        assert abs(green) < 1e-3
        grey = schema_of({"p": blobs}, {"p": {"kind": "image", "size": [5, 4], "channels": 1}})
        assert grey.dense_size == 20
        for value in (None, b"not an image", "not base64!", "/etc/passwd", blobs[0][:40], 7):
            with pytest.raises(DataError, match="'p', row 0"):
                schema.transform({"p": [value]})

    def test_vector(self) -> None:
        values = [[1.0, 2.0], [3.0, 2.0], None]
        schema = schema_of({"v": values})
        assert schema.features[0].size == 2
        want = [[-1, 0], [1, 0], [0, 0]]
        fixed = pa.array([[1.0, 2.0], [3.0, 2.0]], pa.list_(pa.float32(), 2))
        assert schema.transform({"v": values})["dense"].tolist() == want
        assert schema.transform({"v": fixed})["dense"].tolist() == want[:2]
        assert schema.transform({"v": pa.chunked_array([fixed.slice(1)])})["dense"].tolist() == want[1:2]
        assert schema.transform({"v": np.array(values[:2])})["dense"].tolist() == want[:2]
        for bad in ([[1.0, 2.0, 3.0]], ["12"], [["a", "b"]], [3.0], pa.array([[1.0]])):
            with pytest.raises(DataError, match="'v', row 0: expected a list of 2 numbers"):
                schema.transform({"v": bad})
