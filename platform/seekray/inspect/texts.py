"""Numbers for people, and texts that YAML reads back as they were."""

from __future__ import annotations

import json
import re

import yaml


def mib(size: float) -> str:
    """A size in the unit that fits."""
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size:.0f} bytes"


def count(number: int, what: str) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """One line for a comment."""
    return "".join(c if c.isprintable() else "?" for c in text)


def scalar(text: str) -> str:
    """A text as a YAML scalar that reads back as the same text, in block and flow."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) and yaml.safe_load(text) == text:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
