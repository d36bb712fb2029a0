"""Bundle → predictions. Batch, evaluation, pyfunc and endpoints all go through it; it knows no HTTP and no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seekray.data.schema import Prediction
from seekray.data.sequences.ragged import joined
from seekray.loaded import LoadedModel

CHUNK = 8192


class Predictor(LoadedModel):
    """A loaded bundle. `predict` is `prepare`, `forward`, `decode` in a row; endpoints batch between them."""

    # float32 answers differ by more than 1e-6 with the size of the batch.
    dtype_on_cpu = torch.float64

    def __init__(self, *model: Any, **named: Any) -> None:
        super().__init__(*model, **named)
        self.sample: list[dict[str, Any]] = self.kept.get("rows", [])
        self.sample_answers: dict[str, list[Any]] = self.kept.get("answers", {})

    def prepare(self, columns: Any) -> dict[str, Tensor]:
        """Feature tensors of a table or of a mapping of columns. Raises DataError."""
        return self.schema.transform(columns)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs (B, …, C): one forward pass over all rows given."""
        with torch.inference_mode():
            moved = {k: self._typed(v) for k, v in inputs.items()}
            return self.family.predict(self.modules, moved).cpu()

    def forward_on(self, inputs: Mapping[str, Tensor], state: Any) -> tuple[Tensor, Any]:
        """Outputs, and the state to go on from, of a family that keeps one; see `stream`."""
        with torch.inference_mode():
            moved = {k: self._typed(v) for k, v in inputs.items()}
            outputs, after = self.family.forward_on(self.modules, moved, state)  # type: ignore[attr-defined]
            return outputs.cpu(), after

    def _typed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, (self.dtype or torch.float32) if tensor.is_floating_point() else tensor.dtype)

    def decode(self, outputs: Tensor) -> Prediction:
        """Answers from outputs (B, C)."""
        return self.schema.decode(outputs)

    def predict(self, columns: Any) -> Prediction:
        """Answers for a table or a mapping of columns. Raises DataError."""
        inputs = self.prepare(columns)
        rows = len(next(iter(inputs.values())))
        parts = [self.forward({k: v[i : i + CHUNK] for k, v in inputs.items()}) for i in range(0, rows, CHUNK)]
        return self.decode(joined(parts, torch.nan) if parts else torch.zeros(0, self.schema.num_outputs))
