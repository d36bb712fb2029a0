"""A bundle as an MLflow model: a pyfunc in the run's artifacts, and a version of a registered model."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seekray.errors import CorruptError, ModelNotFoundError
from seekray.storage import Storage
from seekray.tracking.client import versions_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXAMPLE_ROWS = 3
MOST_TAG = 5000


def log_model(client: MlflowClient, mlflow_run: str, run: Storage, bundle: str, register: str | None) -> str | None:
    """Log a bundle as `model/` of a run and register it; what is there already is not made again.

    Raises ModelNotFoundError where the storage has no such bundle.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = _local(run, bundle, Path(temporary))
        digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        info = json.loads((folder / "bundle.json").read_bytes())
        if client.get_run(mlflow_run).data.tags.get("seekray.bundle") != digest:
            model = Path(temporary) / "model"
            save(folder, model, info)
            client.log_artifacts(mlflow_run, str(model), "model")
            client.set_tag(mlflow_run, "seekray.bundle", digest)  # last: without it the upload is done again
    return _register(client, mlflow_run, register, digest, info) if register else None


def _local(run: Storage, bundle: str, temporary: Path) -> Path:
    if not run.exists(f"{bundle}/manifest.json"):
        raise ModelNotFoundError(f"{run.uri}/{bundle} is not a bundle: it has no manifest.json")
    if (local := run.local_path) is not None:
        return local / bundle
    run.download(bundle, temporary / "bundle")
    return temporary / "bundle"


def save(bundle: Path, target: Path, info: dict[str, Any]) -> None:
    """Write a folder that is an MLflow model around a bundle, whose files are links: nothing is copied twice.

    `pip_requirements` are given, or MLflow would load the model in a process of its own to guess them.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as empty:
        stand_in = Path(empty) / "bundle"
        stand_in.mkdir()
        mlflow.pyfunc.save_model(
            str(target),
            loader_module="seekray.tracking.pyfunc",
            data_path=str(stand_in),
            pip_requirements=[f"seekray=={installed('seekray')}"],
            signature=signature(info),
            input_example=_example(bundle, info),
            metadata=_metadata(info),
        )
    inside = target / "data" / "bundle"
    names = json.loads((bundle / "manifest.json").read_bytes())["files"]
    for name in (*names, "manifest.json"):
        if not (bundle / name).is_file():
            raise CorruptError(f"bundle {bundle}: {name} is missing")
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink((bundle / name).resolve(), inside / name)
    written = Model.load(str(target))
    written.model_size_bytes = sum((inside / name).stat().st_size for name in names)
    written.save(str(target / "MLmodel"))


def _metadata(info: dict[str, Any]) -> dict[str, Any]:
    """What the signature's `any` does not say: the kind of each column."""
    kinds = {f["name"]: f["kind"] for f in info["schema"]["features"][:500]}
    return {"seekray": {"name": info["name"], "family": info["family"], "task": info["task"], "kinds": kinds}}


def signature(info: dict[str, Any]) -> Any:
    """Named, optional columns of type `any`.

    MLflow's `double` refuses int64 columns, `long` a column of integers with a missing one, and all of
    them a column of nothing but missing values (mlflow.models.utils._enforce_mlflow_datatype), while
    a missing value is part of every model's contract here. So MLflow checks the names, and the
    feature schema, the same code as everywhere, the values. (`text/csv` bodies of `mlflow models serve`
    need column types and are the price.)
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types.schema import AnyType, ColSpec

    columns = [ColSpec(AnyType(), feature["name"], required=False) for feature in info["schema"]["features"]]
    if not columns or not info["schema"]["targets"]:  # a generator is asked with its family's request
        return None
    outputs = [ColSpec(_answer_type(info), "prediction")]
    if info["task"] != "regression":
        outputs += [ColSpec("double", f"probability_{c}") for c in info["schema"].get("classes") or []]
    return ModelSignature(Schema(columns), Schema(outputs))


def _answer_type(info: dict[str, Any]) -> Any:
    from mlflow.types.schema import AnyType

    if info["task"] == "regression":
        return "double"
    classes = info["schema"].get("classes") or []
    if info["task"] != "classification" or len({type(c) for c in classes}) != 1:
        return AnyType()
    return {bool: "boolean", int: "long", str: "string"}.get(type(classes[0])) or AnyType()


def _example(bundle: Path, info: dict[str, Any]) -> Any:
    import pandas as pd

    sample = bundle / "sample.json"
    rows = json.loads(sample.read_bytes()).get("rows", [])[:EXAMPLE_ROWS] if sample.is_file() else []
    names = [feature["name"] for feature in info["schema"]["features"]]
    return (
        pd.DataFrame({name: pd.Series([r.get(name) for r in rows], dtype=object).infer_objects() for name in names})
        if rows
        else None
    )


def _register(client: MlflowClient, mlflow_run: str, name: str, digest: str, info: dict[str, Any]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = _same(client, name, mlflow_run, digest)
    if found:
        return found[0]
    run = client.get_run(mlflow_run)
    tags = {
        "seekray.bundle": digest,
        "seekray.run_id": run.data.tags.get("seekray.run_id", info.get("run_id", "")),
        "seekray.metrics": _json(info.get("metrics", {})),
        "seekray.fingerprint": _json(info.get("fingerprint", {})),
        "seekray.trained": info.get("created", ""),
        "seekray.created_by": run.data.tags.get("mlflow.user") or getpass.getuser(),
        "seekray.git_commit": run.data.tags.get("seekray.git_commit", ""),
        "seekray.git_dirty": run.data.tags.get("seekray.git_dirty", ""),
    }
    made = client.create_model_version(
        name, source=f"{run.info.artifact_uri}/model", run_id=mlflow_run, tags={k: v for k, v in tags.items() if v}
    )
    # A sender on another machine may have done the same in this moment: the first stays.
    first = (_same(client, name, mlflow_run, digest) or [str(made.version)])[0]
    if first != str(made.version):
        client.delete_model_version(name, str(made.version))
    return first


def _same(client: MlflowClient, name: str, mlflow_run: str, digest: str) -> list[str]:
    same = [v for v in versions_of(client, name) if v.run_id == mlflow_run and v.tags.get("seekray.bundle") == digest]
    return [str(v.version) for v in sorted(same, key=lambda v: int(v.version))]


def _json(value: Any) -> str:
    """JSON that fits in a tag; what does not fit is in bundle.json."""
    text = json.dumps(value)
    return text if len(text) <= MOST_TAG else "{}"
