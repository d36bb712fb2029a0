"""Texts that come inside packages."""

from __future__ import annotations

import pyarrow as pa

from seekray.data.samples.package_data import Sample


def _pydocs() -> pa.Table:
    """A document a topic; a paragraph that occurred before is left out, so that no split has it on both sides."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    names, texts = [], []
    for name, text in topics.items():
        kept = []
        for paragraph in text.split("\n\n"):
            if paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph)
        if kept:
            names.append(name)
            texts.append("\n\n".join(kept))
    return pa.table({"topic": names, "text": texts})


TEXTS = {
    "pydocs": Sample(
        _pydocs,
        79,
        "The Python language reference as `help()` shows it (pydoc_data.topics of the running Python; Python Software "
        "Foundation), English, without the paragraphs that occur twice; PSF License Version 2",
    ),
}
