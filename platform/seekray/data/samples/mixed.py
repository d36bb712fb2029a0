"""Samples that a generator learns from: a mixed table, pictures, names."""

from __future__ import annotations

import csv
import gzip
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data.samples.package_data import Sample, package_file

NUMBERS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")
# Degrees: a box around Italy.
BOX = (36.0, 47.1, 6.6, 18.6)


def _penguins() -> pa.Table:
    lines = package_file("bokeh_sampledata", "_data/penguins.csv", install="bokeh_sampledata").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    columns: dict[str, Any] = {name: [row[name] or None for row in rows] for name in ("species", "island")}
    for name in NUMBERS:
        values = [float(row[name]) if row[name] else None for row in rows]
        whole = name in NUMBERS[2:]
        columns[name] = pa.array([None if v is None else int(v) for v in values] if whole else values)
    # One bird has a full stop for its sex.
    columns["sex"] = [row["sex"].lower() if row["sex"] in ("MALE", "FEMALE") else None for row in rows]
    return pa.table(columns)


def _digit_images() -> pa.Table:
    from seekray.data.media import png
    from seekray.data.samples import sample

    table = sample("digits").read()
    names = [name for name in table.column_names if name != "label"]
    pixels = np.stack([table.column(name).to_numpy() for name in names], 1).reshape(-1, 8, 8, 1)
    grey = np.round(pixels * (255 / 16)).astype(np.uint8)
    return pa.table({"image": pa.array([png(p) for p in grey], pa.binary()), "label": table.column("label")})


def _towns() -> pa.Table:
    with gzip.open(package_file("bokeh_sampledata", "_data/world_cities.csv.gz", install="bokeh_sampledata"), "rt") as lines:
        rows = list(csv.DictReader(lines))
    south, north, west, east = BOX
    inside = [r["name"] for r in rows if south <= float(r["lat"]) <= north and west <= float(r["lng"]) <= east]
    return pa.table({"name": sorted({n for n in inside if n.isascii() and len(n) <= 16})})


MIXED = {
    "penguins": Sample(
        _penguins,
        344,
        "Palmer Archipelago penguins (K. Gorman, Palmer Station LTER; A. Horst, A. Hill, K. Gorman, "
        "doi:10.5281/zenodo.3960218), in bokeh_sampledata, with missing values; CC0",
    ),
    "digit-images": Sample(
        _digit_images,
        1797,
        "Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak; UCI, doi:10.24432/C50P49), test part as "
        "shipped with scikit-learn, as grey PNG files of 8x8 pixels; CC BY 4.0",
    ),
    "towns": Sample(
        _towns,
        1982,
        "Names of towns of more than 5,000 people in and around Italy (GeoNames, in bokeh_sampledata); CC BY 3.0",
    ),
}
