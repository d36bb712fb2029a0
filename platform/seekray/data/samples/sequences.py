"""Samples of sequences: speech, glucose, stocks, sunspots, languages, digits row by row."""

from __future__ import annotations

import csv
import gzip
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data.samples.package_data import Sample, package_file

LANGUAGES = (
    "ca", "cs", "da", "de", "es", "et", "fi", "fr", "hr", "hu", "id", "it", "lt", "nb", "nl", "pl", "pt", "ro", "sk", "sv",
)  # fmt: skip
SHORTEST = 10


def _vowels() -> pa.Table:
    utterances: list[list[list[float]]] = []
    speakers: list[str] = []
    parts: list[str] = []
    for part in ("train", "test"):
        file = package_file("aeon", f"datasets/data/JapaneseVowels/JapaneseVowels_{part.upper()}.ts", install="aeon")
        lines = file.read_text().splitlines()
        for line in lines[lines.index("@data") + 1 :]:
            *channels, speaker = line.split(":")
            matrix = np.array([[float(v) for v in c.split(",")] for c in channels])  # (C, T)
            utterances.append(matrix.T.tolist())
            speakers.append(speaker)
            parts.append(part)
    kind = pa.list_(pa.list_(pa.float64()))
    return pa.table({"lpc": pa.array(utterances, kind), "speaker": speakers, "part": parts})


def _bokeh(name: str) -> list[dict[str, str]]:
    with gzip.open(package_file("bokeh_sampledata", f"_data/{name}", install="bokeh_sampledata"), "rt") as lines:
        return list(csv.DictReader(lines))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # `nil` and empty


def _glucose() -> pa.Table:
    rows = _bokeh("CGM.csv.gz")
    times = pa.array([r["datetime"] for r in rows]).cast(pa.timestamp("s"))
    return pa.table({"time": times} | {name: [_number(r[name]) for r in rows] for name in ("glucose", "isig")})


def _stocks() -> pa.Table:
    rows = _bokeh("stocks.csv.gz")
    columns: dict[str, Any] = {
        "company": [r["Ticker"] for r in rows],
        "date": pa.array([r["Date"] for r in rows]).cast(pa.date32()),
    }
    given = {"open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume", "adjusted": "Adj Close"}
    columns |= {name: [_number(r[column]) for r in rows] for name, column in given.items()}
    adjusted = np.array(columns["adjusted"], dtype=np.float64)
    company = np.array(columns["company"])
    first = np.concatenate([[True], company[1:] != company[:-1]])
    returns = np.concatenate([[np.nan], np.diff(np.log(adjusted))])
    returns[first] = np.nan
    # A day's own volatility from its range (Parkinson 1980), in per cent as the return is.
    ratio = np.log(np.array(columns["high"], dtype=np.float64) / np.array(columns["low"], dtype=np.float64))
    columns["return"] = pa.array(100 * returns, from_pandas=True)
    columns["range_volatility"] = pa.array(100 * ratio / np.sqrt(4 * np.log(2)), from_pandas=True)
    return pa.table(columns)


def _sunspots() -> pa.Table:
    file = package_file("statsmodels", "datasets/sunspots/src/sunspots_monthly.dat", install="statsmodels")
    months: list[str] = []
    counts: list[float] = []
    for line in file.read_text().splitlines():
        year, *values = line.split()[:13] or [""]
        if re.fullmatch(r"\d{4}", year):
            for month, value in enumerate(values, 1):
                if float(value) >= 0:  # months that had not come yet are negative
                    months.append(f"{year}-{month:02d}-01")
                    counts.append(float(value))
    return pa.table({"month": pa.array(months).cast(pa.date32()), "sunspots": counts})


def _catalogue(file: Path) -> dict[str, str]:
    """Messages of a GNU `.mo` file; of plurals the first form."""
    data = file.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    _, count, ids, texts = struct.unpack(f"{order}4I", data[4:20])
    found = {}
    for i in range(count):
        pair = []
        for table in (ids, texts):
            size, start = struct.unpack(f"{order}2I", data[table + 8 * i : table + 8 * i + 8])
            pair.append(data[start : start + size].split(b"\0")[0].decode())
        found[pair[0].rpartition("\x04")[2]] = pair[1]
    return found


def _languages() -> pa.Table:
    """Texts of 10 characters and more that are the same in no two of the languages: others have no one answer."""
    root = package_file("django", "conf/locale", install="django").parent.parent
    found: dict[str, dict[str, str]] = {}  # text -> language -> message
    for language in LANGUAGES:
        for file in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
            for message, text in _catalogue(file).items():
                if message and text != message and len(text) >= SHORTEST:
                    found.setdefault(text, {}).setdefault(language, message)
    rows = sorted((*next(iter(by.items())), text) for text, by in found.items() if len(by) == 1)
    columns = dict(zip(("language", "message", "text"), map(list, zip(*rows, strict=True)), strict=True))
    return pa.table({name: columns[name] for name in ("text", "language", "message")})


def _digit_rows() -> pa.Table:
    raw = gzip.decompress(package_file("sklearn", "datasets/data/digits.csv.gz", install="scikit-learn").read_bytes())
    values = np.array([line.split(",") for line in raw.decode().splitlines()], dtype=np.float64)
    rows = pa.array(values[:, :-1].reshape(-1, 8, 8).tolist(), pa.list_(pa.list_(pa.float64())))
    return pa.table({"rows": rows, "label": values[:, -1].astype(np.int64)})


SEQUENCES: dict[str, Sample] = {
    "vowels": Sample(
        _vowels,
        640,
        "Japanese Vowels: nine speakers, 12 LPC coefficients a step, 270 and 370 utterances (M. Kudo, J. Toyama, "
        "M. Shimbo; UCI, doi:10.24432/C5NS47) as shipped with aeon; CC BY 4.0",
    ),
    "glucose": Sample(
        _glucose,
        52281,
        "Blood glucose of one person every five minutes, with gaps, March to October 2010, as shipped with "
        "bokeh_sampledata; public domain",
    ),
    "stocks": Sample(
        _stocks,
        12154,
        "Daily prices of AAPL, FB, GOOG, IBM and MSFT to March 2013, with daily log return and range volatility in per "
        "cent (Quandl WIKI Prices) as shipped with bokeh_sampledata; public domain",
    ),
    "sunspots": Sample(
        _sunspots,
        3126,
        "Monthly mean sunspot numbers since 1749 (National Geophysical Data Center) as shipped with statsmodels; public domain",
    ),
    "languages": Sample(
        _languages,
        10326,
        f"Interface texts of 10 characters and more in {len(LANGUAGES)} languages, with the English message that each "
        "translates: Django's message catalogues; BSD-3-Clause",
    ),
    "digit-rows": Sample(
        _digit_rows,
        1797,
        "Handwritten digits as sequences of their 8 rows of 8 pixels (E. Alpaydin, C. Kaynak; UCI, doi:10.24432/C50P49), "
        "test part as shipped with scikit-learn; CC BY 4.0",
    ),
}
