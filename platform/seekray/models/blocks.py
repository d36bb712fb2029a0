"""Blocks of a cache of keys and values: which are used, by how many, and what is known to be in them. No tensors.

A block holds the keys and values of `size` tokens that follow each other. Once full it never changes, so that sequences
that begin alike share it (arXiv:2309.06180).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

BLOCK = 16  # tokens


class BlockPool:
    """`count` blocks with the number of their users. What nobody uses is kept until its room is needed, oldest first."""

    def __init__(self, count: int, size: int = BLOCK) -> None:
        self.count, self.size = count, size
        self._users = [0] * count
        self._names: list[bytes | None] = [None] * count
        self._blank = list(range(count - 1, -1, -1))  # with nothing to find again
        self._idle: dict[int, None] = {}  # named and without users, in the order in which they became so
        self._known: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks without users."""
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks with users."""
        return self.count - self.free

    @property
    def kept(self) -> int:
        """Blocks without users whose content may be found again."""
        return len(self._idle)

    def take(self, number: int) -> list[int] | None:
        """So many blocks for one user; None where there are not as many."""
        if number > self.free:
            return None
        taken = []
        for _ in range(number):
            if self._blank:
                block = self._blank.pop()
            else:
                block = next(iter(self._idle))
                del self._idle[block]
                self._forget(block)
            self._users[block] = 1
            taken.append(block)
        return taken

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks of the first names, as far as they are known, with one more user each."""
        found = []
        for name in names:
            block = self._known.get(name)
            if block is None:
                break
            self._idle.pop(block, None)
            self._users[block] += 1
            found.append(block)
        return found

    def name(self, block: int, name: bytes) -> None:
        """Let a full block be found. Of several with the same content the first is."""
        if name not in self._known and self._names[block] is None:
            self._known[name] = block
            self._names[block] = name

    def release(self, blocks: Sequence[int]) -> None:
        """One user less of each. The last ones are given up first: a beginning is of use without its end, an end is not."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if self._names[block] is None:
                    self._blank.append(block)
                else:
                    self._idle[block] = None

    def _forget(self, block: int) -> None:
        name = self._names[block]
        assert name is not None
        del self._known[name]
        self._names[block] = None


def block_names(ids: Sequence[int], size: int, known: list[bytes]) -> list[bytes]:
    """Names of the full blocks of a sequence, by their tokens and all before them; `known` are its first ones, and grow."""
    while (len(known) + 1) * size <= len(ids):
        start = len(known) * size
        digest = hashlib.sha256(known[-1] if known else b"")
        digest.update(array("q", ids[start : start + size]).tobytes())
        known.append(digest.digest())
    return known
