"""What a search did, kept at every event: a search that died goes on from here. Imports no Ray and no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from seekray.storage import Storage

NAME = "journal.jsonl"
ENDED = ("finished", "stopped", "failed")


@dataclass
class Entry:
    """One trial. score: the best value of the metric so far, as (epoch, value) at each rung and at the end.

    status: running, finished, stopped (behind others, or the search ended) or failed (with its reason).
    others: the metrics beside the first, where there are several.
    schedule: where the values changed on the way (PBT), (epoch, values) from each change on.
    """

    number: int
    run_id: str
    values: dict[str, Any]
    status: str = "running"
    value: float | None = None
    epoch: int = 0
    seconds: float = 0.0
    reason: str = ""
    rungs: list[tuple[int, float]] = field(default_factory=list)
    others: dict[str, float] = field(default_factory=dict)
    schedule: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """True where nothing more comes of it."""
        return self.status in ENDED

    def as_json(self) -> dict[str, Any]:
        """As `tune --json` lists it."""
        return {
            "number": self.number, "run_id": self.run_id, "status": self.status, "value": self.value, "epoch": self.epoch,
            "seconds": round(self.seconds, 3), "reason": self.reason, "values": self.values,
            **({"others": self.others} if self.others else {}), **({"schedule": self.schedule} if self.schedule else {}),
        }  # fmt: skip


class Journal:
    """The trials of a search, by number, and the file that tells them again: a JSON object a line, the last of a trial counts.

    The file is written whole at each event, since an object store cannot append; a search's is a few hundred kB.
    """

    def __init__(self, run: Storage) -> None:
        self._run = run
        self.trials: dict[int, Entry] = {}
        self._lines: list[str] = []
        if run.exists(NAME):
            for line in run.read_bytes(NAME).decode().splitlines():
                told = json.loads(line)
                self._lines.append(line)
                told |= {name: [(epoch, value) for epoch, value in told[name]] for name in ("rungs", "schedule")}
                self.trials[told["number"]] = Entry(**told)
        self._saved = len(self._lines)

    def note(self, entry: Entry) -> None:
        """How a trial is now, in memory; `save` writes it."""
        self.trials[entry.number] = entry
        self._lines.append(json.dumps(vars(entry)))

    def save(self) -> None:
        """Write what was noted."""
        if len(self._lines) > self._saved:
            self._saved = len(self._lines)
            self._run.write_bytes(NAME, "".join(f"{line}\n" for line in self._lines).encode())

    @property
    def ended(self) -> list[Entry]:
        """Those of which nothing more comes."""
        return [entry for entry in self.trials.values() if entry.ended]
