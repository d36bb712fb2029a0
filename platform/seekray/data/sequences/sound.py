"""Sounds: WAV, FLAC or Ogg to frames of log-mel energies, as their mean and deviation, a picture, or a sequence."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from seekray.data.blocks import CLIP, STRICT, Fitted, State, fit_vector
from seekray.data.columns import Columns
from seekray.data.media import as_bytes
from seekray.data.options import FeatureOptions
from seekray.data.parse import Array, Column, Rejects, as_array, as_list, is_arrow, is_missing
from seekray.data.sequences.ragged import Ragged, ends
from seekray.errors import DataError

# A compressed file of silence is small however long it is.
LONGEST_S = 600
FLOOR = 1e-10  # of energy, -100 dB of full scale: digital silence has a logarithm too


@lru_cache(maxsize=16)
def mel_filters(rate: int, size: int, mels: int) -> Array:
    """(size // 2 + 1, mels): triangles of height 1 between equal steps of mel from 0 to rate / 2.

    mel(f) = 2595 log10(1 + f / 700): D. O'Shaughnessy, Speech Communication: Human and Machine, 1987, p. 150; the
    triangles are those of S. Davis and P. Mermelstein, IEEE Trans. ASSP 28(4), 1980, doi:10.1109/TASSP.1980.1163420.
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)  # Hz
    frequencies = np.arange(size // 2 + 1)[:, None] * rate / size
    rising = (frequencies - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - frequencies) / np.diff(corners)[1:]
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(samples: Array, settings: Mapping[str, Any]) -> Array:
    """float32 (T, mels) of samples (N,) in -1..1: the logarithm of the mel energies of each window.

    Windows of `window` seconds, Hann's shape, one every `hop` seconds; a sound shorter than a window is one frame.
    """
    rate = settings["sample_rate"]
    window, hop = round(settings["window"] * rate), max(1, round(settings["hop"] * rate))
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]  # (T, window)
    size = 1 << (window - 1).bit_length()
    shape = np.hanning(window + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(frames * shape, size)) ** 2 / (shape @ shape)
    energies = spectrum @ mel_filters(rate, size, settings["mels"])
    return np.log(np.maximum(energies, FLOOR)).astype(np.float32)


def decode_sound(value: object, rate: int) -> Array:
    """float64 (N,) samples of an encoded sound at `rate`, its channels averaged.

    Bytes, or base64 text, `data:` address or not; a text is never a path. Raises ValueError.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(as_bytes(value, "a sound"))) as file:
            own, seconds = int(file.samplerate), file.frames / max(1, file.samplerate)
            if seconds > LONGEST_S:
                raise ValueError(f"the sound has {seconds:.0f} s, at most {LONGEST_S} are read")
            samples = np.asarray(file.read(dtype="float64", always_2d=True)).mean(1)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise ValueError(f"the sound does not decode ({str(error).splitlines()[-1][:80]})") from None
    if not len(samples):
        raise ValueError("the sound is empty")
    if own != rate:
        from scipy.signal import resample_poly

        common = math.gcd(own, rate)
        samples = resample_poly(samples, rate // common, own // common)
    return np.asarray(samples)


def sounds(column: Column | Ragged, name: str, settings: Mapping[str, Any], rejects: Rejects) -> Ragged:
    """float32 frames (S, mels) of a column of encoded sounds, as `log_mel` has them; a missing sound is rejected."""
    if isinstance(column, Ragged):
        return column
    values = as_array(column) if is_arrow(column) else as_list(column)
    read = []
    for row in range(len(values)):
        value = values[row].as_py() if is_arrow(column) else values[row]
        frames = np.zeros((0, settings["mels"]), np.float32)
        try:
            if is_missing(value):
                raise ValueError("the sound is missing")
            frames = log_mel(decode_sound(value, settings["sample_rate"]), settings)
        except ValueError as error:
            rejects.add(name, row, f"{len(value)} bytes" if isinstance(value, bytes) else value, str(error))
        read.append(frames)
    offsets = ends(np.array([len(f) for f in read], dtype=np.int64))
    return Ragged(np.concatenate(read) if read else np.zeros((0, settings["mels"]), np.float32), offsets)


def settings_of(options: FeatureOptions) -> State:
    """What `log_mel` needs, as JSON."""
    return options.model_dump(mode="json", include={"sample_rate", "mels", "window", "hop"})


class SoundBlock:
    """Each sound as the mean and deviation over time of each mel band, (B, 2 * mels), or as a picture of its frames.

    A picture, (B, frames * mels), has the first `frames` of them, each band standardised, zeros after a shorter sound.
    """

    def __init__(self, features: Sequence[Fitted]) -> None:
        ordered = sorted(features, key=lambda f: f.state["frames"] is None)  # pictures first
        self.names = tuple(f.name for f in ordered)
        self._states = [f.state for f in ordered]
        self._sizes = [(s["frames"] or 2) * s["sound"]["mels"] for s in self._states]
        self.shapes = [(s["frames"], s["sound"]["mels"], 1) for s in self._states if s["frames"]]
        self.width = sum(self._sizes)

    def transform(self, columns: Columns, rows: int) -> Array:
        parts = []
        for name, state, size in zip(self.names, self._states, self._sizes, strict=True):
            found = sounds(columns[name], name, state["sound"], STRICT)
            std = np.array(state["std"])
            inverse = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
            if not state["frames"]:
                parts.append(np.clip((summaries(found) - state["mean"]) * inverse, -CLIP, CLIP).astype(np.float32))
                continue
            picture = np.zeros((rows, state["frames"], len(std)), np.float32)
            for row, start in enumerate(found.offsets[:-1]):
                frames = found.values[start : min(found.offsets[row + 1], start + state["frames"])]
                picture[row, : len(frames)] = np.clip((frames - state["mean"]) * inverse, -CLIP, CLIP)
            parts.append(picture.reshape(rows, size))
        return np.concatenate(parts, axis=1)


def summaries(found: Ragged) -> Array:
    """float64 (B, 2 * mels): mean and deviation of each row's frames."""
    rows = [found.values[a:b].astype(np.float64) for a, b in zip(found.offsets, found.offsets[1:], strict=False)]
    width = found.values.shape[1]
    return np.array([np.concatenate([r.mean(0), r.std(0)]) for r in rows]).reshape(-1, 2 * width)


def fit_sound(found: Ragged, options: FeatureOptions, *, sequence: bool) -> tuple[State, list[str]]:
    """Mean and deviation over the training rows: of the summaries, or of the frames where they stay frames."""
    if not len(found.values):
        raise DataError("there are no training sounds")
    as_frames = sequence or options.frames is not None
    state, notes = fit_vector(found.values.astype(np.float64) if as_frames else summaries(found))
    kept = {key: state[key] for key in ("mean", "std")} | {"sound": settings_of(options)}
    return kept | ({"missing": [False] * options.mels} if sequence else {"frames": options.frames}), notes


def example_sound(raw: Any, rate: int) -> str:
    """The first quarter of a second of the first sound of a column, as base64 WAV."""
    import soundfile

    value = raw[0].as_py() if is_arrow(raw) else raw[0]
    buffer = io.BytesIO()
    soundfile.write(buffer, decode_sound(value, rate)[: rate // 4], rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()
