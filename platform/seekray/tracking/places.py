"""Where runs are: under the settings' storage, and wherever an experiment of this folder put its own."""

from __future__ import annotations

from seekray.errors import SeekrayError
from seekray.settings import Settings
from seekray.storage import Storage


def remember(run: Storage, where: Settings) -> None:
    """Note a run that is not under the settings' storage, so that `runs list`, `sync` and `runs:/ID` find it."""
    base, _, run_id = run.uri.rpartition("/")
    if base == Storage(where.storage).child("runs").uri:
        return
    note = where.home / "elsewhere" / run_id
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(run.uri)


def _elsewhere(where: Settings) -> list[Storage]:
    notes = sorted((where.home / "elsewhere").glob("*")) if (where.home / "elsewhere").is_dir() else []
    found = []
    for note in notes:
        try:
            found.append(Storage(note.read_text().strip()))
        except (SeekrayError, OSError):
            continue
    return found


def runs_of(where: Settings, storage: str | None = None) -> list[Storage]:
    """The storage of every run, oldest first. storage: only what is under it; its `runs` folder, or one run, will do too."""
    if storage is not None:
        given = Storage(storage)
        if given.exists("spool"):
            return [given]
        runs = given.child("runs") if given.exists("runs") else given
        return [child for name in runs.list() if (child := runs.child(name)).exists("spool")]
    runs = Storage(where.storage).child("runs")
    found = [*(runs.child(name) for name in runs.list()), *_elsewhere(where)]
    return sorted(found, key=lambda run: run.uri.rsplit("/", 1)[-1])


def find_run(run_id: str, where: Settings) -> Storage | None:
    """A run's storage by its id."""
    if not run_id or "/" in run_id or run_id.startswith("."):
        return None
    run = Storage(where.storage).child("runs").child(run_id)
    if run.exists(""):
        return run
    note = where.home / "elsewhere" / run_id
    return Storage(note.read_text().strip()) if note.is_file() else None
