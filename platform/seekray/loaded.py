"""A bundle in memory, ready to be asked: what predictors and generators have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from seekray import bundle as bundles
from seekray.checkpoint import load_named
from seekray.data.schema import Schema
from seekray.model_ref import resolve
from seekray.models import get_family
from seekray.models.family import Modules
from seekray.settings import settings


class LoadedModel:
    """Modules in evaluation mode on a device, with what the bundle says of them.

    kept: `sample.json`. dtype_on_cpu: of the weights there; None leaves them as they were trained.
    """

    dtype_on_cpu: ClassVar[torch.dtype | None] = None

    def __init__(
        self,
        modules: Modules,
        schema: Schema,
        info: Mapping[str, Any],
        sample: Mapping[str, Any],
        *,
        name: str | None = None,
        version: str | None = None,
        bundle_hash: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        self.schema, self.info, self.task = schema, info, schema.task
        self.name: str = name or info["name"]
        self.version, self.hash = version, bundle_hash
        self.kept = sample
        self.family = get_family(info["family"])
        self.device = torch.device(device)
        self.dtype = self.dtype_on_cpu if self.device.type == "cpu" else None
        self.modules = {k: m.eval().requires_grad_(False).to(self.device, self.dtype) for k, m in modules.items()}

    @classmethod
    def load(cls, model: Path | str, *, name: str | None = None, version: str | None = None, device: str | None = None) -> Self:
        """A bundle folder or any other MODEL. Raises ModelNotFoundError, CorruptError."""
        folder = Path(model)
        if not folder.is_dir():
            found = resolve(str(model), settings())
            folder, name, version = found.bundle, name or found.name, version or found.version
        return cls.of(bundles.load(folder), name=name, version=version, device=device)

    @classmethod
    def of(
        cls, bundle: bundles.Bundle, *, name: str | None = None, version: str | None = None, device: str | None = None
    ) -> Self:
        """A bundle that has been read. Raises CorruptError where the weights do not fit."""
        modules = build(bundle.info, bundle.schema, bundle.tensors)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            modules, bundle.schema, bundle.info, bundle.sample,
            name=name, version=version, bundle_hash=bundle.hash, device=device,
        )  # fmt: skip


def build(info: Mapping[str, Any], schema: Schema, tensors: Mapping[str, Tensor]) -> Modules:
    """Modules of a bundle with its weights. Raises CorruptError where they do not fit."""
    family = get_family(info["family"])
    modules = family.build(family.Config.model_validate(info["model"]), schema)
    load_named(modules, tensors)
    return modules
