"""Bundle → what a generative family makes: rows, images, texts. It knows no HTTP and no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from seekray import bundle as bundles
from seekray.data.schema import Schema
from seekray.data.values import json_value
from seekray.errors import UserError
from seekray.loaded import LoadedModel, build
from seekray.models.family import Generative, Textual, textual
from seekray.predictor import Predictor

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.models.text_engine import Job, Piece, TextEngine


class Generator(LoadedModel):
    """A loaded bundle whose family has `generate`."""

    family: Generative

    @property
    def sample(self) -> Mapping[str, Any]:
        """Requests with the answers given when the bundle was saved."""
        return self.kept

    def generate(self, prompts: Sequence[str | Sequence[int]] | str | None = None, **request: Any) -> pa.Table:
        """What is asked for; the fields are those of the family's `Request`. Raises UserError for another field or value.

        prompts: of a model of texts, one or several, texts or token ids.
        """
        if prompts is not None:
            request["prompts"] = [prompts] if isinstance(prompts, str) else prompts
        with torch.inference_mode():
            return self.family.generate(self.modules, self.schema, self.request(request))

    def pieces(self, **request: Any) -> Iterator[Piece]:
        """Every token of what is asked for, as it is made. Raises UserError, also for a model of something else than texts."""
        family = self._textual()
        return family.stream(self.modules, self.schema, self.request(request))

    def stream(self, prompt: str, **request: Any) -> Iterator[str]:
        """The text that follows a prompt, in parts, as it is made: together what `generate` gives. Raises UserError."""
        return (piece.text for piece in self.pieces(**request, prompts=[prompt], n=1) if piece.text)

    def engine(self, rows: int, cached_tokens: int | None = None) -> TextEngine:
        """What makes the texts of many requests together, up to `rows` at a time. Raises UserError.

        cached_tokens: whose keys and values are kept at once; None: of all rows at full length.
        """
        return self._textual().engine(self.modules, self.schema, rows, cached_tokens)

    def jobs(self, **request: Any) -> list[Job]:
        """The texts of a request, for an engine. Raises UserError."""
        return self._textual().jobs(self.schema, self.request(request))

    def embed(self, texts: Sequence[str | Sequence[int]]) -> list[tuple[int, torch.Tensor]]:
        """Tokens and a vector (C,) of length 1 of each text, or of each list of ids. Raises UserError."""
        with torch.inference_mode():
            return self._textual().embed(self.modules, self.schema, texts)

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Of the token that follows each of T ids, (T, V). Raises UserError."""
        tokens = torch.tensor([list(token_ids)], device=self.device)
        with torch.inference_mode():
            return self._textual().logits(self.modules, tokens)[0].cpu()

    def _textual(self) -> Textual:
        family = textual(self.family)
        if family is None:
            raise UserError(f"{self.name} does not make texts (family {self.info['family']}, task {self.task})")
        return family

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of what may be asked for."""
        return tuple(self.family.Request.model_fields)

    def request(self, given: Mapping[str, Any]) -> Any:
        """A checked request. Raises UserError."""
        try:
            return self.family.Request.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "request"
            raise UserError(f"{name}: {first['msg']} (given: {first['input']!r})", field=name) from error

    def examples(self, held_out: pa.Table) -> dict[str, Any]:
        """`sample.json`: a few requests with their answers."""
        requests = self.family.examples(self.schema, held_out)
        return {"requests": requests, "answers": [json_rows(self.generate(**r)) for r in requests]}


def load_model(folder: Path | str, **how: Any) -> Predictor | Generator:
    """A bundle as what it is: a predictor where something is predicted, else a generator. Arguments as those of `of`."""
    bundle = bundles.load(Path(folder))
    return (Predictor if bundle.schema.targets else Generator).of(bundle, **how)


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of a generated table as JSON values."""
    return [{name: json_value(value) for name, value in row.items()} for row in table.to_pylist()]


def open_model(info: Mapping[str, Any], schema: Schema, weights: Mapping[str, torch.Tensor]) -> Predictor | Generator:
    """A model in memory, not from a bundle yet: a predictor where something is predicted, else a generator."""
    kind = Predictor if schema.targets else Generator
    return kind(build(info, schema, weights), schema, info, {})
