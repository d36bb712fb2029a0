"""Sounds: decoding, log-mel frames, the three forms, and words of a speech synthesizer told apart at every door."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from training_kit import run_here

from seekray.config import Experiment
from seekray.data.options import Data
from seekray.data.parse import Rejects
from seekray.data.sequences.sound import FLOOR, decode_sound, log_mel, mel_filters, sounds
from seekray.data.tables.fitting import fit
from seekray.errors import DataError
from seekray.predictor import Predictor
from seekray.report import conclude
from seekray.storage import Storage
from seekray.tracking.spool import Tracker
from seekray.verify import local_doors, verify
from seekray_serve.prediction import PredictionApp

SETTINGS = {"sample_rate": 8000, "mels": 20, "window": 0.025, "hop": 0.01}


def encoded(samples: Any, rate: int = 8000, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def tone(frequency: float, seconds: float = 0.5, rate: int = 8000) -> Any:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def test_the_filters_are_triangles_between_equal_steps_of_mel() -> None:
    filters = mel_filters(8000, 256, 20)
    assert filters.shape == (129, 20)
    mels = [2595 * math.log10(1 + 4000 / 700) * i / 21 for i in range(22)]
    corners = [700 * (10 ** (m / 2595) - 1) for m in mels]
    for bin_number in (0, 7, 40, 128):
        hz = bin_number * 8000 / 256
        for band in range(20):
            low, top, high = corners[band : band + 3]
            expected = (hz - low) / (top - low) if low < hz <= top else (high - hz) / (high - top) if top < hz < high else 0.0
            assert filters[bin_number, band] == pytest.approx(expected, abs=1e-9)


def test_a_tone_is_loudest_in_its_band_and_silence_is_the_floor() -> None:
    centres = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 22)[1:-1] / 2595) - 1)
    for band in (4, 10, 17):
        frames = log_mel(tone(centres[band]), SETTINGS)
        assert frames.shape == (1 + (4000 - 200) // 80, 20)
        assert (frames.argmax(1) == band).all()
    assert (log_mel(np.zeros(1000), SETTINGS) == np.float32(math.log(FLOOR))).all()
    assert log_mel(tone(500, 0.001), SETTINGS).shape == (1, 20)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_any_rate_and_number_of_channels(kind: str) -> None:
    here = decode_sound(encoded(tone(440), kind=kind), 8000)
    np.testing.assert_allclose(here, tone(440), atol=1e-4)
    stereo = encoded(np.stack([tone(440, rate=16000), tone(440, rate=16000)], axis=1), 16000, kind)
    text = f"data:audio/wav;base64,{base64.b64encode(stereo).decode()}"
    resampled = decode_sound(text, 8000)
    np.testing.assert_allclose(resampled[100:-100], tone(440)[100:-100], atol=0.01)


def test_what_is_no_sound_is_a_bad_row() -> None:
    good = encoded(tone(440))
    long = encoded(np.zeros(601 * 1000), 1000, "FLAC")
    given = [good, None, b"RIFF....", "/etc/passwd", good[:30], encoded(np.zeros(0)), long]
    rejects = Rejects(strict=False)
    found = sounds(given, "a", SETTINGS, rejects)
    assert found.lengths.tolist() == [48, 0, 0, 0, 0, 0, 0]
    assert [r["row"] for r in rejects.found] == [1, 2, 3, 4, 5, 6]
    reasons = [r["reason"] for r in rejects.found]
    assert reasons[0] == "the sound is missing"
    assert reasons[2] == "expected a sound's bytes or base64 text"
    assert reasons[4] == "the sound is empty"
    assert reasons[5] == "the sound has 601 s, at most 600 are read"


def _schema(rows: list[bytes], **options: Any) -> Any:
    data = Data(source="x", target="y", features={"a": options})
    return fit(pa.table({"a": rows, "y": ["p", "q"] * (len(rows) // 2)}), data, "classification")


def test_the_three_forms() -> None:
    rng = np.random.default_rng(0)
    pairs = [(300, 0.3), (900, 0.5), (1500, 0.2), (2500, 0.4)]
    rows = [encoded(tone(f, s) + 0.01 * rng.normal(size=round(s * 8000))) for f, s in pairs]
    options = {"sample_rate": 8000, "mels": 20}
    frames = [log_mel(decode_sound(r, 8000), SETTINGS).astype(np.float64) for r in rows]
    summary = _schema(rows, **options)
    assert [f.kind for f in summary.features] == ["audio"]
    raw = np.array([np.concatenate([f.mean(0), f.std(0)]) for f in frames])
    expected = (raw - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(summary.transform({"a": rows})["dense"].numpy(), expected, atol=1e-5)

    every = np.concatenate(frames)
    scaled = [(f - every.mean(0)) / every.std(0) for f in frames]
    picture = _schema(rows, frames=30, **options)
    assert picture.pictures == ((0, (30, 20, 1)),)
    dense = picture.transform({"a": rows})["dense"].numpy().reshape(4, 30, 20)
    np.testing.assert_allclose(dense[1], scaled[1][:30], atol=1e-5)
    np.testing.assert_allclose(dense[2, : len(frames[2])], scaled[2], atol=1e-5)
    assert not dense[2, len(frames[2]) :].any()

    sequence = _schema(rows, kind="audio_frames", **options)
    inputs = sequence.transform({"a": [base64.b64encode(r).decode() for r in rows]})
    assert inputs["length"].tolist() == [len(f) for f in frames]
    np.testing.assert_allclose(inputs["sequence"][1, : len(frames[1])].numpy(), scaled[1], atol=1e-5)
    with pytest.raises(DataError, match="row 0: the sound does not decode"):
        sequence.transform({"a": [b"RIFF...."]})


# ---- words of a synthesizer

WORDS = ("yes", "no", "stop", "go")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 words in 24 voices, speeds and pitches: a folder a word."""
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        pytest.skip("espeak-ng is not installed (scripts/install installs it)")
    folder = tmp_path_factory.mktemp("words")
    for word in WORDS:
        (folder / word).mkdir()
        for number in range(24):
            voice = ["en-us", "en-gb", "en-us+f2", "en-gb+m3"][number % 4]
            speed, pitch = str(120 + 15 * (number // 4)), str(20 + 11 * (number % 6))
            file = folder / word / f"{number:02d}.wav"
            subprocess.run([espeak, "-v", voice, "-s", speed, "-p", pitch, "-w", file, word], check=True)
    return folder


@pytest.mark.parametrize(
    ("family", "feature", "model"),
    [
        ("net", {}, {"hidden_size": [32], "dropout": 0.1}),
        ("net", {"frames": 50}, {"hidden_size": [32], "stem": "conv", "stem_channels": [8, 16]}),
        ("rec", {}, {"hidden_size": 24, "pooling": "mean"}),
    ],
    ids=["net", "net-conv", "rec"],
)
def test_words_are_told_apart(words: Path, tmp_path: Path, family: str, feature: dict[str, Any], model: dict[str, Any]) -> None:
    """From WAV files to a bundle whose doors agree; three quarters of 20 held-out sounds right (chance is one quarter)."""
    given = Experiment.model_validate(
        {
            "name": "words", "family": family, "task": "classification",
            "data": {
                "source": str(words), "target": "label", "features": {"audio": {"mels": 24, "hop": 0.015, **feature}},
                "split": {"kind": "stratified", "test": 0.2, "validation": 0},
            },
            "model": model, "training": {"epochs": 25, "batch_size": 16, "lr": 0.01}, "resources": {"workers": 0},
            "report": {"importances": False},
        }
    )  # fmt: skip
    prepared, run = given.prepare(), Storage(str(tmp_path))
    last = run_here(given, prepared, tmp_path)
    concluded = conclude(given, "0" * 12, run, prepared, last, Tracker(run, "t"))
    assert concluded.metrics["accuracy"] >= 0.75
    predictor = Predictor.load(tmp_path / "bundle")
    assert isinstance(predictor.sample[0]["audio"], str)
    found = verify(local_doors(tmp_path / "bundle"), predictor.sample)
    assert found["passed"], found
    status, answer = _posted(predictor, {"rows": predictor.sample[:3]})
    assert status == 200
    assert answer["predictions"] == predictor.sample_answers["prediction"][:3]
    status, answer = _posted(predictor, {"rows": [{"audio": "/etc/passwd"}]})
    assert status == 400
    assert "expected a sound's bytes or base64 text" in answer["error"]["message"]


def _posted(predictor: Predictor, body: Any) -> tuple[int, Any]:
    """Status and answer of the endpoint of one model, called in process."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def post() -> None:
        app = PredictionApp(predictor)
        headers = [(b"content-type", b"application/json")]
        await app({"type": "http", "method": "POST", "path": "/v1/predict", "headers": headers}, receive, send)
        await app.shutdown()

    asyncio.run(post())
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent))
