"""Tokens → text as it grows: whole characters only, cut at a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CUT = "\ufffd"  # what a decoder puts where a character's bytes are not all there
CONTEXT = 5  # tokens of the prompt that are decoded with the text, since some tokenizers look at what is before


class TextStream:
    """The text of one sequence. What may still be part of a stop string, or of a character, is held back."""

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, stop
        self._ids = list(prompt[-CONTEXT:])
        self._begin, self._read = 0, len(self._ids)  # the window that is decoded again, and what of it is text already
        self._held = ""
        self.stopped = False

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """The text that a token adds, maybe none. Sets `stopped` where a stop string ended it."""
        self._ids.append(token)
        fresh = self._fresh()
        if fresh.endswith(CUT):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._cut(fresh, may_stop)

    def keep(self, token: int) -> str:
        """Take a token whose text `finish` will give."""
        self._ids.append(token)
        return ""

    def finish(self) -> str:
        """What was held back."""
        if self.stopped:
            return ""
        fresh = self._fresh()
        self._read = len(self._ids)
        rest = self._cut(fresh, may_stop=True)
        self._held, rest = "", rest + self._held
        return rest

    def _fresh(self) -> str:
        """The text of the tokens since `_read`."""
        if self._read == len(self._ids):
            return ""
        before = self._decode(self._ids[self._begin : self._read])
        return self._decode(self._ids[self._begin :])[len(before) :]

    def _cut(self, fresh: str, may_stop: bool) -> str:
        if not self._stop:
            return fresh
        text = self._held + fresh
        if may_stop and (found := [at for at in (text.find(s) for s in self._stop) if at >= 0]):
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
