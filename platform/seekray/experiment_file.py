"""A YAML file and overrides → Experiment, with errors that say file, line, key, given and allowed."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from seekray.config import Experiment
from seekray.errors import ConfigError
from seekray.models import FAMILIES, get_family

Path_ = tuple[str | int, ...]


def load(file: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment. overrides: `a.b=value`. Raises ConfigError."""
    file = Path(file)
    try:
        text = file.read_text()
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file; `seekray init data.csv --target COLUMN` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a mapping such as `name: digits`, found {type(raw).__name__}")
    lines = _lines(node)
    if twice := lines.pop(("duplicate",), None):
        raise ConfigError(f"{file}, line {twice}: this key is given twice")
    origin = {path: f"{file}, line {line}" for path, line in lines.items()}
    for override in overrides:
        path, value = parse_override(override)
        _put(raw, path, value, override)
        for done in [p for p in origin if p[: len(path)] == path]:
            del origin[done]
        origin[path] = f"--set {override}"
    return validate(raw, origin, str(file))


def validate(raw: Mapping[str, Any], origin: Mapping[Path_, str] | None = None, file: str = "experiment") -> Experiment:
    """An Experiment from plain values. Raises ConfigError that names the place of each mistake."""
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        messages = [_message(raw, e, origin or {}, file) for e in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(messages)), field=_dotted(_loc(error.errors()[0]["loc"], raw))) from error


def with_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """An experiment with some values replaced. Raises ConfigError."""
    raw = experiment.as_json()
    origin: dict[Path_, str] = {}
    for override in overrides:
        path, value = parse_override(override)
        _put(raw, path, value, override)
        origin[path] = f"--set {override}"
    return validate(raw, origin, f"the run's experiment {experiment.name}")


def parse_override(text: str) -> tuple[Path_, Any]:
    """`model.hidden_size=128` → (("model", "hidden_size"), 128). Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, for example --set training.lr=0.001")
    try:
        return tuple(key.strip().split(".")), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from error


def _put(raw: dict[str, Any], path: Path_, value: Any, text: str) -> None:
    place: Any = raw
    for key in path[:-1]:
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if isinstance(place, list) and all(isinstance(v, str) for v in place):
            raise ConfigError(f"--set {text}: {key} is a list; set it whole, for example --set data.features='[a, b]'")
        if not isinstance(place, dict):
            raise ConfigError(f"--set {text}: {key} has the value {place!r}, which has no keys")
    place[path[-1]] = value


def _lines(node: yaml.Node | None, path: Path_ = ()) -> dict[Path_, int]:
    found: dict[Path_, int] = {}
    if node is None:
        return found
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                found[("duplicate",)] = key.start_mark.line + 1
            seen.add(key.value)
            found[(*path, key.value)] = key.start_mark.line + 1
            found |= _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[(*path, index)] = value.start_mark.line + 1
            found |= _lines(value, (*path, index))
    return found


def _loc(loc: Sequence[str | int], raw: Mapping[str, Any]) -> Path_:
    """The part of pydantic's location that exists in the file: union branches and validators' names are dropped."""
    place: Any = raw
    path: list[str | int] = []
    for number, key in enumerate(loc):
        there = key in place if isinstance(place, Mapping) else isinstance(place, list) and key in range(len(place))
        if there:
            place = place[key]
            path.append(key)
        elif number == len(loc) - 1 and isinstance(place, Mapping) and isinstance(key, str):
            path.append(key)
    return tuple(path)


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _message(raw: Mapping[str, Any], error: Any, origin: Mapping[Path_, str], file: str) -> str:
    path = _loc(error["loc"], raw)
    place = next((origin[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origin), file)
    key = _dotted(path)
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f"{place}: {key} is not known{_nearest(path, raw)}"
    if kind == "missing":
        return f"{place}: {key} is missing"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return f"{place}: {text if not key or key in text else f'{key}: {text}'}"
    allowed = error["msg"][0].lower() + error["msg"][1:]
    return f"{place}: {key}: {given!r} given, {allowed.replace('input should be', 'expected')}"


def _nearest(path: Path_, raw: Mapping[str, Any]) -> str:
    """The nearest known key, or the known ones."""
    model: Any = Experiment
    for key in path[:-1]:
        model = _model_of(model, key, raw)
        if model is None:
            return ""
    known = [f.alias or name for name, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(path[-1]), known, 1, 0.5)
    return f"; did you mean {_dotted((*path[:-1], close[0]))}?" if close else f"; known: {', '.join(known)}"


def _model_of(model: Any, key: str | int, raw: Mapping[str, Any]) -> Any:
    if model is Experiment and key == "model":
        family = raw.get("family", "net")
        return get_family(family).Config if family in FAMILIES else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return model  # a mapping's key: the model is that of its values
    field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
    return None if field is None else _first_model(field.annotation)


def _first_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return next((m for a in typing.get_args(annotation) if (m := _first_model(a)) is not None), None)
    return None


def json_schema() -> dict[str, Any]:
    """JSON Schema of an experiment file, for editors; `model` is any family's config."""
    schema = Experiment.model_json_schema(by_alias=True)
    definitions = schema.setdefault("$defs", {})
    branches = []
    for name in FAMILIES:
        config = get_family(name).Config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= config.pop("$defs", {})
        definitions[config["title"]] = config
        branches.append(
            {
                "if": {
                    "properties": {"family": {"const": name}},
                    **({} if name == "net" else {"required": ["family"]}),
                },
                "then": {"properties": {"model": {"$ref": f"#/$defs/{config['title']}"}}},
            }
        )
    schema["properties"]["model"] = {"type": "object", "description": "the family's own settings"}
    schema["allOf"] = branches
    features = {"type": "array", "items": {"type": "string"}}
    definitions["Data"]["properties"]["features"].setdefault("anyOf", []).append(features)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "seekray experiment", **schema}
