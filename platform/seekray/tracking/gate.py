"""The gate before an alias moves: the candidate is not worse than the holder, on the same held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seekray.errors import GateError

Evaluate = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Verdict:
    """What was compared: versions, the metric, both numbers, and whose rows they are of."""

    metric: str
    candidate: float
    champion: float
    candidate_version: str
    champion_version: str
    data: str

    def as_json(self) -> dict[str, Any]:
        """For `--json` and the history."""
        return vars(self).copy()


def check(
    candidate: float,
    champion: float,
    metric: str,
    *,
    higher_is_better: bool,
    tolerance: float = 0.0,
    names: tuple[str, str] = ("the candidate", "the champion"),
) -> None:
    """Raises GateError with both numbers where the candidate is worse by more than the tolerance, or not a number."""
    loss = champion - candidate if higher_is_better else candidate - champion
    if math.isnan(candidate) or loss > tolerance:
        better = "higher" if higher_is_better else "lower"
        raise GateError(
            f"{names[0]} has {metric} {candidate:.6g}, {names[1]} has {champion:.6g} ({better} is better, "
            f'tolerance {tolerance:g}); promote it all the same with --force "reason"'
        )


def same_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """True where two versions were measured on the same held-out rows of the same data."""
    return bool(a["fingerprint"]) and a["fingerprint"] == b["fingerprint"] and a.get("held_out") == b.get("held_out")


def compare(
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any],
    metric: str,
    *,
    higher_is_better: bool,
    tolerance: float = 0.0,
    evaluate: Evaluate | None = None,
    data: str = "held-out rows",
) -> Verdict:
    """Pass two versions (entries of `registry.show`) through the gate. Raises GateError.

    Their recorded numbers count where they were measured on the same rows; otherwise, or where
    `evaluate` is for other data than `held-out rows`, both are measured by `evaluate(entry)`.
    """
    names = (f"version {candidate['version']}", f"version {champion['version']}")
    recorded = (candidate["metrics"].get(metric), champion["metrics"].get(metric))
    if data == "held-out rows" and same_rows(candidate, champion) and None not in recorded:
        first, second = float(recorded[0]), float(recorded[1])
    elif evaluate is not None:
        first, second = evaluate(candidate), evaluate(champion)
    else:
        raise GateError(
            f"{names[0]} and {names[1]} were not measured on the same rows ({metric} {recorded[0]} and {recorded[1]}); "
            'give rows to compare them on with --data FILE, or promote with --force "reason"'
        )
    check(first, second, metric, higher_is_better=higher_is_better, tolerance=tolerance, names=names)
    return Verdict(metric, first, second, str(candidate["version"]), str(champion["version"]), data)
