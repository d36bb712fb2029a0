"""The model families. `FAMILIES` is the only registration: a name and where its class is."""

from __future__ import annotations

import importlib
import importlib.util
import sysconfig
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from seekray.errors import ConfigError

if TYPE_CHECKING:
    from seekray.models.family import Family

FAMILIES: dict[str, str] = {
    "net": "seekray.models.net:Net",
    "rec": "seekray.models.rec:Rec",
    "gen": "seekray.models.gen:Gen",
    "lm": "seekray.models.lm:Lm",
}


@cache
def get_family(name: str) -> Family:
    """The family of that name, or of `package.module:MyFamily`. Raises ConfigError."""
    path = FAMILIES.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        raise ConfigError(
            f"family: {name!r} given, expected one of {', '.join(FAMILIES)} or package.module:MyFamily", field="family"
        )
    try:
        family: Family = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: a method that it must have is missing
        raise ConfigError(
            f"family: cannot import {path!r}: {error}; a module of one's own is looked for among the installed packages "
            "and in the current folder",
            field="family",
        ) from error
    return family


def module_folder(name: str) -> Path | None:
    """The folder of a family's module that is not installed: what a process elsewhere needs on its path; else None."""
    top = name.partition(":")[0].partition(".")[0]
    spec = None if name in FAMILIES else importlib.util.find_spec(top)
    if spec is None:
        return None
    place = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "")).resolve()
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    return None if place.parent in installed else place.parent
