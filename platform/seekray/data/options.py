"""The `data:` part of an experiment."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

Kind = Literal[
    "numeric",
    "categorical",
    "boolean",
    "timestamp",
    "text",
    "image",
    "vector",
    "sequence",
    "characters",
    "audio",
    "audio_frames",
]


def _seconds(value: object) -> object:
    """Accept `90`, `30s`, `30m`, `2h`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", value) if isinstance(value, str) else None
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else value


_DURATION_SCHEMA = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[smhd]\s*$"}]}
Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0), WithJsonSchema(_DURATION_SCHEMA, mode="validation")]


class Options(BaseModel):
    """Frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeatureOptions(Options):
    """How one column becomes numbers; everything has a default."""

    kind: Kind | None = Field(None, description="null: inferred from the column's type and values")
    max_categories: int = Field(
        1000,
        ge=1,
        description="categorical, characters and each of their n-grams: the most frequent are kept, the rest is `other`",
    )
    buckets: int = Field(1024, ge=2, description="text: number of hashed n-gram buckets")
    ngrams: tuple[int, int] | None = Field(
        None,
        description="text: shortest and longest n-gram, null: [1, 2]; characters: [1, N], "
        "each step also knows the N - 1 characters before it, null: [1, 1]",
    )
    analyzer: Literal["word", "char", "char_word"] = Field(
        "word", description="text: n-grams of words, of characters, or of the characters of each word with its edges"
    )
    size: tuple[int, int] = Field((32, 32), description="image: height and width after resizing")
    trend: bool = Field(True, description="timestamp: false leaves the time of day, the weekday and the month alone")
    channels: Literal[1, 3] = Field(3, description="image: 1 grey, 3 RGB")
    sample_rate: int = Field(16_000, ge=1000, le=192_000, description="audio: Hz; sounds of another rate are resampled")
    mels: int = Field(40, ge=2, le=256, description="audio: number of mel bands")
    window: float = Field(0.025, gt=0, le=1, description="audio: seconds of sound in a frame")
    hop: float = Field(0.010, gt=0, le=1, description="audio: seconds from a frame to the next")
    frames: int | None = Field(
        None,
        ge=1,
        description="audio: so many frames, cut or filled up, a picture for model.stem: conv; null: mean and deviation",
    )


class Split(Options):
    """Which rows are for training, validation and test."""

    kind: Literal["random", "stratified", "group", "time", "column", "last"] = Field(
        "random",
        description="time: the last rows are the test; column: values train, validation, test; "
        "last: of a text, its end in the order of the files",
    )
    test: float = Field(0.2, ge=0, lt=1, description="fraction of rows held out for the test")
    validation: float = Field(0.1, ge=0, lt=1, description="fraction of rows for early stopping and the best weights")
    by: str | None = Field(None, description="the column of group, time and column splits")
    seed: int = Field(0, ge=0, description="of random, stratified and group splits")
    fold: tuple[int, int] | None = Field(
        None, description="[i, k]: the i-th of k equal parts of the rows outside the test, from 0, is the validation"
    )

    @model_validator(mode="after")
    def _rules(self) -> Split:
        if self.test + self.validation >= 1:
            raise ValueError(f"data.split: test ({self.test}) + validation ({self.validation}) leave no training rows")
        if (self.kind in ("group", "time", "column")) != (self.by is not None):
            verb = "needs" if self.by is None else "does not take"
            raise ValueError(f"data.split.kind: {self.kind} {verb} data.split.by")
        if self.fold is not None and (
            self.kind not in ("random", "stratified", "group") or not 0 <= self.fold[0] < self.fold[1]
        ):
            raise ValueError(
                f"data.split.fold: {list(self.fold)} given with kind: {self.kind}; expected [i, k] with 0 <= i < k, "
                "and kind: random, stratified or group"
            )
        return self


class TextOptions(Options):
    """What the family `lm` reads: texts, or prompts with their responses."""

    column: str = Field("text", description="the column of texts, of Parquet and JSON lines; .txt files are texts as they are")
    prompt: str | None = Field(None, description="finetune: the column of prompts; the loss is on the response alone")
    response: str | None = Field(None, description="finetune: the column of responses")
    format: str = Field("{prompt}\n", description="what a prompt becomes before the model reads on; needs {prompt}")
    chat_template: str | None = Field(None, description="a Jinja file that formats `messages`, used instead of `format`")
    tokenizer: str = Field(
        "bpe", description="bpe (trained on the training text, byte-level), char, byte, or the path of a tokenizer.json"
    )
    end_token: str = Field("<|endoftext|>", description="the token between documents; added where a tokenizer.json lacks it")
    special_tokens: tuple[str, ...] = Field((), description="further tokens that are never split")
    tokenize: Literal["here", "ray"] = Field("here", description="ray: by Ray Data on all nodes; needs resources.workers >= 1")
    shards: str | None = Field(
        None, description="folder or s3:// URI of the token files of a large corpus; null: `tokens` below the storage"
    )

    @model_validator(mode="after")
    def _rules(self) -> TextOptions:
        if (self.prompt is None) != (self.response is None):
            raise ValueError("data.text.prompt and data.text.response go together")
        if "{prompt}" not in self.format:
            raise ValueError(f"data.text.format: {self.format!r} given, expected a text with {{prompt}} in it")
        if self.end_token in self.special_tokens:
            raise ValueError("data.text.special_tokens has the end token; it is one already")
        return self


class SequenceOptions(Options):
    """How rows of a long table, a row a step, become sequences."""

    time: str = Field(description="the column that orders the steps")
    id: str | None = Field(None, description="the column that tells sequences or series apart; null: there is one")
    columns: tuple[str, ...] | None = Field(
        None, description="values of the steps; null: all others, and of a forecast the target itself"
    )
    static: tuple[str, ...] = Field((), description="columns that are the same in all steps of a sequence")
    future: tuple[str, ...] = Field((), description="forecast: columns that are known in advance, such as a holiday")
    gap: Duration | None = Field(None, description="a longer time between two steps cuts the series; null: no time is too long")
    history: int | None = Field(None, ge=1, description="forecast: steps that are looked at")
    horizon: int | None = Field(None, ge=1, description="forecast: steps ahead that are predicted")
    calendar: bool = Field(False, description="forecast: also learn from the origin's time of day, weekday and month")
    season: int | None = Field(None, ge=1, description="forecast: steps of a season, for the seasonal naive baseline")
    stride: int = Field(1, ge=1, description="forecast: steps from one window to the next")

    @model_validator(mode="after")
    def _rules(self) -> SequenceOptions:
        if (self.history is None) != (self.horizon is None):
            raise ValueError("data.sequence.history and data.sequence.horizon go together")
        named = [self.time, *([self.id] if self.id else []), *self.static]
        if twice := sorted({n for n in named if named.count(n) > 1} | (set(named) & {*(self.columns or ()), *self.future})):
            raise ValueError(f"data.sequence has {', '.join(twice)} in two places")
        return self


class Augment(Options):
    """Synthetic rows among the training rows, never among those of validation and test."""

    model: str = Field(description="a generator of such rows: digits-gen@champion, runs:/ID or a bundle folder")
    rows: int = Field(ge=1, description="how many")
    seed: int = Field(0, ge=0, description="of the synthetic rows")


class Data(Options):
    """Where the rows come from and what is learned from what."""

    source: str = Field(description="sample:NAME, a file, a folder, s3://… or gs://…")
    target: str | tuple[str, ...] | None = Field(None, description="the column to predict; several for multilabel")
    features: dict[str, FeatureOptions] | None = Field(
        None, description="columns to learn from (a list, or a mapping with options); null: all others"
    )
    exclude: tuple[str, ...] = Field((), description="columns never read")
    key: tuple[str, ...] = Field((), description="columns carried through, never learned from")
    sequence: SequenceOptions | None = Field(None, description="rec: how rows of a long table become sequences")
    split: Split = Split()
    augment: Augment | None = Field(None, description="net: synthetic rows for training, from a model of the family gen")
    text: TextOptions | None = Field(None, description="lm: columns of texts and the tokenizer")
    on_bad_row: Literal["error", "skip"] = Field("error", description="skip: bad rows are counted and listed in a file")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="CSV: null finds , ; tab or |")
    decimal: Literal[".", ","] | None = Field(None, description="CSV: the decimal mark; null finds it (1.234,5 or 1,234.5)")
    encoding: str | None = Field(None, description="CSV: of a file that is not UTF-8, such as cp1252 (Western Europe)")

    @model_validator(mode="before")
    @classmethod
    def _features_as_list(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("features"), (list, tuple)):
            value = {**value, "features": {name: {} for name in value["features"]}}
        if isinstance(value, dict) and isinstance(value.get("features"), dict):
            options = {k: ({"kind": v} if isinstance(v, str) else v or {}) for k, v in value["features"].items()}
            value = {**value, "features": options}
        if isinstance(value, dict) and isinstance(value.get("key"), str):
            value = {**value, "key": [value["key"]]}
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            return value and codecs.lookup(value).name
        except LookupError:
            raise ValueError(f"{value!r} is no encoding that Python knows; such as cp1252, latin-1, cp1250, utf-16") from None

    @model_validator(mode="after")
    def _rules(self) -> Data:
        if self.decimal is not None and self.decimal == self.delimiter:
            raise ValueError(f"data.decimal and data.delimiter are both {self.decimal!r}")
        for name in self.targets:
            if self.features and name in self.features:
                raise ValueError(f"data.features has the target {name!r}; a model that reads its answer learns nothing")
            if name in self.key or name in self.exclude:
                raise ValueError(f"data.key or data.exclude has the target {name!r}")
        if both := set(self.features or ()) & (set(self.key) | set(self.exclude)):
            raise ValueError(f"data.features and data.key or data.exclude both have {', '.join(sorted(both))}")
        return self

    def like_training(self, reading: Mapping[str, str] | None) -> Data:
        """Read as a model's training data was (`reading` of its bundle), where nothing else is said."""
        return self.model_copy(update={k: v for k, v in (reading or {}).items() if getattr(self, k) is None})

    @property
    def targets(self) -> tuple[str, ...]:
        """The target columns, none for unsupervised families."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else self.target
