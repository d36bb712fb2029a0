"""Autoscaling by requests in flight, as Serve's own policy has it, and why the last decision was taken.

Serve 2.60 describes decisions in its schema and never fills them in. This runs in Serve's controller in place of its policy,
asks that one, and leaves on the board what it saw when the number of replicas changed.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

POLICY = f"{__name__}:follow_load"
WHO = "autoscaler"
# What each application's last look saw: its configuration, the replicas that were meant to be, and the load.
_seen: dict[str, tuple[Any, int, float]] = {}


def follow_load(ctx: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
    """Serve's decision; called twice a second or so, before Serve applies its delays and limits to it."""
    from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

    name = str(ctx.app_name)
    now = float(ctx.total_num_requests)
    config, before, load = _seen.get(name, (ctx.config, ctx.target_num_replicas, now))
    if config is not ctx.config:  # deployed anew: what changed is no decision of the load's
        before = ctx.target_num_replicas
    if ctx.target_num_replicas != before:
        _tell(name, before, ctx.target_num_replicas, why(before, ctx.target_num_replicas, max(load, now), load, ctx.config))
    _seen[name] = (ctx.config, ctx.target_num_replicas, now)
    decision: tuple[int | float, dict[str, Any]] = replica_queue_length_autoscaling_policy(ctx)
    return decision


def why(before: int, after: int, peak: float, load: float, config: Any) -> str:
    """A decision in words. peak, load: requests in flight, on the average of the window; the larger explains more replicas."""
    target, window = config.get_target_ongoing_requests(), config.look_back_period_s
    if before == 0:
        return "a request came while there was no replica"
    if after > before:
        wanted = math.ceil(peak / target)
        seen = f"{peak:.1f} requests in flight (mean of {window:g} s) for longer than {config.upscale_delay_s:g} s"
        most = f", of which {config.max_replicas} are allowed" if wanted > config.max_replicas else ""
        return f"{seen}; at {target:g} a replica that is {max(wanted, after)}{most}"
    delay = config.downscale_delay_s
    seen = f"{load:.1f} requests in flight (mean of {window:g} s) for longer than {delay:g} s"
    if after == 0:
        return f"no request for longer than {delay:g} s, and min is 0"
    least = f"; at least {config.min_replicas} stay" if after == config.min_replicas else ""
    return f"{seen}; at {target:g} a replica fewer do{least}"


def _tell(name: str, before: int, after: int, reason: str) -> None:
    from seekray_serve import board

    at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    board.put(name, WHO, {"at": at, "from": before, "to": after, "why": reason})
