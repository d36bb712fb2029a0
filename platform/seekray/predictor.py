"""Bundle → predictions. Batch, evaluation, pyfunc and endpoints all go through it; it knows no HTTP and no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seekray import bundle as bundles
from seekray.checkpoint import load_named
from seekray.data.schema import Prediction, Schema
from seekray.data.sequences import joined
from seekray.models import get_family
from seekray.models.family import Modules

CHUNK = 8192


class Predictor:
    """A loaded bundle. `predict` is `prepare`, `forward`, `decode` in a row; endpoints batch between them."""

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
        self.sample: list[dict[str, Any]] = sample.get("rows", [])
        self.sample_answers: dict[str, list[Any]] = sample.get("answers", {})
        self.family = get_family(info["family"])
        self._device = torch.device(device)
        # On a CPU in float64: float32 answers differ by more than 1e-6 with the size of the batch.
        self._dtype = torch.float64 if self._device.type == "cpu" else torch.float32
        self._modules = {k: m.eval().requires_grad_(False).to(self._device, self._dtype) for k, m in modules.items()}

    @classmethod
    def load(
        cls, folder: Path | str, *, name: str | None = None, version: str | None = None, device: str | None = None
    ) -> Predictor:
        """Read a bundle folder. Raises ModelNotFoundError, CorruptError."""
        bundle = bundles.load(Path(folder))
        modules = build(bundle.info, bundle.schema, bundle.tensors)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            modules, bundle.schema, bundle.info, bundle.sample,
            name=name, version=version, bundle_hash=bundle.hash, device=device,
        )  # fmt: skip

    def prepare(self, columns: Any) -> dict[str, Tensor]:
        """Feature tensors of a table or of a mapping of columns. Raises DataError."""
        return self.schema.transform(columns)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs (B, …, C): one forward pass over all rows given."""
        with torch.inference_mode():
            moved = {k: self._typed(v) for k, v in inputs.items()}
            return self.family.predict(self._modules, moved).cpu()

    def forward_on(self, inputs: Mapping[str, Tensor], state: Any) -> tuple[Tensor, Any]:
        """Outputs, and the state to go on from, of a family that keeps one; see `stream`."""
        with torch.inference_mode():
            moved = {k: self._typed(v) for k, v in inputs.items()}
            outputs, after = self.family.forward_on(self._modules, moved, state)  # type: ignore[attr-defined]
            return outputs.cpu(), after

    def _typed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)

    def decode(self, outputs: Tensor) -> Prediction:
        """Answers from outputs (B, C)."""
        return self.schema.decode(outputs)

    def predict(self, columns: Any) -> Prediction:
        """Answers for a table or a mapping of columns. Raises DataError."""
        inputs = self.prepare(columns)
        rows = len(next(iter(inputs.values())))
        parts = [self.forward({k: v[i : i + CHUNK] for k, v in inputs.items()}) for i in range(0, rows, CHUNK)]
        return self.decode(joined(parts, torch.nan) if parts else torch.zeros(0, self.schema.num_outputs))


def build(info: Mapping[str, Any], schema: Schema, tensors: Mapping[str, Tensor]) -> Modules:
    """Modules of a bundle with its weights. Raises CorruptError where they do not fit."""
    family = get_family(info["family"])
    modules = family.build(family.Config.model_validate(info["model"]), schema)
    load_named(modules, tensors)
    return modules
