"""What a user may say of a served model, in the experiment's `serve:` section or to `build(args)`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seekray.errors import UserError
from seekray.models import module_folder
from seekray_serve.scaling import POLICY


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may take.

    max_body_bytes, max_rows: of one request; max_table_bytes, max_table_rows: of one whose body is an Arrow stream, which
    costs a fraction of JSON. max_batch_rows: of one forward pass. max_queued_requests: waiting behind the running batch,
    in one replica; -1 is no limit.
    max_cached_tokens: of a model of texts, tokens whose keys and values a replica keeps; 0 is enough for a full batch.
    """

    max_body_bytes: int = 16 * 2**20
    max_rows: int = 10_000
    max_table_bytes: int = 256 * 2**20
    max_table_rows: int = 100_000
    max_batch_rows: int = 1024
    max_queued_requests: int = 1000
    max_cached_tokens: int = 0


# How long a stream may go on in a replica that leaves.
DRAIN_S = 600
# In the environment of every process of a head of our own.
INSTANCE_MARK = "SEEKRAY_INSTANCE"

LIMITS = frozenset(limit.name for limit in dataclasses.fields(Limits))
_SCALING = frozenset(("min", "max", "target", "up_after_s", "down_after_s"))
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
    if unknown := sorted(scaling.keys() - _SCALING):
        names = ", ".join(sorted(_SCALING))
        raise UserError(f"unknown autoscaling option {unknown[0]!r}; known are {names}", field=unknown[0])
    if scaling and options.get("num_replicas"):
        raise UserError("num_replicas and autoscaling exclude each other", field="num_replicas")


def own_module(bundle: Path) -> dict[str, str]:
    """`{"modules": FOLDER}` of a bundle whose family is the user's and not installed: replicas look there too."""
    file = bundle / "bundle.json"
    folder = module_folder(json.loads(file.read_bytes())["family"]) if file.exists() else None
    return {"modules": str(folder)} if folder else {}


def limits(options: Mapping[str, Any]) -> Limits:
    """The limits among the options."""
    return Limits(**{name: options[name] for name in LIMITS & options.keys()})


def autoscaling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Serve's `autoscaling_config` of the `autoscaling` section.

    Serve averages the load over a window before its delays begin to count; the window follows the
    delay here, so that replicas come when `up_after_s` says and not half a minute later.
    """
    up_after_s = float(options.get("up_after_s", 10))
    window_s = min(30.0, max(2.0, up_after_s))
    return {
        "min_replicas": options.get("min", 1),
        "max_replicas": options.get("max", 1),
        "target_ongoing_requests": options.get("target", 8),
        "upscale_delay_s": up_after_s,
        "downscale_delay_s": float(options.get("down_after_s", 300)),
        "look_back_period_s": window_s,
        "metrics_interval_s": window_s / 4,
        # Serve's controller imports it: sure on a head of our own, not on a cluster where models bring their environment.
        **({"policy": {"policy_function": POLICY}} if INSTANCE_MARK in os.environ else {}),
    }
