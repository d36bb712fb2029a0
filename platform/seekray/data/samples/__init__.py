"""The samples: scikit-learn's small data sets here, sequences and texts in their own files.

scikit-learn itself is not imported: it brings SciPy and costs a second that no training step needs.
"""

from __future__ import annotations

import difflib
import gzip
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.data.samples.mixed import MIXED
from seekray.data.samples.package_data import Sample, package_file
from seekray.data.samples.sequences import SEQUENCES
from seekray.data.samples.texts import TEXTS
from seekray.errors import DataError

WINE = [
    "alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
    "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280_od315_of_diluted_wines", "proline",
]  # fmt: skip
CELL = [
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave_points", "symmetry",
    "fractal_dimension",
]  # fmt: skip
BREAST_CANCER = [f"mean_{n}" for n in CELL] + [f"{n}_error" for n in CELL] + [f"worst_{n}" for n in CELL]
DIABETES = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]


def _numbers(name: str, delimiter: str | None = ",", skip: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    raw = package_file("sklearn", f"datasets/data/{name}", install="scikit-learn").read_bytes()
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
    lines = text.splitlines()[skip:]
    return np.array([[float(v) for v in line.split(delimiter)] for line in lines if line], dtype=np.float64)


def _table(names: list[str], features: Any, target: str, answers: Any) -> pa.Table:
    columns = {name: pa.array(np.ascontiguousarray(features[:, i])) for i, name in enumerate(names)}
    return pa.table(columns | {target: pa.array(answers)})


def _digits() -> pa.Table:
    values = _numbers("digits.csv.gz")
    names = [f"pixel_{i}_{j}" for i in range(8) for j in range(8)]
    return _table(names, values, "label", values[:, -1].astype(np.int64))


def _named(file: str, names: list[str], classes: list[str]) -> pa.Table:
    values = _numbers(file, skip=1)
    return _table(names, values, "label", [classes[int(c)] for c in values[:, -1]])


def _diabetes() -> pa.Table:
    # The file's own units: standardising is fitted on the training rows, as for any other data.
    features = _numbers("diabetes_data_raw.csv.gz", delimiter=None)
    return _table(DIABETES, features, "progression", _numbers("diabetes_target.csv.gz", delimiter=None)[:, 0])


SAMPLES: dict[str, Sample] = (
    {
        "digits": Sample(
            _digits,
            1797,
            "Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak; UCI, doi:10.24432/C50P49), test part as "
            "shipped with scikit-learn; CC BY 4.0",
        ),
        "wine": Sample(
            lambda: _named("wine_data.csv", WINE, ["class_0", "class_1", "class_2"]),
            178,
            "Wine (S. Aeberhard, M. Forina; UCI, doi:10.24432/C5PC7J) as shipped with scikit-learn; CC BY 4.0",
        ),
        "breast-cancer": Sample(
            lambda: _named("breast_cancer.csv", BREAST_CANCER, ["malignant", "benign"]),
            569,
            "Breast Cancer Wisconsin, diagnostic (W. Wolberg, O. Mangasarian, N. Street, W. Street; UCI, "
            "doi:10.24432/C5DW2B) as shipped with scikit-learn; CC BY 4.0",
        ),
        "diabetes": Sample(
            _diabetes,
            442,
            "Diabetes (B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, Least Angle Regression, 2004), in its own "
            "units, as shipped with scikit-learn; BSD-3-Clause",
        ),
    }
    | SEQUENCES
    | TEXTS
    | MIXED
)


def sample(name: str) -> Sample:
    """The sample `name`. Raises DataError naming the nearest."""
    if name in SAMPLES:
        return SAMPLES[name]
    near = difflib.get_close_matches(name, SAMPLES, n=1)
    hint = f"; did you mean sample:{near[0]}?" if near else ""
    raise DataError(f"data.source: there is no sample:{name}, only {', '.join(SAMPLES)}{hint}", field="data.source")
