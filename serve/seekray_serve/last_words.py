"""What a client is told when the process that answers it is killed.

The kernel closes a connection when no process holds it any more. So a second process holds those of streams too, with the
bytes to end them by, and does nothing: until the first one is gone, however it went (`kill -9`, no memory). Then it writes
them and closes. A stream costs two messages over a socket pair, a token nothing.

Standard library only: this file also runs as a script, which takes 10 MB, with `python -I -S`.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys

_MOST = 4096  # bytes of a message
_PATIENCE_S = 1.0  # for a client that reads nothing


class LastWords:
    """Connections of this process, in the hands of another; which is started by the first of them."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()

    def leave(self, connection: int, words: bytes) -> int:
        """Have `words` written to a connection (a file descriptor) if this process ends; the number to take it back by.

        Best effort: nothing is left where the other process is gone or does not keep up.
        """
        number = next(self._numbers)
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.setblocking(False)
            with theirs:
                # A session of its own: what is sent to the group of the first process does not reach it.
                script = [sys.executable, "-I", "-S", __file__]
                self._process = subprocess.Popen(
                    script, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
                )
        with contextlib.suppress(OSError):
            socket.send_fds(self._channel, [_key(number) + words], [connection])
        return number

    def take_back(self, number: int) -> None:
        """The connection is this process's alone again."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.send(_key(number))


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def attend(channel: socket.socket) -> None:
    """Hold what comes over the channel until its other end is gone; then say the last words."""
    held: dict[bytes, tuple[socket.socket, bytes]] = {}
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, _MOST, 1)
        if not message:
            break
        key, words = message[:8], message[8:]
        if descriptors:
            held[key] = (socket.socket(fileno=descriptors[0]), words)
        elif key in held:
            held.pop(key)[0].close()
    for connection, words in held.values():
        with contextlib.suppress(OSError), connection:
            connection.settimeout(_PATIENCE_S)
            connection.sendall(words)


if __name__ == "__main__":
    attend(socket.socket(fileno=0))
