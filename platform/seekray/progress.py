"""Where a run is: a bar on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

PLAIN_EVERY = 5.0
HIDDEN = {"step", "total_steps", "epoch", "epochs", "finished"}


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(state: Mapping[str, Any], began: float, began_step: int, now: float) -> str:
    """`epoch 3/30  step 90/900  loss 0.21  validation_accuracy 0.97  12,345 rows/s  ETA 0:12`."""
    step, total = int(state["step"]), int(state["total_steps"])
    parts = [f"epoch {min(state['epoch'] + 1, state['epochs'])}/{state['epochs']}", f"step {step}/{total}"]
    if "loss" in state:
        parts.append(f"loss {state['loss']:.4g}")
    parts += [
        f"{key.replace('validation_', 'val ')} {state[key]:.4g}"
        for key in state
        if key.startswith("validation_") and not key.endswith("loss")
    ][:1]
    if "rows_per_second" in state:
        parts.append(f"{state['rows_per_second']:,.0f} rows/s")
    if step > began_step and not state.get("finished"):
        parts.append(f"ETA {duration((now - began) / (step - began_step) * (total - step))}")
    return "  ".join(parts)


class Progress:
    """Shows a run's progress; on anything but a terminal, a line every few seconds."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet, self._bar = quiet, self.stream.isatty()
        self._began: float | None = None
        self._began_step, self._shown, self._open, self._last = 0, 0.0, False, ""

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if not self.quiet:
            self.close()
            print(text, file=self.stream, flush=True)

    def update(self, state: Mapping[str, Any]) -> None:
        """New figures of a run (see `loop.Pulse`)."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._began_step = now, int(state["step"])
        if self.quiet:
            return
        text = line(state, self._began, self._began_step, now)
        if self._bar:
            width, done = 24, state["step"] / max(1, state["total_steps"])
            bar = "━" * int(width * done) + "╌" * (width - int(width * done))
            print(f"\r\x1b[2K{bar} {text}", end="", file=self.stream, flush=True)
            self._open = True
        elif (now - self._shown > PLAIN_EVERY or state.get("finished")) and text != self._last:
            print(text, file=self.stream, flush=True)
            self._shown = now
        self._last = text

    def close(self) -> None:
        """End an open bar's line."""
        if self._open:
            print(file=self.stream, flush=True)
            self._open = False
