"""What the verbs share: options, JSON output, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; all else goes to stderr.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a value: --set training.lr=0.001")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; default RAY_ADDRESS, else a local one.")]
File = Annotated[Path, typer.Argument(help="The experiment file.")]
Model = Annotated[str, typer.Argument(help="digits@champion, digits/3, models:/…, runs:/ID or a bundle folder.")]


def example(text: str) -> str:
    """An epilog with examples for `--help`."""
    return f"Example: {text}"


def out(value: Any, as_json: bool, text: Callable[[], str]) -> None:
    """Print one JSON document, or text for people."""
    print(json.dumps(value, indent=1, default=str) if as_json else text())


def note(text: str) -> None:
    """A line for people that is not the result."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Columns under their heads, aligned."""
    cells = [list(map(str, head)), *([_cell(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def metrics_line(metrics: dict[str, Any], count: int = 4) -> str:
    """`accuracy 0.98  log_loss 0.06 …`."""
    return "  ".join(f"{key} {_cell(value)}" for key, value in list(metrics.items())[:count])
