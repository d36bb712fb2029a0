"""A model of texts over a file of prompts of any size: streamed in parts, in the input's order, bad prompts put aside.

The parts are those of batch prediction. A prompt's text depends on the prompt, the seed and the bundle alone, so it is
the same however the prompts are cut into parts and whoever answers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seekray.batch.output import PartResult, encode, json_lines, open_output
from seekray.batch.parts import Part, Plan, salvage
from seekray.batch.predict import fingerprint, part_of, run_parts
from seekray.batch.ray_data import Connect, Progress, loaded, result_row
from seekray.data.columns import missing_column
from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.errors import DataError
from seekray.generator import Generator

IN_PROCESS_BYTES = 10**6
PART_ROWS = 256


@dataclass(frozen=True)
class TextPlan(Plan):
    """prompt: the column of prompts; request: what is asked for of each."""

    prompt: str
    request: dict[str, Any]


def answer(
    bundle: Path | str,
    data: Data,
    out: str,
    request: Mapping[str, Any],
    *,
    workers: int | None = None,
    connect: Connect = nullcontext,
    progress: Progress | None = None,
    part_rows: int = PART_ROWS,
) -> dict[str, Any]:
    """The texts that follow every prompt of `data` into `out`; returns `{rows, rejected, out}`.

    The prompts are in the column that the model was trained on, else in `prompt`, else in the only column. request:
    fields of the family's `Request`, without the prompts. The columns are data.key (or the model's keys, or `row`) and
    those of `Generator.generate`. out, workers, connect, progress: as for `batch.predict`; without `workers`
    less than 1 MB of prompts is done in this process.

    Raises DataError, UserError, ResourcesError, ModelNotFoundError, CorruptError.
    """
    generator = Generator.load(bundle)
    data = data.model_copy(update={"on_bad_row": "skip"})
    source = open_source(data)
    prompt = _prompts(source.schema.names, generator.schema.features[0].name)
    keys = data.key or tuple(k for k in generator.schema.key if k in source.schema.names)
    tiny = {**request, "max_tokens": 1, "min_tokens": 0, "n": 1}
    made = generator.generate([""], **tiny).schema
    first = [source.schema.field(k) for k in keys] or [pa.field("row", pa.int64())]
    schema = pa.schema([*first, *(f for f in made if f.name != "prompt" or prompt not in keys)])
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"data.key: a column of {', '.join(keys)} has the name of an answer; they are {', '.join(made.names)}")
    identity = {
        "format": 1, "bundle": generator.hash, "data": fingerprint(data, source) | {"request": dict(request)},
        "columns": schema.names, "part_rows": part_rows,
    }  # fmt: skip
    output = open_output(out, schema, identity)
    columns = tuple(source.names(list(dict.fromkeys([*keys, prompt]))))
    plan = TextPlan(columns, keys, output.part_rows, output.encoding, schema, prompt, dict(request))
    rows, rejected = run_parts(
        plan, source, data, output, lambda part: answer_part(generator, plan, part),
        worker=Worker, bundle=bundle, workers=workers, connect=connect, progress=progress,
        distributed=workers > 0 if workers is not None else (source.bytes or 0) >= IN_PROCESS_BYTES,
    )  # fmt: skip
    return {"rows": rows, "rejected": rejected, "out": out}


def _prompts(names: Sequence[str], trained_on: str) -> str:
    found = next((name for name in (trained_on, "prompt") if name in names), names[0] if len(names) == 1 else None)
    if found is None:
        raise missing_column("prompt", names)
    return found


def answer_part(generator: Generator, plan: TextPlan, part: Part) -> PartResult:
    """The texts of one part, encoded, and its rejected rows."""

    def attempt(table: pa.Table) -> pa.Table:
        prompts = table.column(plan.prompt).to_pylist()
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise DataError(f"column {plan.prompt!r}, row {row}: expected a text, got {prompt!r}", field=plan.prompt)
        return generator.generate(prompts, **plan.request)

    found, reasons = salvage(attempt, part.table)
    found = sorted(found, key=lambda piece: piece[0])
    index = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop, _ in found)])
    count = int(generator.request(plan.request).n)
    index, numbers = index.repeat(count), part.numbers
    kept = part.table.take(pa.array(index))
    columns: dict[str, Any] = {k: kept.column(k) for k in plan.keys} or {"row": pa.array(numbers[index])}
    if found:
        made = pa.concat_tables([table for _, _, table in found])
        columns |= {name: made.column(name) for name in made.column_names if name not in columns}
    result = pa.table([columns.get(f.name, pa.array([], f.type)) for f in plan.schema], names=plan.schema.names).cast(
        plan.schema
    )
    bad = sorted(reasons)
    values = part.table.take(pa.array(bad, pa.int64())).to_pylist()
    rejects = [{"row": m["row"], "reason": m["reason"], "values": m["value"]} for m in part.malformed] + [
        {"row": int(numbers[row]), "reason": reasons[row], "values": v} for row, v in zip(bad, values, strict=True)
    ]
    lines = json_lines(sorted(rejects, key=lambda r: r["row"])) if rejects else b""
    return PartResult(part.index, len(result), len(rejects), encode(result, plan.encoding, len(rejects)), lines)


class Worker:
    """An actor of Ray Data: loads the model once, answers part after part."""

    def __init__(self, plan: TextPlan, files: Any, threads: int) -> None:
        self._plan, self._generator = plan, loaded(files, threads, "seekray.generator:Generator")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of a part to one row of `result_row`."""
        return result_row(answer_part(self._generator, self._plan, part_of(batch)))
