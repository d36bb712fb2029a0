"""The whole exception tree on one page, each class with a stable code.

An error that a user can cause says what was given, what was expected and what to do.
On the command line it becomes one line and `exit_code`; over HTTP a body
`{"error": {"code", "message", "field"}}` with `http_status`.
"""

from __future__ import annotations

import errno


class SeekrayError(Exception):
    """Base of all errors of seekray; on its own, something failed that is not the user's input."""

    code = "failed"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        """Survive a trip between Ray's processes with the field."""
        return (_rebuild, (type(self), self.message, self.field))

    def as_json(self) -> dict[str, dict[str, str | None]]:
        """The body that every endpoint and `--json` answer with."""
        return {"error": {"code": self.code, "message": self.message, "field": self.field}}


def full(error: OSError, what: str | None = None) -> FullError | None:
    """A full disk as an error that says where; None for other troubles."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = what or error.filename
    return FullError(f"{error.strerror}{f': {where} could not be written' if where else ''}; make room and run it again")


def _rebuild(kind: type[SeekrayError], message: str, field: str | None) -> SeekrayError:
    return kind(message, field=field)


class UserError(SeekrayError):
    """The user's input is wrong."""

    code = "bad_input"
    exit_code = 2
    http_status = 400


class ConfigError(UserError):
    """The experiment file, or an override of it, is wrong."""

    code = "bad_config"


class DataError(UserError):
    """A data source, a row or a value is wrong."""

    code = "bad_data"


class ModelNotFoundError(UserError):
    """No such model, version, alias, run or bundle."""

    code = "not_found"
    http_status = 404


class InterruptedByUser(SeekrayError):
    """Ctrl-C, or a job that was stopped."""

    code = "interrupted"
    exit_code = 130


class FullError(SeekrayError):
    """A disk has no room left, or the quota is used up."""

    code = "disk_full"


class GateError(SeekrayError):
    """A promotion was refused: the candidate is worse than the champion or not verified."""

    code = "gate_refused"


class ResourcesError(SeekrayError):
    """The cluster does not have what the experiment asks for."""

    code = "resources"


class CorruptError(SeekrayError):
    """A checkpoint or bundle does not match its manifest."""

    code = "corrupt"


class DivergedError(SeekrayError):
    """The loss became NaN or infinite."""

    code = "diverged"


class TrackingError(SeekrayError):
    """The tracking server or the registry did not do what was asked."""

    code = "tracking"


class ClusterError(SeekrayError):
    """Ray, a job or an endpoint did not start, stop or answer."""

    code = "cluster"


class TooLargeError(UserError):
    """A body or a table is over the limit."""

    code = "too_large"
    http_status = 413


class TooBusyError(UserError):
    """A queue is full; `retry_after_s` seconds later it may not be."""

    code = "too_busy"
    http_status = 429
    retry_after_s = 1

    @classmethod
    def of(cls, waiting: int, what: str = "requests", retry_after_s: int = 1) -> TooBusyError:
        """So many wait already."""
        error = cls(f"{waiting} {what} are waiting already; try again in {retry_after_s} s")
        error.retry_after_s = retry_after_s
        return error
