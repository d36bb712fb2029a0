"""Column names in messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def not_there(key: str, name: str, there: Sequence[str], source: str) -> str:
    """`key: column … is not in …; did you mean …?`."""
    near = difflib.get_close_matches(name, there, 1, 0.5) or [n for n in there if n.lower() == name.lower()][:1]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(there[:20]) + (f", … ({len(there)})" if len(there) > 20 else "")
    return f"{key}: column {name!r} is not in {source}{hint}; it has: {listed}"
