"""`seekray init`: a commented, runnable experiment file for a stranger's table."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from seekray.data.kinds import Inferred
from seekray.errors import UserError
from seekray.inspect.defaults import Defaults, choose
from seekray.inspect.drafts import Draft, draft
from seekray.inspect.look import Left, Look, look
from seekray.inspect.texts import plain, scalar
from seekray.models import FAMILIES

LISTED = 60  # more features are written several to a line
LOCAL_ROWS = 50_000
REGISTER = "the model's name in the registry"
READING = {"decimal": "1.234,5", "encoding": "the file is not UTF-8"}


def init(data: str, targets: Sequence[str], out_file: Path, *, family: str = "net", force: bool = False) -> dict[str, Any]:
    """Look at `data` as a family would and write `out_file`; answers what was found and what a person should look at.

    Raises UserError where the file is there already (unless `force`) and DataError for the data.
    """
    out_file = Path(out_file)
    if out_file.exists() and not force:
        raise UserError(f"{out_file} is there already; --force overwrites it, --out writes another file", field="out")
    if family not in FAMILIES:
        raise UserError(f"--family {family} given; expected {', '.join(FAMILIES)}", field="family")
    gpus = gpu_count()
    if family == "net":
        found, text = _net(data, targets, schema_line(out_file), gpus)
    else:
        drafted = draft(family, data, targets)
        text = write_draft(drafted, data, schema_line(out_file), gpus)
        found = {
            "task": drafted.task, "task_reason": drafted.reason, "target": list(targets),
            "rows": drafted.rows, "estimated": False,
            "features": [{"name": n, "kind": k, "reason": "", "unsure": False} for n, k in drafted.columns.items()],
            "key": [], "exclude": [], "workers": workers(drafted.rows or 0, gpus), "unsure": list(drafted.unsure),
        }  # fmt: skip
    from seekray.experiment_file import validate

    validate(yaml.safe_load(text), file=str(out_file))
    try:
        out_file.parent.mkdir(parents=True, exist_ok=True)
        out_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out_file} cannot be written: {error.strerror}", field="out") from error
    return {"file": str(out_file), "family": family, **found}


def _net(data: str, targets: Sequence[str], schema: str | None, gpus: int) -> tuple[dict[str, Any], str]:
    found = look(data, targets)
    defaults = choose(found.rows, found.task, found.shape, pictures=any(f.kind == "image" for f in found.features))
    return {
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
    }, write(found, defaults, schema, gpus)


def init_text(found: dict[str, Any]) -> str:
    """For people: what was written, what was guessed, what to do next."""
    kinds: dict[str, int] = {}
    for feature in found["features"]:
        kinds[feature["kind"]] = kinds.get(feature["kind"], 0) + 1
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    rows = "text" if found["rows"] is None else f"{'about ' if found['estimated'] else ''}{found['rows']:,} rows"
    of = f" {'given' if found['family'] == 'gen' else 'of'} {', '.join(found['target'])}" if found["target"] else ""
    features = f", {len(found['features'])} features ({counted})" if kinds else ""
    lines = [
        f"wrote {found['file']}",
        f"task      {found['task']}{of}: {found['task_reason']}",
        f"data      {rows}{features}",
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
    lines += [f"# Written by `seekray init` from {plain(found.source)} ({rows}).", "# Train it: seekray train <this file>"]
    lines += _please_look(found.unsure)
    lines += [
        f"name: {scalar(found.name)}",
        "family: net                    # DeepSeek-Net, a multi-layer perceptron",
        f"task: {found.task}  # {plain(found.task_reason)}",
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


def write_draft(found: Draft, source: str, schema: str | None, gpus: int) -> str:
    """The file's text, of a family other than `net`."""
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    lines += [f"# Written by `seekray init` from {plain(source)}.", "# Train it: seekray train <this file>"]
    lines += _please_look(found.unsure)
    lines += [f"name: {scalar(found.name)}", f"family: {found.family}", f"task: {found.task}  # {plain(found.reason)}"]
    for part, values in (
        ("data", {"source": scalar(source)} | dict(found.data)),
        ("model", found.model),
        ("training", found.training),
    ):
        lines += ["", f"{part}:", *(f"  {key}: {value}" for key, value in values.items())]
    return "\n".join([*lines, "", *_resources(found.rows or 0, gpus), "", f"register: {scalar(found.name)}  # {REGISTER}", ""])


def _please_look(unsure: Sequence[str]) -> list[str]:
    lines = ["#", "# Please look at:"] if unsure else []
    for text in unsure:
        lines += textwrap.wrap(plain(text), 110, initial_indent="#  - ", subsequent_indent="#    ", break_long_words=False)
    return lines


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
    return [f"  {key}:  # {what}"] + [f"    - {scalar(c.name)}  # {plain(c.reason)}" for c in columns]


def _features(features: Sequence[Inferred]) -> list[str]:
    out = ["  features:  # what is learned from; kinds: numeric, categorical, boolean, timestamp, text, image, audio, vector"]
    if len(features) <= LISTED:
        texts = [f"    {scalar(g.name)}: {g.kind}" for g in features]
        wide = min(40, max(map(len, texts)))
        notes = [f"  # {'UNSURE: ' if g.unsure else ''}{plain(g.reason)}" for g in features]
        return out + [text.ljust(wide) + note for text, note in zip(texts, notes, strict=True)]
    out.append("    {")
    for (kind, reason, unsure), group in groupby(features, lambda g: (g.kind, g.reason, g.unsure)):
        out.append(f"      # {'UNSURE: ' if unsure else ''}{kind}: {plain(reason)}")
        line = "     "
        for pair in (f" {scalar(g.name)}: {kind}," for g in group):
            if len(line) + len(pair) > 118 and line.strip():
                out.append(line)
                line = "     "
            line += pair
        out.append(line)
    return [*out, "    }"]
