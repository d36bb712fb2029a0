"""The gate before an alias moves: verified, and not worse than the version that holds the alias."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seekray.bundle import load as load_bundle
from seekray.config import Experiment
from seekray.data.options import Data
from seekray.errors import GateError, SeekrayError, UserError
from seekray.evaluation import evaluate, read
from seekray.generator import load_model
from seekray.settings import Settings
from seekray.storage import Storage
from seekray.tracking import registry
from seekray.tracking.artifacts import version_bundle

METRICS = {
    "classification": "accuracy", "regression": "r2", "multilabel": "macro_f1", "labelling": "accuracy", "forecast": "mae",
    "pretrain": "loss", "finetune": "loss", "classify": "accuracy",
    "rows": "detector_auc", "images": "frechet_distance", "texts": "copies",
}  # fmt: skip
LOWER_IS_BETTER = ("loss", "mae", "rmse", "error", "perplexity", "bits_per_byte", "distance", "copies", "detector_auc")


def promote(
    name: str,
    version: str,
    alias: str,
    where: Settings,
    *,
    tolerance: float = 0.0,
    metric: str | None = None,
    data: str | None = None,
    force: str | None = None,
) -> dict[str, Any]:
    """Move `name@alias` to a version.

    data: rows to compare on; without it, the held-out rows that both were measured on (told by the
    fingerprint), else those of the candidate's run. force: a reason that overrides the comparison
    and is recorded. Raises GateError with both numbers, UserError, ModelNotFoundError.
    """
    if force is not None and not force.strip():
        raise UserError('--force wants a reason, for example --force "the old one is wrong for 2026"')
    found = registry.show(name, where)
    candidate = registry.version(name, version, where)
    holder = found["aliases"].get(alias)
    if str(holder) == version:
        return _answer(name, version, alias, None, f"{name}@{alias} is version {version} already")
    verify_once(name, candidate, where)
    comparison = None
    if holder is not None:
        champion = registry.version(name, str(holder), where)
        comparison = compare(candidate, champion, where, metric=metric, data=data)
        worse = comparison["worse_by"] > tolerance
        if worse and force is None:
            raise GateError(
                f"{name}/{version} is worse than {name}/{holder}, which holds {alias}: {comparison['metric']} "
                f"{comparison['candidate']:.6g} against {comparison['champion']:.6g} on {comparison['data']} "
                f'(tolerance {tolerance:g}). Train a better one, give --tolerance, or --force "reason"'
            )
    action = "force" if force else "promote"
    registry.set_alias(name, alias, version, action, force, where, gate=comparison, held_by=holder)
    before = f" (before: {holder})" if holder is not None else ""
    return _answer(name, version, alias, comparison, f"{name}@{alias} is version {version}{before}")


def _answer(name: str, version: str, alias: str, comparison: Any, message: str) -> dict[str, Any]:
    return {"name": name, "version": version, "alias": alias, "comparison": comparison, "message": message}


def verify_once(name: str, entry: dict[str, Any], where: Settings) -> None:
    """Run the doors that need no server on the bundle's own sample, once a bundle. Raises GateError where they differ."""
    before = entry["verified"] or {}
    if before.get("passed") and before.get("bundle") == entry["bundle"]:
        return
    from seekray.verify import generator_doors, local_doors, verify

    folder = version_bundle(entry, where)
    sample = load_bundle(folder).sample
    made = "requests" in sample
    found = verify(generator_doors(folder) if made else local_doors(folder), sample["requests" if made else "rows"])
    if not found["passed"]:
        raise GateError(f"{name}/{entry['version']} answers differently through its doors: {first_mismatch(found)}")
    result = {"bundle": entry["bundle"], "passed": True, "doors": [d["door"] for d in found["doors"]]}
    registry.set_version_tag(name, entry["version"], "verified", result, where)


def first_mismatch(found: dict[str, Any]) -> str:
    """The first door that differs, in words."""
    return next(f"{d['door']}: {d['mismatch']}" for d in found["doors"] if not d["passed"])


def compare(
    candidate: dict[str, Any], champion: dict[str, Any], where: Settings, *, metric: str | None, data: str | None
) -> dict[str, Any]:
    """`{metric, candidate, champion, worse_by, data}`, both on the same held-out rows."""
    folders = [version_bundle(entry, where) for entry in (candidate, champion)]
    task = load_bundle(folders[0]).info["task"]
    metric = metric or METRICS[task]
    if data is None and candidate["fingerprint"] == champion["fingerprint"]:
        values = [entry["metrics"].get(metric) for entry in (candidate, champion)]
        what = "the held-out rows of both runs"
    else:
        table, what = _rows(folders[0], candidate, data, where)
        values = [evaluate(load_model(f), table, resamples=0).metrics.get(metric) for f in folders]
    if values[0] is None or values[1] is None:
        raise UserError(f"metric {metric!r} is not known for both; there are: {', '.join(candidate['metrics'])}")
    worse = values[0] - values[1] if metric.endswith(LOWER_IS_BETTER) else values[1] - values[0]
    return {"metric": metric, "candidate": values[0], "champion": values[1], "worse_by": worse, "data": what}


def _rows(folder: Path, candidate: dict[str, Any], data: str | None, where: Settings) -> tuple[Any, str]:
    if data is not None:
        reading = json.loads((folder / "bundle.json").read_bytes()).get("reading")
        return read(load_model(folder), Data(source=data).like_training(reading)), data
    try:
        stored = Storage(where.storage).child("runs").read_json(f"{candidate['run_id']}/experiment.json")
        prepared = Experiment.model_validate(stored).prepare()
    except (FileNotFoundError, SeekrayError) as error:
        raise UserError(
            f"the two versions were measured on different data, and the candidate's is not here ({error}); "
            "give rows to compare on with --data"
        ) from error
    return prepared.held_out, f"the held-out rows of run {candidate['run_id']}"
