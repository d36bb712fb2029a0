"""What the benchmarks of `lm` share: a run in this process, and models that are no network to stand beside."""

from __future__ import annotations

import bz2
import lzma
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seekray import loop
from seekray.checkpoint import Checkpoints
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.generator import Generator, open_model
from seekray.predictor import Predictor
from seekray.report import conclude
from seekray.session import LocalSession, Point
from seekray.storage import Storage
from seekray.tracking.spool import Tracker


class Silent:
    """Hears nothing."""

    def points(self, new: Sequence[Point]) -> None: ...

    def progress(self, state: Mapping[str, Any]) -> None: ...


def train(
    experiment: Experiment, folder: Path | None = None, *, last: bool = False
) -> tuple[Predictor | Generator, Prepared, float]:
    """A trained model, its data, and CPU seconds of the training (validation included) on one thread.

    folder: also leave the run's bundle there. last: the last step's weights, where the part that picks the best is reported.
    """
    torch.set_num_threads(1)
    prepared = experiment.prepare()
    with tempfile.TemporaryDirectory() as temporary:
        run = Storage(str(folder or temporary))
        began = time.process_time()
        session = LocalSession(experiment.training, run, listener=Silent())
        loop.run(experiment, session, prepared.schema, prepared.train, prepared.validation, prepared.initial)
        seconds = time.process_time() - began
        checkpoint = Checkpoints(run).latest()
        assert checkpoint is not None
        if folder is not None:
            conclude(experiment, "0" * 12, run, prepared, checkpoint, Tracker(run, "bench"))
    info = {"name": experiment.name, "family": "lm", "task": experiment.task, "model": experiment.as_json()["model"]}
    return open_model(info, prepared.schema, checkpoint.group("weights" if last else "best")), prepared, seconds


def unigrams(train_text: bytes, test: bytes) -> float:
    """Bits per byte of bytes drawn alone, with add-one smoothing."""
    counts = [train_text.count(bytes([b])) + 1 for b in range(256)]
    total = sum(counts)
    return -sum(math.log2(counts[b] / total) for b in test) / len(test)


def primed(compress: Any, train_text: bytes, test: bytes) -> float:
    """Bits per byte that a compressor needs for `test` after it has seen the training text."""
    return (len(compress(train_text + test)) - len(compress(train_text))) * 8 / len(test)


def xz(data: bytes) -> bytes:
    """LZMA at its best."""
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def bz(data: bytes) -> bytes:
    """bzip2 at its best."""
    return bz2.compress(data, 9)


def kneser_ney(train_text: bytes, test: bytes, order: int = 8, discount: float = 0.9) -> float:
    """Bits per byte of interpolated Kneser-Ney (Chen and Goodman 1998) over bytes, with contexts of order - 1 bytes."""
    counts: list[dict[bytes, dict[int, int]]] = [defaultdict(lambda: defaultdict(int)) for _ in range(order)]
    for i in range(len(train_text)):
        if i >= order - 1:
            counts[order - 1][train_text[i - order + 1 : i]][train_text[i]] += 1
    for n in range(order - 1, 0, -1):  # lower orders count the different bytes before an n-gram, not the n-gram
        for context, following in counts[n].items():
            for byte in following:
                counts[n - 1][context[1:]][byte] += 1
    totals = [{c: (sum(f.values()), len(f)) for c, f in level.items()} for level in counts]
    bits = 0.0
    history = train_text[-order:]
    for byte in test:
        probability = 1 / 256
        for n in range(order):
            context = history[len(history) - n :] if n else b""
            if context in totals[n]:
                total, kinds = totals[n][context]
                seen = counts[n][context].get(byte, 0)
                probability = max(seen - discount, 0) / total + discount * kinds / total * probability
        bits -= math.log2(probability)
        history = (history + bytes([byte]))[-order:]
    return bits / len(test)
