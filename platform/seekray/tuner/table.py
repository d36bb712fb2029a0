"""Where a search is: one table that refreshes in place on a terminal, a line an event elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from seekray.mailbox import Mailbox
from seekray.progress import duration

if TYPE_CHECKING:
    from rich.console import Group

    from seekray.tuner.search import Search

EVERY = 0.5
SHOWN = 5  # of the best


class Table:
    """What the user sees of a search."""

    def __init__(self, search_id: str, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream, self._quiet = stream or sys.stderr, quiet
        self._mailbox = Mailbox(search_id)
        self._live: Any = None
        self._search: Search | None = None
        self._drawn, self._began = 0.0, time.monotonic()
        self._done_before: int | None = None
        self._at: dict[int, dict[str, Any]] = {}

    def event(self, text: str) -> None:
        """Something happened; a terminal's table shows it anyway."""
        if not self._quiet and not self._stream.isatty():
            print(text, file=self._stream, flush=True)

    def draw(self, search: Search) -> None:
        """The table as it is now, at most twice a second."""
        now = time.monotonic()
        if self._done_before is None:
            self._done_before = len(search.journal.ended)
        self._search = search
        if self._quiet or not self._stream.isatty() or now - self._drawn < EVERY:
            return
        self._drawn = now
        self._at |= {body["number"]: body for kind, body in self._mailbox.take() if kind == "progress"}
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), auto_refresh=False, transient=False)
            self._live.start()
        self._live.update(self._table(search), refresh=True)

    def _table(self, search: Search) -> Group:
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(box=None, pad_edge=False)
        keys = list(search.tune.space)
        others = search.tune.others
        for name in ("trial", "status", "epoch", search.metric, *others, *keys):
            made.add_column(name, overflow="fold")
        scored = [e for e in search.journal.ended if search.score(e) is not None]
        front = search.front if others else []
        best = sorted(scored, key=lambda e: (e.number not in front, -(search.score(e) or 0.0), e.number))[:SHOWN]
        for entry in [*search.running, *best]:
            at = self._at.get(entry.number, {}) if not entry.ended else {}
            value = at.get(f"validation_{search.metric}", entry.value)
            mark = "*" if entry.number in front else ""
            made.add_row(
                f"{entry.number}{mark}", entry.status, f"{at['epoch']}/{at['epochs']}" if at else str(entry.epoch), cell(value),
                *(cell(entry.others.get(k)) for k in others), *(cell(entry.values.get(k)) for k in keys),
            )  # fmt: skip
        return Group(Text(self.headline(search)), made, *([Text("* none beats it in all metrics")] if front else []))

    def headline(self, search: Search) -> str:
        """`12 of 32 done, 1 failed, 2 running, best loss 0.21 (trial 5), ETA 0:43`."""
        ended, running, best = search.journal.ended, search.running, search.best
        failed = sum(e.status == "failed" for e in ended)
        parts = [f"{len(ended)} of {search.tune.trials} done"] + ([f"{failed} failed"] if failed else [])
        parts.append(f"{len(running)} running")
        if best is not None:
            parts.append(f"best {search.metric} {cell(best.value)} (trial {best.number})")
        done = len(ended) - (self._done_before or 0)
        if done:
            left = (time.monotonic() - self._began) / done * (search.tune.trials - len(ended))
            parts.append(f"ETA {duration(left)}")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the last table standing."""
        if self._live is not None and self._search is not None:
            self._live.update(self._table(self._search), refresh=True)
            self._live.stop()
            self._live = None


def cell(value: Any) -> str:
    """A value in a column."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
