"""Environment and secrets, read once, frozen."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the environment says; everything else is in the experiment file.

    home: the folder of the embedded defaults (`SEEKRAY_HOME`, default `.seekray` of the working folder).
    storage: URI under which runs keep checkpoints, bundles and spools (`SEEKRAY_STORAGE`).
    tracking_uri: MLflow's tracking server (`MLFLOW_TRACKING_URI`), default SQLite in `home`.
    ray_address: a running cluster to attach to (`RAY_ADDRESS`).
    """

    home: Path
    storage: str
    tracking_uri: str
    tracking_is_embedded: bool
    ray_address: str | None

    @property
    def artifacts_uri(self) -> str:
        """Where the embedded MLflow keeps artifacts."""
        return (self.home / "artifacts").as_uri()


def read_settings(environ: dict[str, str] | os._Environ[str] = os.environ) -> Settings:
    """Settings from an environment (a mapping, so that tests can give their own)."""
    home = Path(environ.get("SEEKRAY_HOME") or ".seekray").expanduser().resolve()
    given = environ.get("MLFLOW_TRACKING_URI")
    return Settings(
        home=home,
        storage=environ.get("SEEKRAY_STORAGE") or (home / "storage").as_uri(),
        tracking_uri=given or f"sqlite:///{home / 'mlflow.db'}",
        tracking_is_embedded=not given,
        ray_address=environ.get("RAY_ADDRESS") or None,
    )


@cache
def settings() -> Settings:
    """This process's settings."""
    return read_settings()
