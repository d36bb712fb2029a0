"""`seekray doctor`: what this machine and cluster have, and what is wrong with it. Starts nothing, waits for nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seekray.inspect import checks, services
from seekray.inspect.checks import Check
from seekray.inspect.later import later
from seekray.settings import Settings

BUDGET_S = 5.0

Look = Callable[[Settings, str | None], Sequence[Check]]
ALL: tuple[tuple[str, Look], ...] = (
    ("machine", checks.machine),
    ("gpus", checks.gpus),
    ("versions", checks.versions),
    ("cluster", services.cluster),
    ("tracking", services.tracking),
    ("storage", services.storage),
    ("disk", checks.disk),
    ("shared memory", checks.shared_memory),
    ("ports", services.ports),
    ("haproxy", services.haproxy),
    ("serving", services.serving),
    ("clock", checks.clock),
)


def doctor(settings: Settings, *, address: str | None = None) -> dict[str, Any]:
    """`{checks: [{name, state, found, advice}]}`; state is ok, note or wrong. Never raises."""
    until = time.monotonic() + BUDGET_S
    begun = [(name, later(lambda look=look: list(look(settings, address)))) for name, look in ALL]  # type: ignore[misc]
    found: list[Check] = []
    for name, future in begun:
        try:
            found += future.result(timeout=max(0.05, until - time.monotonic()))
        except TimeoutError:
            found.append(Check(name, "note", f"no answer in {BUDGET_S:g} s", "the machine is very busy, or a network hangs"))
        except Exception as error:
            found.append(Check(name, "note", f"could not be checked: {type(error).__name__}: {error}"))
    return {"checks": [vars(c) for c in found]}


def doctor_text(found: Mapping[str, Any]) -> str:
    """For people: a line a check, and under it what to do."""
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    wide = max(len(c["name"]) for c in found["checks"])
    lines = []
    for check in found["checks"]:
        lines.append(f"{marks[check['state']]}  {check['name'].ljust(wide)}  {check['found']}")
        if check["advice"] and check["state"] != "ok":
            lines.append(f"{' ' * (wide + 9)}→ {check['advice']}")
    wrong = sum(c["state"] == "wrong" for c in found["checks"])
    lines.append(f"\n{wrong} wrong" if wrong else "\nnothing is wrong")
    return "\n".join(lines)
