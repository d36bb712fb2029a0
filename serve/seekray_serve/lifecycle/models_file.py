"""`models.yaml`: what shall be served, all of it. Read, checked, and each model found in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from seekray.config import Name, Serve, Strict
from seekray.errors import SeekrayError
from seekray.settings import Settings
from seekray.yaml_file import checked, read
from seekray_serve.following import follow_arguments
from seekray_serve.lifecycle.ready import ModelToServe


class Endpoint(Serve):
    """A model, and what its endpoint has otherwise than the model's own `serve:` section says."""

    model: str | None = Field(None, description="digits@champion is followed, digits/3 is not; without it, the entry's name")
    replicas: int | None = Field(None, ge=1, description="replicas that are always there, instead of autoscaling")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Endpoint:
        if self.replicas is not None and "autoscaling" in self.model_fields_set:
            raise ValueError("replicas and autoscaling exclude each other; keep one")
        return self


def _short(value: Any) -> Any:
    """`digits: digits@champion`, or nothing at all, for an entry with nothing but a model."""
    return {"model": value} if value is None or isinstance(value, str) else value


class ModelsFile(Strict):
    """All that is served at one address."""

    host: str | None = Field(None, description="address to bind, of an instance that is started for it; default 127.0.0.1")
    port: int | None = Field(None, ge=1, le=65535, description="port; default 8000")
    models: dict[Name, Annotated[Endpoint, BeforeValidator(_short)]] = Field(description="each by the name that it answers to")


@dataclass(frozen=True)
class Wanted:
    """A file's models as they were found, and why others were not."""

    host: str | None
    port: int | None
    models: list[ModelToServe]
    missing: dict[str, str] = field(default_factory=dict)


def load(file: Path | str) -> ModelsFile:
    """Read and check a file. Raises ConfigError."""
    raw, origin = read(file, "docs/serving.md shows one", "models: {digits: digits@champion}")
    return checked(ModelsFile, raw, origin, str(file))


def find(given: ModelsFile, where: Settings) -> Wanted:
    """Look each model up; one that cannot be found is told and keeps no other from being served."""
    models, missing = [], {}
    for name, endpoint in given.models.items():
        try:
            own = endpoint.model_dump(exclude_unset=True, exclude={"model"})
            models.append(to_serve(endpoint.model or name, where, name=name, own=own))
        except SeekrayError as error:
            missing[name] = error.message
    return Wanted(given.host, given.port, models, missing)


def to_serve(reference: str, where: Settings, *, name: str | None = None, own: Mapping[str, Any] | None = None) -> ModelToServe:
    """A MODEL of the command line. name: another that it answers to; own: options before those of its bundle.

    Raises ModelNotFoundError, CorruptError, TrackingError.
    """
    from seekray.model_ref import resolve

    found = resolve(reference, where)
    given = dict(own or {})
    options = dict(json.loads((found.bundle / "bundle.json").read_bytes()).get("serve", {}))
    if (replicas := given.pop("replicas", None)) is not None:
        options.pop("autoscaling", None)
        given["num_replicas"] = replicas
    if "autoscaling" in given:
        given["autoscaling"] = {**options.get("autoscaling", {}), **given["autoscaling"]}
    follow = follow_arguments(found.name, found.alias, where) if found.alias else None
    return ModelToServe(name or found.name, found.version, found.bundle, options | given, follow)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a models file, for editors."""
    schema = ModelsFile.model_json_schema()
    entries = schema["properties"]["models"]["patternProperties"]
    for name, full in entries.items():
        entries[name] = {"anyOf": [full, {"type": "string"}, {"type": "null"}]}
    schema["properties"]["models"]["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "seekray models"}
