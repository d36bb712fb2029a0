"""From an experiment's data to what a text model learns: streams of tokens, prompts with responses, or labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from seekray.data import split as splits
from seekray.data.columns import as_columns, check_columns
from seekray.data.fingerprint import array_hash, content_hash, schema_hash
from seekray.data.options import Data, TextOptions
from seekray.data.parse import Array, Rejects, as_array, is_text, shown
from seekray.data.prepared import Prepared
from seekray.data.sources import open_source
from seekray.data.tables.features import Feature, FeatureSchema
from seekray.data.tables.targets import fit_targets, read_targets
from seekray.data.text.corpus import make_tokenizer, prepare_text
from seekray.data.text.passages import Passages, join
from seekray.data.text.schema import TEMPLATE, TOKENIZER, TextSchema
from seekray.data.text.tokenizer import Tokenizer
from seekray.data.text.tokens import token_type
from seekray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = 200  # characters


@dataclass(frozen=True)
class Base:
    """The model that training starts from. vocab_size: entries of its embedding."""

    tokenizer: Tokenizer
    vocab_size: int
    chat_template: str | None
    format: str
    first_token: str | None
    weights: dict[str, Tensor]
    hash: str


def read_base(folder: str) -> Base:
    """Tokenizer and weights of a bundle folder. Raises DataError."""
    from safetensors.torch import load_file

    bundle = Path(folder)
    try:
        info = json.loads((bundle / "bundle.json").read_bytes())
        schema = info["schema"]
        files = {name: (bundle / name).read_bytes() for name in (TOKENIZER, TEMPLATE) if (bundle / name).exists()}
        tokenizer = Tokenizer(files[TOKENIZER], schema["end_token"])
        manifest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"model.init_from: {folder!r} is no bundle of a text model ({error}); expected a MODEL of the family lm",
            field="model.init_from",
        ) from error
    template = files[TEMPLATE].decode() if TEMPLATE in files else None
    weights = load_file(bundle / "model.safetensors")
    if adapters := info["model"].get("lora"):
        from seekray.models.lora import LoraConfig, merged

        weights = merged(weights, LoraConfig.model_validate(adapters))
    return Base(tokenizer, schema["vocab_size"], template, schema["format"], schema.get("first_token"), weights, manifest)


def prepare_lm(data: Data, task: str, context: int, vocab_size: int, init_from: str | None) -> Prepared:
    """Read, check, divide and tokenize an experiment's texts. Raises DataError.

    context: tokens of a window or, at most, of a text. vocab_size: of a tokenizer that is trained. init_from: the bundle
    folder whose tokenizer and weights are taken.
    """
    base = read_base(init_from) if init_from else None
    options = data.text or TextOptions()
    if task == "classify" or options.prompt is not None:
        return _from_table(data, options, task, context, vocab_size, base)
    found = prepare_text(data, context, vocab_size, base.tokenizer if base else None)
    example = found.held_out.column(0)[0].as_py()[:EXAMPLE]
    schema = TextSchema(
        tokenizer=found.tokenizer,
        task=task,
        vocab_size=base.vocab_size if base else found.tokenizer.size,
        context_length=context,
        features=(Feature(options.column, "text", example),),
        chat_template=_template(options, base),
        rows=found.documents,
        first_token=base.first_token if base else None,
    )
    return Prepared(
        schema=schema,
        train=found.train,
        validation=found.validation,
        held_out=found.held_out,
        held_out_rows=np.arange(len(found.held_out)),
        held_out_name=found.held_out_name,
        fingerprint=_with_base(found.fingerprint, base),
        rejected=[],
        warnings=found.warnings,
        rows=found.documents,
        initial=base.weights if base else None,
    )


def _with_base(fingerprint: dict[str, Any], base: Base | None) -> dict[str, Any]:
    return fingerprint | {"base": base.hash} if base else fingerprint


def _template(options: TextOptions, base: Base | None) -> str | None:
    if options.chat_template is None:
        return base.chat_template if base else None
    try:
        return Path(options.chat_template).expanduser().read_text()
    except OSError as error:
        raise DataError(
            f"data.text.chat_template: {options.chat_template}: {error}", field="data.text.chat_template"
        ) from error


@dataclass(frozen=True)
class _Rows:
    """The rows that can be used, with their parts."""

    table: pa.Table
    parts: Array
    numbers: Array
    rejected: list[dict[str, Any]]
    warnings: list[str]

    def of(self, part: int) -> Array:
        """Places in the table."""
        return np.flatnonzero(self.parts == part)


def _read(data: Data, texts: Sequence[str], task: str) -> _Rows:
    source = open_source(data)
    names = list(source.schema.names)
    wanted = dict.fromkeys([*texts, *data.targets, *data.key, *([data.split.by] if data.split.by else [])])
    check_columns(wanted, names)
    table = source.table(list(wanted))
    rejects = Rejects(strict=False)
    for name in texts:
        column = as_array(table.column(name))
        if not is_text(column.type):
            raise DataError(f"column {name!r} holds {column.type}, expected texts", field=name)
        for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
            rejects.add(name, int(row), None, "there is no text")
    if data.targets:
        read_targets("classification", data.targets, as_columns(table), rejects)
    keys = splits.split_keys(data.split, table.column(data.split.by), rejects) if data.split.by else None
    numbers = np.delete(np.arange(len(table) + len(source.malformed)), [m["row"] for m in source.malformed])
    rejected = [*source.malformed, *(r | {"row": int(numbers[r["row"]])} for r in rejects.found)]
    if rejected and data.on_bad_row == "error":
        first = rejected[0]
        raise DataError(
            f"column {first['column']!r}, row {first['row']}: {first['reason']}, got {shown(first['value'])}, and "
            f"{len(rejected) - 1} more; correct it or set data.on_bad_row: skip",
            field=first["column"],
        )
    good = np.setdiff1d(np.arange(len(table)), [r["row"] for r in rejects.found])
    if not len(good):
        raise DataError(f"{data.source} has no row that can be used", field="data.source")
    table = table.take(pa.array(good))
    if data.split.kind == "last":
        parts = _last(data, len(table))
    else:
        strata = splits.codes(table.column(data.targets[0])) if data.split.kind == "stratified" and data.targets else None
        parts = splits.assign(data.split, len(table), keys=None if keys is None else keys[good], strata=strata)
    warnings = list(source.warnings)
    if rejected:
        warnings.append(f"{len(rejected)} rows are left out; the first: row {rejected[0]['row']}, {rejected[0]['reason']}")
    return _Rows(table, parts, numbers[good], rejected, warnings)


def _last(data: Data, rows: int) -> Array:
    test, validation = splits.sizes(data.split, rows)
    parts = np.full(rows, splits.TRAIN, dtype=np.int8)
    parts[rows - test - validation :] = splits.VALIDATION
    parts[rows - test :] = splits.TEST
    return parts


def _from_table(data: Data, options: TextOptions, task: str, context: int, vocab_size: int, base: Base | None) -> Prepared:
    columns = [options.column] if task == "classify" else [str(options.prompt), str(options.response)]
    rows = _read(data, columns, task)
    training = rows.table.take(pa.array(rows.of(splits.TRAIN)))
    texts = (t for name in columns for t in training.column(name).to_pylist())
    tokenizer = base.tokenizer if base else make_tokenizer(options, vocab_size, texts)
    schema = TextSchema(
        tokenizer=tokenizer,
        task="classification" if task == "classify" else task,
        vocab_size=base.vocab_size if base else tokenizer.size,
        context_length=context,
        features=(Feature(columns[0], "text", training.column(0)[0].as_py()[:EXAMPLE]),),
        key=data.key,
        response=options.response,
        format="{prompt}" if task == "classify" else options.format,
        chat_template=None if task == "classify" else _template(options, base),
        answers=_answers(data, training) if task == "classify" else None,
        rows=len(training),
        first_token=base.first_token if base else None,
    )
    encode = _labelled if task == "classify" else _pairs
    cut = 0
    found = []
    for part in (splits.TRAIN, splits.VALIDATION):
        passages, shortened = encode(schema, rows, rows.of(part))
        found.append(passages)
        cut += shortened
    if cut:
        rows.warnings.append(f"{cut} texts are longer than model.context_length ({context} tokens) and are cut")
    name, held = next((n, rows.of(p)) for n, p in (("test", 2), ("validation", 1), ("train", 0)) if len(rows.of(p)))
    if name != "test":
        rows.warnings.append(f"there are no test rows; the metrics are those of the {name} rows")
    tokens = hashlib.blake2b(tokenizer.to_bytes(), digest_size=16).hexdigest()
    fingerprint = {
        "schema": f"{schema_hash(rows.table.schema)}-{tokens}", "rows": len(rows.table), "content": content_hash(rows.table),
        "split": array_hash(np.stack([rows.numbers, rows.parts.astype(np.int64)])),
    }  # fmt: skip
    return Prepared(
        schema=schema,
        train=found[0],
        validation=found[1],
        held_out=rows.table.take(pa.array(held)),
        held_out_rows=rows.numbers[held],
        held_out_name=name,
        fingerprint=_with_base(fingerprint, base),
        rejected=rows.rejected,
        warnings=rows.warnings,
        rows=len(rows.table),
        initial=base.weights if base else None,
    )


def _answers(data: Data, training: pa.Table) -> FeatureSchema:
    fitted, _ = fit_targets("classification", data.targets, as_columns(training))
    return FeatureSchema(
        features=(), task="classification", targets=data.targets, key=data.key, classes=fitted.classes,
        class_counts=fitted.class_counts, rows=len(training),
    )  # fmt: skip


def _pairs(schema: TextSchema, rows: _Rows, index: Array) -> tuple[Passages, int]:
    """End token, prompt, response, end token: the last two are targets. Of a long text the prompt's beginning is cut."""
    table = rows.table.take(pa.array(index))
    prompts = schema.encode_prompts(table.column(schema.column).to_pylist())
    responses = schema.tokenizer.encode(table.column(str(schema.response)).to_pylist())
    texts, first, cut = [], [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        answer = [*response, schema.tokenizer.end][: schema.context_length]
        room = schema.context_length + 1 - len(answer)
        cut += len(prompt) > room or len(response) >= schema.context_length
        kept = prompt[-room:]
        texts.append([*kept, *answer])
        first.append(len(kept))
    dtype = token_type(schema.vocab_size)
    return join(texts, np.array(first, dtype=np.int64), None, rows.numbers[index], dtype), cut


def _labelled(schema: TextSchema, rows: _Rows, index: Array) -> tuple[Passages, int]:
    table = rows.table.take(pa.array(index))
    encoded = schema.tokenizer.encode(table.column(schema.column).to_pylist())
    texts = [ids[: schema.context_length] or [schema.tokenizer.end] for ids in encoded]
    labels = schema.encode_targets(table)
    if (unknown := np.flatnonzero(labels < 0)).size:
        value = table.column(schema.targets[0])[int(unknown[0])].as_py()
        raise DataError(
            f"class {value!r} of {schema.targets[0]!r} has no training row; use data.split.kind: stratified or leave it out",
            field=schema.targets[0],
        )
    cut = sum(len(e) > schema.context_length for e in encoded)
    return join(texts, None, labels, rows.numbers[index], token_type(schema.vocab_size)), cut
