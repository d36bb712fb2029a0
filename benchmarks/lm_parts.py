"""Models of texts that are no network, to stand beside `lm`."""

from __future__ import annotations

import bz2
import lzma
import math
from collections import defaultdict
from typing import Any


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
