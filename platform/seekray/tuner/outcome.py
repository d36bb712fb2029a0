"""What a search leaves: `best.yaml`, its table, its plot."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.config import Experiment
from seekray.experiment_file import dump
from seekray.storage import Storage

if TYPE_CHECKING:
    from seekray.tracking.spool import Tracker
    from seekray.tuner.journal import Entry
    from seekray.tuner.search import Search


def best_yaml(search: Search, best: Entry, given: Mapping[str, Any], source: str) -> str:
    """An experiment that `train` accepts: what the file gave, and the best trial's values, each with where it comes from."""
    found = {**given}
    found.pop("tune", None)
    comments = {key: f"trial {best.number} of {search.search_id}: {_how(search, key)}" for key in best.values}
    others = dict(search.tune.repetitions(search.experiment.training.seed)[0])
    comments |= dict.fromkeys(others, "tune.repeat: of the first repetition, whose model was kept")
    if search.tune.first:
        others["training.metric"], comments["training.metric"] = search.tune.first, "tune.metric"
    head = (
        f"The best of {len(search.journal.ended)} trials of {search.search_id}: trial {best.number}, "
        f"validation {search.metric} {best.value:.6g}{_beside(search, best)}.\nValues without a comment are those of {source}."
    )
    if best.schedule:
        steps = "\n".join(f"  from epoch {epoch}: {json.dumps(values)}" for epoch, values in best.schedule)
        head += f"\nIts values changed on the way (pbt); below are the last ones:\n{steps}"
    return dump(found, {**best.values, **others}, comments, head)


def _beside(search: Search, best: Entry) -> str:
    if not best.others:
        return ""
    share = f"the best in {next(iter(best.others))} of those within {search.tune.tolerance:.3g} of the best {search.metric}"
    return "".join(f", {name} {value:.6g}" for name, value in best.others.items()) + f":\n{share}"


def _how(search: Search, key: str) -> str:
    parameter = search.tune.space[key]
    what = list(parameter.choice) if parameter.choice is not None else list(parameter.range)
    return f"{search.tune.searcher} over {parameter.kind} {json.dumps(what)}"


def leave(search: Search, run: Storage, best: int, best_file: str, tracker: Tracker) -> None:
    """Write the results into the search's run, and tell MLflow of them."""
    from seekray import plots_search as plots
    from seekray.tuner.importance import importances

    trials = [entry.as_json() for entry in search.journal.trials.values()]
    found = importances(trials, search.tune.space)
    texts = {
        "best.yaml": best_file,
        "trials.json": json.dumps(trials, indent=1),
        "importances.json": json.dumps(found, indent=1),
    }
    for name, text in texts.items():
        run.write_bytes(name, text.encode())
        tracker.text(name, text)
    logarithmic = [k for k, p in search.tune.space.items() if p.kind.startswith("log")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plots.history(trials, search.metric, search.higher, folder / "history.png")
        if search.tune.others:
            plots.front(trials, search.goals[:2], search.front, best, folder / "front.png")
        plots.parallel(trials, logarithmic, search.metric, search.higher, folder / "parallel.png")
        if found:
            plots.importances(found, folder / "importances.png")
        for plot in sorted(folder.glob("*.png")):
            run.write_bytes(f"plots/{plot.name}", plot.read_bytes())
            tracker.file(plot, f"plots/{plot.name}")


def given_by(experiment: Experiment) -> dict[str, Any]:
    """What an experiment says, without defaults."""
    return experiment.model_dump(mode="json", by_alias=True, exclude_unset=True)
