"""The model families. `FAMILIES` is the only registration: a name and where its class is."""

from __future__ import annotations

import importlib
from functools import cache
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
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"family: cannot import {path!r}: {error}", field="family") from error
    return family
