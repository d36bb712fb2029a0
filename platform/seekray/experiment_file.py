"""A YAML file and overrides → Experiment, with errors that say file, line, key, given and allowed."""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from seekray.config import NOT_CHECKED, Experiment
from seekray.errors import ConfigError
from seekray.models import FAMILIES, get_family

Path_ = tuple[str | int, ...]


def load(file: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment. overrides: `a.b=value`. Raises ConfigError."""
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file; `seekray init data.csv --target COLUMN` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
        twice: list[tuple[int, Path_]] = []
        lines = _lines(node, twice)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: not valid YAML: it contains itself or is nested too deeply") from error
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{file}: expected a mapping such as `name: digits`, found {what}")
    if twice:
        line, path = min(twice)
        raise ConfigError(f"{file}, line {line}: {_dotted(path)} is given twice", field=_dotted(path))
    origin = {path: f"{file}, line {line}" for path, line in lines.items()}
    for override in overrides:
        path, value = parse_override(override)
        _put(raw, path, value, f"--set {override}")
        for done in [p for p in origin if p[: len(path)] == path]:
            del origin[done]
        origin[path] = f"--set {override}"
    experiment = validate(raw, origin, str(file))
    _check_space(experiment, raw, origin, str(file))
    return experiment


def validate(raw: Mapping[str, Any], origin: Mapping[Path_, str] | None = None, file: str = "experiment") -> Experiment:
    """An Experiment from plain values. Raises ConfigError that names the place of each mistake."""
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        found = [_Mistake.of(e, raw) for e in error.errors()]
        merged: dict[Path_, _Mistake] = {}
        for mistake in (m for m in found if m.text != NOT_CHECKED or len(found) == 1):
            before = merged.get(mistake.path)
            merged[mistake.path] = mistake if before is None else before.also(mistake)
        messages = [m.message(raw, origin or {}, file) for m in merged.values()]
        raise ConfigError("\n".join(dict.fromkeys(messages)), field=_dotted(next(iter(merged))) or None) from error


def _check_space(experiment: Experiment, raw: Mapping[str, Any], origin: Mapping[Path_, str], file: str) -> None:
    """Every value that a search may try is one that the field takes by itself; which of them go together shows later."""
    messages: dict[str, str] = {}
    for key, parameter in experiment.tune.space.items() if experiment.tune else ():
        path = tuple(key.split("."))
        above = (place for n in range(len(path), 0, -1) if (place := ("tune", "space", *path[:n])) in origin)
        at = origin.get(("tune", "space", key)) or origin[next(above, ("tune",))]
        for needed in parameter.when:
            value_of(experiment, needed, f"{at}: tune.space.{key}.when: ")
        for value in parameter.samples:
            changed = copy.deepcopy({k: v for k, v in raw.items() if k != "tune"})
            _put(changed, path, value, f"{at}: tune.space.{key}")
            try:
                Experiment.model_validate(changed)
            except ValidationError as error:
                own = [e for e in error.errors() if _loc(e["loc"], changed, absent=False)[: len(path)] == path]
                mistakes = [_Mistake.of(e, changed) for e in own]
                messages |= {m.message(changed, {path: at}, file): key for m in mistakes}
    if messages:
        raise ConfigError("\n".join(messages), field=f"tune.space.{next(iter(messages.values()))}")


def value_of(experiment: Experiment, key: str, where: str = "") -> Any:
    """The value of a field by its dotted name; None in what is not given. Raises ConfigError."""
    place: Any = experiment.as_json()
    for part in key.split("."):
        if place is None:
            return None
        if not isinstance(place, dict) or part not in place:
            known = ", ".join(place) if isinstance(place, dict) else "none"
            raise ConfigError(f"{where}{key} is not known; known there: {known}")
        place = place[part]
    return place


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """An experiment with other values in some fields, by their dotted names, and without `tune`. Raises ConfigError."""
    raw = experiment.as_json() | {"tune": None}
    for key, value in values.items():
        _put(raw, tuple(key.split(".")), value, key)
    return validate(raw, file=f"with {', '.join(f'{k}={v}' for k, v in values.items())}")


def dump(given: Mapping[str, Any], values: Mapping[str, Any], comments: Mapping[str, str], head: str) -> str:
    """An experiment file: what is given, with values in some fields by their dotted names, and comments beside fields."""
    raw = copy.deepcopy(dict(given))
    for key, value in values.items():
        _put(raw, tuple(key.split(".")), value, key)
    lines = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=110).splitlines()
    places = _lines(yaml.compose("\n".join(lines), Loader=yaml.SafeLoader), [])
    for key, comment in comments.items():
        lines[places[tuple(key.split("."))] - 1] += f"  # {comment}"
    return "".join(f"{line}\n" for line in [*(f"# {line}" for line in head.splitlines()), *lines])


def with_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """An experiment with some values replaced. Raises ConfigError."""
    raw = experiment.as_json()
    origin: dict[Path_, str] = {}
    for override in overrides:
        path, value = parse_override(override)
        _put(raw, path, value, f"--set {override}")
        origin[path] = f"--set {override}"
    return validate(raw, origin, f"the run's experiment {experiment.name}")


def parse_override(text: str) -> tuple[Path_, Any]:
    """`model.hidden_size=128` → (("model", "hidden_size"), 128). Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, for example --set training.lr=0.001")
    path = tuple(part.strip() for part in key.split("."))
    if not all(path):
        raise ConfigError(f"--set {text}: {key.strip()!r} is not a key; expected names with a dot between them")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from error


def _put(raw: dict[str, Any], path: Path_, value: Any, text: str) -> None:
    place: Any = raw
    for key in path[:-1]:
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if isinstance(place, list) and all(isinstance(v, str) for v in place):
            raise ConfigError(f"{text}: {key} is a list; set it whole, for example --set data.features='[a, b]'")
        if not isinstance(place, dict):
            raise ConfigError(f"{text}: {key} has the value {place!r}, which has no keys")
    place[path[-1]] = value


def _lines(node: yaml.Node | None, twice: list[tuple[int, Path_]], path: Path_ = ()) -> dict[Path_, int]:
    """The line of each key and list item; keys that are given again go to `twice`."""
    found: dict[Path_, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, key.value)
            line = key.start_mark.line + 1
            if place in found and key.value != "<<":
                twice.append((line, place))
            found[place] = line
            found |= _lines(value, twice, place)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[(*path, index)] = value.start_mark.line + 1
            found |= _lines(value, twice, (*path, index))
    return found


def _loc(loc: Sequence[str | int], raw: Mapping[str, Any], *, absent: bool) -> Path_:
    """The part of pydantic's location that exists in the file: union branches and validators' names are dropped.

    absent: the last part names a key that is not there.
    """
    place: Any = raw
    path: list[str | int] = []
    for number, key in enumerate(loc):
        there = key in place if isinstance(place, Mapping) else isinstance(place, list) and key in range(len(place))
        if there:
            place = place[key]
            path.append(key)
        elif absent and number == len(loc) - 1 and isinstance(place, Mapping) and isinstance(key, str):
            path.append(key)
    return tuple(path)


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


@dataclass(frozen=True)
class _Mistake:
    """What is wrong with the value at `path`. kind: pydantic's; text: what is allowed, or what a rule says."""

    path: Path_
    kind: str
    text: str
    given: object

    @classmethod
    def of(cls, error: Any, raw: Mapping[str, Any]) -> _Mistake:
        kind = error["type"]
        path = _loc(error["loc"], raw, absent=kind == "missing")
        if kind == "value_error":
            text = str(error["ctx"]["error"])
            # A rule over several keys begins with the one that it is about.
            named = re.match(r"[a-z_]+(\.[a-z_]+)*", text)
            about: Path_ = tuple(named[0].split(".")) if named else ()
            return cls(about if about[:1] and str(about[0]) in raw and about[: len(path)] == path else path, kind, text, None)
        return cls(path, kind, _allowed(error), error.get("input"))

    def also(self, other: _Mistake) -> _Mistake:
        """The same value fits none of several allowed forms, or breaks several rules."""
        if self.text == other.text:
            return self
        joint = "; " if "value_error" in (self.kind, other.kind) else " or "
        return replace(self, text=self.text + joint + other.text.removeprefix("expected "))

    def message(self, raw: Mapping[str, Any], origin: Mapping[Path_, str], file: str) -> str:
        above = (origin[self.path[:n]] for n in range(len(self.path), 0, -1) if self.path[:n] in origin)
        below = (place for path, place in origin.items() if self.path and path[: len(self.path)] == self.path)
        place = next(above, next(below, file))
        key = _dotted(self.path)
        if self.kind == "extra_forbidden":
            return f"{place}: {key} is not known{_nearest(self.path, raw)}"
        if self.kind == "missing":
            return f"{place}: {key} is missing"
        if self.kind == "value_error":
            return f"{place}: {self.text if not key or key in self.text else f'{key}: {self.text}'}"
        return f"{place}: {key}: {self.given!r} given, {self.text}"


def _allowed(error: Any) -> str:
    """What pydantic expected, in the words of YAML."""
    kind = error["type"]
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "expected a mapping of keys and values"
    if kind in ("tuple_type", "list_type"):
        return "expected a list"
    if kind == "string_pattern_mismatch":
        return f"expected to match {error['ctx']['pattern']}"
    text = error["msg"][0].lower() + error["msg"][1:]
    return str(text.replace("input should be", "expected"))


def _nearest(path: Path_, raw: Mapping[str, Any]) -> str:
    """The nearest known key, or the known ones."""
    model: Any = Experiment
    for number, key in enumerate(path[:-1]):
        if isinstance(model, _ValuesOf):
            model = model.model
        elif model is Experiment and key == "model":
            family = raw.get("family", "net")
            model = get_family(family).Config if family in FAMILIES else None
        elif field := next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None):
            of_mapping = _has_mapping(field.annotation) and number + 2 < len(path)
            model = _first_model(field.annotation)
            model = _ValuesOf(model) if of_mapping and model else model
        else:
            model = None
        if model is None:
            return ""
    if isinstance(model, _ValuesOf):
        return ""
    known = [f.alias or name for name, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(path[-1]), known, 1, 0.5)
    return f"; did you mean {_dotted((*path[:-1], close[0]))}?" if close else f"; known: {', '.join(known)}"


@dataclass(frozen=True)
class _ValuesOf:
    """A mapping with the user's own keys (such as columns), whose values are of a model."""

    model: Any


def _has_mapping(annotation: Any) -> bool:
    if typing.get_origin(annotation) is dict:
        return True
    return any(_has_mapping(a) for a in typing.get_args(annotation))


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
    _short_forms(definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "seekray experiment", **schema}


def _short_forms(definitions: dict[str, Any]) -> None:
    """What the models take besides their full form: a list of features, a kind for its options, one key for a list."""
    data = definitions["Data"]["properties"]
    kind = next(branch for branch in definitions["FeatureOptions"]["properties"]["kind"]["anyOf"] if "enum" in branch)
    options = [{"$ref": "#/$defs/FeatureOptions"}, kind, {"type": "null"}]
    data["features"]["anyOf"] = [
        {"type": "object", "additionalProperties": {"anyOf": options}},
        {"type": "array", "items": {"type": "string"}},
        {"type": "null"},
    ]
    whole = {k: data["key"].pop(k) for k in ("type", "items") if k in data["key"]}
    data["key"]["anyOf"] = [whole, {"type": "string"}]
