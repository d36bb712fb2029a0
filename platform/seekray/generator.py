"""Bundle → what a generative family makes: rows, images, texts. It knows no HTTP and no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import ValidationError

from seekray import bundle as bundles
from seekray.data.schema import Schema
from seekray.data.values import json_value
from seekray.errors import UserError
from seekray.model_ref import resolve
from seekray.models import get_family
from seekray.models.family import Generative, Modules, Textual
from seekray.predictor import Predictor, build
from seekray.settings import settings

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.models.texts import Piece


class Generator:
    """A loaded bundle whose family has `generate`."""

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
        self.sample = sample
        self._family = cast("Generative", get_family(info["family"]))
        self.device = torch.device(device)
        self.modules = {k: m.eval().requires_grad_(False).to(self.device) for k, m in modules.items()}

    @classmethod
    def load(
        cls, model: Path | str, *, name: str | None = None, version: str | None = None, device: str | None = None
    ) -> Generator:
        """A bundle folder or any other MODEL. Raises ModelNotFoundError, CorruptError."""
        folder = Path(model)
        if not folder.is_dir():
            found = resolve(str(model), settings())
            folder, name, version = found.bundle, name or found.name, version or found.version
        bundle = bundles.load(folder)
        modules = build(bundle.info, bundle.schema, bundle.tensors)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            modules, bundle.schema, bundle.info, bundle.sample,
            name=name, version=version, bundle_hash=bundle.hash, device=device,
        )  # fmt: skip

    def generate(self, prompts: Sequence[str | Sequence[int]] | str | None = None, **request: Any) -> pa.Table:
        """What is asked for; the fields are those of the family's `Request`. Raises UserError for another field or value.

        prompts: of a model of texts, one or several, texts or token ids.
        """
        if prompts is not None:
            request["prompts"] = [prompts] if isinstance(prompts, str) else prompts
        with torch.inference_mode():
            return self._family.generate(self.modules, self.schema, self.request(request))

    def pieces(self, **request: Any) -> Iterator[Piece]:
        """Every token of what is asked for, as it is made. Raises UserError, also for a model of something else than texts."""
        textual = self._textual()
        return textual.stream(self.modules, self.schema, self.request(request))

    def stream(self, prompt: str, **request: Any) -> Iterator[str]:
        """The text that follows a prompt, in parts, as it is made: together what `generate` gives. Raises UserError."""
        return (piece.text for piece in self.pieces(**request, prompts=[prompt], n=1) if piece.text)

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Of the token that follows each of T ids, (T, V). Raises UserError."""
        tokens = torch.tensor([list(token_ids)], device=self.device)
        with torch.inference_mode():
            return self._textual().logits(self.modules, tokens)[0].cpu()

    def _textual(self) -> Textual:
        if not hasattr(self._family, "stream"):
            raise UserError(f"{self.name} does not make texts (family {self.info['family']}, task {self.task})")
        return cast("Textual", self._family)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of what may be asked for."""
        return tuple(self._family.Request.model_fields)

    def request(self, given: Mapping[str, Any]) -> Any:
        """A checked request. Raises UserError."""
        try:
            return self._family.Request.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "request"
            raise UserError(f"{name}: {first['msg']} (given: {first['input']!r})", field=name) from error

    def examples(self, held_out: pa.Table) -> dict[str, Any]:
        """`sample.json`: a few requests with their answers."""
        requests = self._family.examples(self.schema, held_out)
        return {"requests": requests, "answers": [json_rows(self.generate(**r)) for r in requests]}


def load_model(folder: Path | str, **how: Any) -> Predictor | Generator:
    """A bundle as what it is: a predictor where something is predicted, else a generator. Arguments as those of `load`."""
    bundle = bundles.load(Path(folder))
    return (Predictor if bundle.schema.targets else Generator).load(folder, **how)


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of a generated table as JSON values."""
    return [{name: json_value(value) for name, value in row.items()} for row in table.to_pylist()]


def open_model(info: Mapping[str, Any], schema: Schema, weights: Mapping[str, torch.Tensor]) -> Predictor | Generator:
    """A model in memory, not from a bundle yet: a predictor where something is predicted, else a generator."""
    kind = Predictor if schema.targets else Generator
    return kind(build(info, schema, weights), schema, info, {})
