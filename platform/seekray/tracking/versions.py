"""A bundle as an MLflow model: a pyfunc in the run's artifacts, and a version of a registered model."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.storage import Storage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TYPES = {
    "numeric": "double", "boolean": "boolean", "categorical": "string", "timestamp": "string", "text": "string",
    "image": "string",
}  # fmt: skip


def log_model(client: MlflowClient, mlflow_run: str, run: Storage, bundle: str, register: str | None) -> str | None:
    """Log a bundle as `model/` of a run and register it; a bundle that is there already is not logged again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        run.download(bundle, folder)
        digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        info = json.loads((folder / "bundle.json").read_text())
        if client.get_run(mlflow_run).data.tags.get("seekray.bundle") != digest:
            _save(folder, Path(temporary) / "model", info)
            client.log_artifacts(mlflow_run, str(Path(temporary) / "model"), "model")
            client.set_tag(mlflow_run, "seekray.bundle", digest)
    return _register(client, mlflow_run, register, digest, info) if register else None


def _save(bundle: Path, target: Path, info: dict[str, Any]) -> None:
    import mlflow.pyfunc

    sample = json.loads((bundle / "sample.json").read_text())
    mlflow.pyfunc.save_model(
        str(target),
        loader_module="seekray.tracking.pyfunc",
        data_path=str(bundle),
        pip_requirements=[f"seekray=={installed('seekray')}"],
        signature=signature(info),
        input_example=_example(sample, info),
        metadata={"seekray.family": info["family"], "seekray.task": info["task"]},
    )


def signature(info: dict[str, Any]) -> Any:
    """Every feature optional: a missing value is part of the model's contract."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types.schema import AnyType, ColSpec

    columns = []
    for feature in info["schema"]["features"]:
        # A categorical may come as text, number or boolean; a vector as a list or an array.
        kind: Any = AnyType() if feature["kind"] in ("categorical", "vector", "boolean") else TYPES[feature["kind"]]
        columns.append(ColSpec(kind, feature["name"], required=False))
    answer = AnyType() if info["task"] == "multilabel" else ("double" if info["task"] == "regression" else _class_type(info))
    outputs = [ColSpec(answer, "prediction")]
    if info["task"] != "regression":
        outputs += [ColSpec("double", f"probability_{c}") for c in info["schema"]["classes"] or []]
    return ModelSignature(Schema(columns), Schema(outputs)) if columns else None


def _class_type(info: dict[str, Any]) -> str:
    first = (info["schema"]["classes"] or [""])[0]
    return "boolean" if isinstance(first, bool) else "long" if isinstance(first, int) else "string"


def _example(sample: dict[str, Any], info: dict[str, Any]) -> Any:
    import pandas as pd

    rows = sample["rows"][:3]
    return pd.DataFrame(rows, columns=[f["name"] for f in info["schema"]["features"]]) if rows else None


def _register(client: MlflowClient, mlflow_run: str, name: str, digest: str, info: dict[str, Any]) -> str:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # there already
        client.create_registered_model(name)
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.tags.get("seekray.bundle") == digest and found.tags.get("seekray.run_id") == info["run_id"]:
            return str(found.version)
    run = client.get_run(mlflow_run)
    tags = {
        "seekray.bundle": digest,
        "seekray.run_id": info["run_id"],
        "seekray.metrics": json.dumps(info["metrics"])[:5000],
        "seekray.fingerprint": json.dumps(info["fingerprint"]),
        "seekray.created_by": run.data.tags.get("mlflow.user", getpass.getuser()),
        "seekray.git_commit": run.data.tags.get("seekray.git_commit", ""),
        "seekray.git_dirty": run.data.tags.get("seekray.git_dirty", ""),
    }
    made = client.create_model_version(
        name, source=f"{run.info.artifact_uri}/model", run_id=mlflow_run, tags={k: v for k, v in tags.items() if v}
    )
    return str(made.version)
