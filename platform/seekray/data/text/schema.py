"""What a text model knows of its data: the tokenizer, the columns, how a prompt is put, the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from seekray.data.columns import as_columns, missing_column
from seekray.data.parse import Array, Rejects, as_list
from seekray.data.schema import Prediction
from seekray.data.tables.features import Feature, FeatureSchema
from seekray.data.text.tokenizer import Tokenizer
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
PLAIN = ("task", "vocab_size", "context_length", "response", "format", "rows", "first_token")


@dataclass(frozen=True)
class TextSchema:
    """Everything about the texts that a model of them was trained with.

    task: pretrain or finetune, which generate, or classification. vocab_size: of the model, at least the tokenizer's.
    context_length: tokens that are read; of a longer text to classify, the first. format, chat_template: what a
    prompt becomes; response: the column of answers. answers: see FeatureSchema, which owns the classes. first_token: what
    texts begin with, null being the end token (which is between the documents of training) and "" nothing.
    """

    tokenizer: Tokenizer
    task: str
    vocab_size: int
    context_length: int
    features: tuple[Feature, ...]
    key: tuple[str, ...] = ()
    response: str | None = None
    format: str = "{prompt}"
    chat_template: str | None = None
    answers: FeatureSchema | None = None
    rows: int = 0
    first_token: str | None = None

    @property
    def first_id(self) -> int | None:
        """Of the token that texts begin with."""
        return self.tokenizer.end if self.first_token is None else self.tokenizer.id_of(self.first_token)

    @property
    def column(self) -> str:
        """Of the texts, or of the prompts."""
        return self.features[0].name

    @property
    def targets(self) -> tuple[str, ...]:
        """The column of labels; () for a model that generates."""
        return self.answers.targets if self.answers else ()

    @property
    def classes(self) -> list[Any] | None:
        """The labels."""
        return self.answers.classes if self.answers else None

    @property
    def num_outputs(self) -> int:
        """Classes, or entries of the vocabulary."""
        return len(self.classes) if self.classes else self.vocab_size

    @property
    def dense_size(self) -> int:
        """Numbers of a row: its tokens."""
        return self.context_length

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """There are no categorical columns."""
        return ()

    @property
    def answer_type(self) -> pa.DataType:
        """A label, or a text."""
        return self.answers.answer_type if self.answers else pa.string()

    def prompt(self, text: str) -> str:
        """What the model reads for a prompt."""
        if self.chat_template is None:
            return self.format.replace("{prompt}", text)
        return self.chat([{"role": "user", "content": text}])

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages in the chat template, up to where the answer begins. Raises DataError."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.chat_template is None:
            raise DataError("the model has no chat template")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            template = environment.from_string(self.chat_template)
            return template.render(
                messages=messages, add_generation_prompt=True, bos_token="", eos_token=self.tokenizer.end_token
            )
        except TemplateError as error:
            raise DataError(f"the chat template cannot format these messages: {error}") from error

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts, after the token that texts begin with; never none."""
        return self._ids([self.prompt(p) for p in prompts], special=self.chat_template is not None)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as they are, after the token that texts begin with; never none."""
        return self._ids(texts, special=False)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of messages in the chat template. Raises DataError."""
        return self._ids([self.chat(messages)], special=True)[0]

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        first = [] if self.first_id is None else [self.first_id]
        encoded = self.tokenizer.encode(texts, special=special)
        return [[*first, *ids] or [self.tokenizer.end] for ids in encoded]

    def texts(self, columns: Any) -> list[str]:
        """The column of texts, null being an empty one. Raises DataError."""
        given = as_columns(columns)
        if self.column not in given:
            raise missing_column(self.column, list(given))
        values = as_list(given[self.column])
        for row, value in enumerate(values):
            if value is not None and not isinstance(value, str):
                raise DataError(f"column {self.column!r}, row {row}: expected a text, got {value!r}", field=self.column)
        return [value or "" for value in values]

    def transform(self, columns: Any) -> dict[str, Tensor]:
        """{"tokens": int64 (B, T), "lengths": int64 (B,)}; what is past a length is padding. Raises DataError."""
        from torch import from_numpy

        texts = self.texts(columns)
        rows = self.tokenizer.encode(texts) if self.answers else self.encode_prompts(texts)
        rows = [r[: self.context_length] if self.answers else r[-self.context_length :] for r in rows]
        tokens, lengths = padded([np.asarray(r or [self.tokenizer.end]) for r in rows], self.tokenizer.end)
        return {"tokens": from_numpy(tokens), "lengths": from_numpy(lengths)}

    def encode_targets(self, columns: Any, rejects: Rejects | None = None) -> Array:
        """int64 (B,) class numbers, -1 where a label is missing or not known."""
        assert self.answers is not None
        found: Array = self.answers.encode_targets(columns, rejects)
        return found

    def decode(self, outputs: Tensor) -> Prediction:
        """Labels with probabilities; for a model that generates, the most likely next token."""
        if self.answers is not None:
            return self.answers.decode(outputs)
        return Prediction([self.tokenizer.decode([i]) for i in outputs.argmax(1).tolist()], None)

    def columns_from_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns of `{"rows": [...]}`; a name not in a row is a missing value. Raises DataError for an unknown name."""
        known = {self.column, *self.key}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise DataError(f"row {number} is {type(row).__name__}, expected an object of columns", field="rows")
            if not row.keys() <= known:
                name = next(str(n) for n in row if n not in known)
                raise DataError(
                    f"row {number} has {name!r}, which the model does not know; it reads {self.column!r}", field=name
                )
        return {self.column: [row.get(self.column) for row in rows]}

    def only(self, *features: Feature) -> TextSchema:
        """The schema of these features; there is one."""
        return replace(self, features=features)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokenizer and the chat template."""
        out = {name: getattr(self, name) for name in PLAIN}
        features = [{"name": f.name, "kind": f.kind, "example": f.example} for f in self.features]
        answers = self.answers.to_json() if self.answers else None
        return out | {
            "format_version": FORMAT, "key": list(self.key), "features": features, "answers": answers,
            "end_token": self.tokenizer.end_token, "targets": list(self.targets), "classes": self.classes,
        }  # fmt: skip

    def files(self) -> dict[str, bytes]:
        """The tokenizer and, where there is one, the chat template."""
        out = {TOKENIZER: self.tokenizer.to_bytes()}
        return out | {TEMPLATE: self.chat_template.encode()} if self.chat_template is not None else out

    @classmethod
    def from_json(cls, value: Mapping[str, Any], files: Mapping[str, bytes]) -> TextSchema:
        """The schema of `to_json` and `files`. Raises DataError for another format."""
        given = dict(value)
        if (found := given.pop("format_version", None)) != FORMAT:
            raise DataError(f"the text schema has format {found}, this seekray reads {FORMAT}")
        template = files.get(TEMPLATE)
        answers, _, _ = given.pop("answers"), given.pop("targets"), given.pop("classes")  # the last two for readers of the JSON
        return cls(
            tokenizer=Tokenizer(files[TOKENIZER], given.pop("end_token")),
            features=tuple(Feature(**f) for f in given.pop("features")),
            key=tuple(given.pop("key")),
            chat_template=template.decode() if template is not None else None,
            answers=FeatureSchema.from_json(answers) if answers else None,
            **given,
        )


def padded(rows: Sequence[Array], filler: int) -> tuple[Array, Array]:
    """Rows of different lengths as int64 (B, longest), filled on the right, and their lengths (B,)."""
    lengths = np.array([len(r) for r in rows], dtype=np.int64)
    out = np.full((len(rows), int(lengths.max(initial=1))), filler, dtype=np.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return out, lengths
