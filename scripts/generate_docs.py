"""Write docs/experiment.md and the JSON Schemas of docs from the models; `--check` only compares."""

from __future__ import annotations

import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from seekray.config import Experiment
from seekray.experiment_file import json_schema
from seekray.models import FAMILIES, get_family
from seekray_serve.lifecycle import models_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# The experiment file

Generated from the models by `python scripts/generate_docs.py`. Every value can be overridden on the command
line: `--set training.lr=0.001`. `seekray config show FILE` prints an experiment with every default filled in;
`seekray config schema` is the JSON Schema that editors use. [The schema file](experiment.schema.json) is also here.
"""


def nested(annotation: Any) -> list[type[BaseModel]]:
    """The models inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in nested(a)]


def shown(annotation: Any) -> str:
    """A type in a reader's words."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shown(inside[0])
    if origin is typing.Literal:
        return ", ".join(f"`{v}`" for v in inside)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys("null" if a is type(None) else shown(a) for a in inside))
    if origin is tuple:
        return f"list of {shown(inside[0])}" if inside[-1] is ... else f"[{', '.join(shown(a) for a in inside)}]"
    if origin is dict:
        return f"{shown(inside[0])} → {shown(inside[1])}"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}
    name = getattr(annotation, "__name__", str(annotation))
    return "mapping, see below" if nested(annotation) else names.get(name, name)


def default(field: Any) -> str:
    """A field's default."""
    if field.default_factory is not None or field.default is PydanticUndefined:
        return "required" if field.is_required() else ""
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value)}`" if value is not None else "`null`"


def section(model: type[BaseModel], path: str, level: int) -> list[str]:
    """A table of a model's fields, and the sections of what is inside it."""
    lines = [f"{'#' * level} {f'`{path}`' if path else 'Top level'}", "", (model.__doc__ or "").split("\n\n")[0], ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    inner: list[str] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if model is Experiment and key == "model":
            lines.append("| `model` | mapping, see below | the family's | the family's own settings |")
            continue
        meaning = (field.description or "").replace("|", "\\|")
        limits = [f"{n} {getattr(m, a)}" for m in field.metadata for a, n in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")) if hasattr(m, a)]
        kind = shown(field.annotation).replace("|", "\\|") + (f" ({', '.join(limits)})" if limits else "")
        lines.append(f"| `{key}` | {kind} | {default(field)} | {meaning} |")
        for child in nested(field.annotation):
            inner += ["", *section(child, f"{path}.{key}" if path else key, min(level + 1, 4))]
    return lines + inner


def experiment() -> str:
    """The whole page."""
    parts = [HEAD, "\n".join(section(Experiment, "", 2))]
    for name in FAMILIES:
        parts.append("\n".join(section(get_family(name).Config, f"model` of family `{name}", 2)))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write, or compare."""
    pages = {"experiment.md": experiment(), "experiment.schema.json": json.dumps(json_schema(), indent=1) + "\n"}
    pages["models.schema.json"] = json.dumps(models_file.json_schema(), indent=1) + "\n"
    stale = [name for name, text in pages.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run python scripts/generate_docs.py" if stale else 0)
    for name in stale:
        (DOCS / name).write_text(pages[name])


if __name__ == "__main__":
    main()
