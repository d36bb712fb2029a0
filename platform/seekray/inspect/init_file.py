"""`seekray init`: a commented, runnable experiment file for a stranger's table."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from seekray.data.kinds import Inferred
from seekray.errors import UserError
from seekray.inspect.defaults import Defaults, choose
from seekray.inspect.look import Left, Look, look

LISTED = 60  # more features are written several to a line
LOCAL_ROWS = 50_000
READING = {"decimal": "1.234,5", "encoding": "the file is not UTF-8"}


def init(data: str, targets: Sequence[str], out_file: Path, *, force: bool = False) -> dict[str, Any]:
    """Look at `data` and write `out_file`; answers what was found and what a person should look at.

    Raises UserError where the file is there already (unless `force`) and DataError for the data.
    """
    out_file = Path(out_file)
    if out_file.exists() and not force:
        raise UserError(f"{out_file} is there already; --force overwrites it, --out writes another file", field="out")
    found = look(data, targets)
    gpus = gpu_count()
    defaults = choose(found.rows, found.task, found.shape, pictures=any(f.kind == "image" for f in found.features))
    text = write(found, defaults, schema_line(out_file), gpus)
    from seekray.experiment_file import validate

    validate(yaml.safe_load(text), file=str(out_file))
    try:
        out_file.parent.mkdir(parents=True, exist_ok=True)
        out_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out_file} cannot be written: {error.strerror}", field="out") from error
    return {
        "file": str(out_file),
        "task": found.task,
        "task_reason": found.task_reason,
        "target": list(found.targets),
        "rows": found.rows,
        "estimated": found.estimated,
        "features": [{"name": g.name, "kind": g.kind, "reason": g.reason, "unsure": g.unsure} for g in found.features],
        "key": [c.name for c in found.key],
        "exclude": [{"name": c.name, "reason": c.reason} for c in found.exclude],
        "workers": workers(found.rows, gpus),
        "unsure": found.unsure,
    }


def init_text(found: dict[str, Any]) -> str:
    """For people: what was written, what was guessed, what to do next."""
    kinds: dict[str, int] = {}
    for feature in found["features"]:
        kinds[feature["kind"]] = kinds.get(feature["kind"], 0) + 1
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    rows = f"{'about ' if found['estimated'] else ''}{found['rows']:,} rows"
    lines = [
        f"wrote {found['file']}",
        f"task      {found['task']} of {', '.join(found['target'])}: {found['task_reason']}",
        f"data      {rows}, {len(found['features'])} features ({counted})",
    ]
    if found["key"]:
        lines.append(f"key       {', '.join(found['key'])}")
    if found["exclude"]:
        lines.append(f"left out  {', '.join(e['name'] for e in found['exclude'])}")
    if found["unsure"]:
        lines.append("please look at:")
        lines += [f"  - {text}" for text in found["unsure"][:12]]
        if len(found["unsure"]) > 12:
            lines.append(f"  - … and {len(found['unsure']) - 12} more, in the file")
    lines.append(f"next      seekray train {found['file']}")
    return "\n".join(lines)


def gpu_count() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def workers(rows: int, gpus: int) -> int:
    """0, this process, for a small table on a machine without a GPU; else a Ray Train worker a GPU, or one."""
    return gpus if gpus else 0 if rows <= LOCAL_ROWS else 1


def schema_line(out_file: Path) -> str | None:
    """The schema's place as the file sees it: written into seekray's home, None where that cannot be."""
    from seekray.experiment_file import json_schema
    from seekray.settings import settings

    target = settings().home / "experiment.schema.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(json_schema(), indent=1))
    except OSError:
        return None
    return Path(os.path.relpath(target, out_file.resolve().parent)).as_posix()


def write(found: Look, defaults: Defaults, schema: str | None, gpus: int) -> str:
    """The file's text."""
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    rows = f"{'about ' if found.estimated else ''}{found.rows:,} rows"
    lines += [f"# Written by `seekray init` from {_plain(found.source)} ({rows}).", "# Train it: seekray train <this file>"]
    if found.unsure:
        lines += ["#", "# Please look at:"]
        for text in found.unsure:
            lines += textwrap.wrap(_plain(text), 110, initial_indent="#  - ", subsequent_indent="#    ", break_long_words=False)
    lines += [
        f"name: {found.name if not _needs_quotes(found.name) else scalar(found.name)}",
        "family: net                    # DeepSeek-Net, a multi-layer perceptron",
        f"task: {found.task}  # {_plain(found.task_reason)}",
        "",
        "data:",
        f"  source: {scalar(found.source)}",
    ]
    lines += [f"  {key}: {json.dumps(value)}  # {READING[key]}" for key, value in found.reading.items()]
    target = scalar(found.targets[0]) if len(found.targets) == 1 else f"[{', '.join(map(scalar, found.targets))}]"
    lines.append(f"  target: {target}")
    lines += _left("key", found.key, "carried through to the predictions, never learned from")
    lines += _left("exclude", found.exclude, "never read")
    lines += _features(found.features)
    if found.skip:
        lines.append("  on_bad_row: skip  # rows that cannot be used are left out, counted and listed in a file")
    kind = "stratified" if found.task == "classification" else "random"
    validation = "validation: 0, " if not defaults.validation else f"validation: {defaults.validation:g}, "
    lines += _comment(defaults.why_split)
    lines += [f"  split: {{kind: {kind}, test: 0.2, {validation}seed: 0}}", "", "model:", *_comment(defaults.why_model)]
    lines += [f"  {key}: {value}" for key, value in defaults.model.items()]
    lines += ["", "training:"]
    lines += [f"  {key}: {value}" for key, value in defaults.training.items()]
    lines += ["", *_resources(found.rows, gpus), "", f"register: {scalar(found.name)}  # the model's name in the registry", ""]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="  # ", subsequent_indent="  # ")


def _resources(rows: int, gpus: int) -> list[str]:
    count = workers(rows, gpus)
    if count == 0:
        return [
            "resources:",
            "  workers: 0                   # this process, without Ray: the quickest way for a table of this size.",
            "                               # 2 (or more) trains on Ray Train, here or on a cluster (--address)",
        ]
    why = f"a Ray Train worker for each GPU of this machine ({gpus})" if gpus else "a Ray Train worker; more share each batch"
    return ["resources:", f"  workers: {count}                   # {why}; 0 is this process, without Ray"]


def _left(key: str, columns: Sequence[Left], what: str) -> list[str]:
    if not columns:
        return []
    return [f"  {key}:  # {what}"] + [f"    - {scalar(c.name)}  # {_plain(c.reason)}" for c in columns]


def _features(features: Sequence[Inferred]) -> list[str]:
    out = ["  features:  # what is learned from; kinds: numeric, categorical, boolean, timestamp, text, image, audio, vector"]
    if len(features) <= LISTED:
        texts = [f"    {scalar(g.name)}: {g.kind}" for g in features]
        wide = min(40, max(map(len, texts)))
        notes = [f"  # {'UNSURE: ' if g.unsure else ''}{_plain(g.reason)}" for g in features]
        return out + [text.ljust(wide) + note for text, note in zip(texts, notes, strict=True)]
    out.append("    {")
    for (kind, reason, unsure), group in groupby(features, lambda g: (g.kind, g.reason, g.unsure)):
        out.append(f"      # {'UNSURE: ' if unsure else ''}{kind}: {_plain(reason)}")
        line = "     "
        for pair in (f" {scalar(g.name)}: {kind}," for g in group):
            if len(line) + len(pair) > 118 and line.strip():
                out.append(line)
                line = "     "
            line += pair
        out.append(line)
    return [*out, "    }"]


def _plain(text: str) -> str:
    """One line for a comment."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _needs_quotes(text: str) -> bool:
    return not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) or yaml.safe_load(text) != text


def scalar(text: str) -> str:
    """A text as a YAML scalar that reads back as the same text, in block and flow."""
    if not _needs_quotes(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
