"""What a finished run leaves: the bundle, metrics on held-out rows, plots, the model card."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from seekray import bundle as bundles
from seekray.checkpoint import Checkpoint
from seekray.config import Experiment
from seekray.data.prepared import Prepared
from seekray.data.values import json_value
from seekray.evaluation import Evaluation, evaluate
from seekray.generator import Generator, open_model
from seekray.models import get_family
from seekray.models.family import Released, watched
from seekray.predictor import Predictor
from seekray.storage import Storage

if TYPE_CHECKING:
    from seekray.tracking.spool import Tracker

SAMPLE_ROWS = 16


@dataclass(frozen=True)
class Concluded:
    """bundle: its folder in the run's storage; metrics: of the held-out rows."""

    bundle: str
    bundle_hash: str
    metrics: dict[str, float]


def conclude(
    experiment: Experiment, run_id: str, run: Storage, prepared: Prepared, checkpoint: Checkpoint, tracker: Tracker
) -> Concluded:
    """Evaluate the best weights, write the bundle, log plots and card."""
    config, weights = final_model(experiment, checkpoint)
    info: dict[str, Any] = {
        "name": experiment.name,
        "run_id": run_id,
        "family": experiment.family,
        "task": experiment.task,
        "model": config.model_dump(mode="json"),
        "serve": experiment.as_json()["serve"],
        "fingerprint": prepared.fingerprint,
        "reading": prepared.reading,
        "held_out": prepared.held_out_name,
    }
    model = open_model(info, prepared.schema, weights)
    evaluation = evaluate(model, prepared.held_out, by=experiment.report.by, training=prepared.training_rows)
    if looked_at := watched(get_family(experiment.family)):
        evaluation.details["remarks"] = looked_at.remarks(checkpoint.state["history"])
        for remark in evaluation.details["remarks"]:
            logging.getLogger(__name__).warning("at the end: %s", remark)
        for name in run.list("samples"):
            _sheet(run, tracker, name)
    info |= {"metrics": evaluation.metrics, "intervals": evaluation.intervals}
    sample = _sample(prepared, model) if isinstance(model, Predictor) else model.examples(prepared.held_out)
    digest = bundles.write(run, "bundle", info, prepared.schema, weights, sample)
    with tempfile.TemporaryDirectory() as folder:
        importances = _plots(experiment, prepared, model, evaluation, checkpoint, Path(folder))
        for plot in sorted(Path(folder).glob("*.png")):
            tracker.file(plot, f"plots/{plot.name}")
            run.write_bytes(f"plots/{plot.name}", plot.read_bytes())
    _log_reports(digest, info, prepared, evaluation, importances, tracker, run)
    return Concluded("bundle", digest, dict(evaluation.metrics))


def final_model(experiment: Experiment, checkpoint: Checkpoint) -> tuple[Any, dict[str, Tensor]]:
    """The model's settings and the best weights, as the bundle has them."""
    config, weights = experiment.model, checkpoint.group("best") or checkpoint.group("weights")
    family = get_family(experiment.family)
    return family.release(config, weights) if isinstance(family, Released) else (config, weights)


def _sheet(run: Storage, tracker: Tracker, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(run.read_bytes(f"samples/{name}"))
        tracker.file(file, f"samples/{name}")


def _sample(prepared: Prepared, predictor: Predictor) -> dict[str, Any]:
    names = [f.name for f in prepared.schema.features]
    rows = bundles.sample_rows(prepared.held_out.slice(0, SAMPLE_ROWS).to_pylist(), names)
    answers = predictor.predict(predictor.schema.columns_from_rows(rows)).columns()
    targets = prepared.held_out.slice(0, SAMPLE_ROWS).select(list(prepared.schema.targets)).to_pylist()
    return {
        "rows": rows,
        "answers": answers,
        "targets": [{k: json_value(v) for k, v in t.items()} for t in targets],
    }


def _plots(
    experiment: Experiment,
    prepared: Prepared,
    model: Predictor | Generator,
    evaluation: Evaluation,
    checkpoint: Checkpoint,
    folder: Path,
) -> list[dict[str, Any]]:
    from seekray import plots
    from seekray.importances import MEASURED, importances

    plots.curves(checkpoint.state["history"], folder / "curves.png")
    plots.result(evaluation, folder)
    if not experiment.report.importances or not isinstance(model, Predictor) or model.task not in MEASURED:
        return []
    found = importances(model, prepared.held_out)
    plots.importances(found, folder / "importances.png")
    return found


def _log_reports(
    digest: str,
    info: dict[str, Any],
    prepared: Prepared,
    evaluation: Evaluation,
    importances: list[dict[str, Any]],
    tracker: Tracker,
    run: Storage,
) -> None:
    import json

    from seekray.tracking.card import model_card

    result = evaluation.as_json()
    card = model_card(info | {"schema": prepared.schema.to_json(), "hash": digest}, evaluation=result, importances=importances)
    texts = {
        "fingerprint.json": json.dumps(prepared.fingerprint, indent=1),
        "importances.json": json.dumps(importances, indent=1),
        "evaluation.json": json.dumps(result, indent=1),
        "model_card.md": card,
    }
    for name, text in texts.items():
        tracker.text(name, text)
        run.write_bytes(name, text.encode())
