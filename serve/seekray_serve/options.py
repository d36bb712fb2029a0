"""What a user may say of a served model, in the experiment's `serve:` section or to `build(args)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from seekray.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may take.

    max_body_bytes, max_rows: of one request. max_batch_rows: of one forward pass.
    max_queued_requests: waiting behind the running batch, in one replica; -1 is no limit.
    """

    max_body_bytes: int = 16 * 2**20
    max_rows: int = 10_000
    max_batch_rows: int = 1024
    max_queued_requests: int = 1000


LIMITS = frozenset(limit.name for limit in dataclasses.fields(Limits))
_OTHERS = frozenset(("num_cpus", "num_gpus", "num_replicas", "autoscaling"))


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError for an option that does not exist."""
    known = LIMITS | _OTHERS
    for name in options:
        if name not in known:
            raise UserError(f"unknown serve option {name!r}; known are {', '.join(sorted(known))}", field=name)
    for name in LIMITS & options.keys():
        if type(options[name]) is not int:
            raise UserError(f"serve option {name!r} must be an integer, got {options[name]!r}", field=name)
    scaling = options.get("autoscaling") or {}
    if unknown := sorted(scaling.keys() - {"min", "max", "target"}):
        raise UserError(f"unknown autoscaling option {unknown[0]!r}; known are min, max, target", field=unknown[0])
    if scaling and options.get("num_replicas"):
        raise UserError("num_replicas and autoscaling exclude each other", field="num_replicas")


def limits(options: Mapping[str, Any]) -> Limits:
    """The limits among the options."""
    return Limits(**{name: options[name] for name in LIMITS & options.keys()})
