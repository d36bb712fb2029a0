"""A YAML file and the models that it is checked against: errors say file, line, key, given, allowed, and the nearest key."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from seekray.config import NOT_CHECKED
from seekray.errors import ConfigError

Path_ = tuple[str | int, ...]
Checked = TypeVar("Checked", bound=BaseModel)
# The model of a key whose own annotation does not say it; None where the key is not such a one.
Elsewhere = Callable[[str, Mapping[str, Any]], Any]
UNKNOWN = object()  # such a key, of a model that nobody knows


def read(file: Path | str, hint: str, such_as: str) -> tuple[dict[str, Any], dict[Path_, str]]:
    """A file's mapping and the place of each key. hint: where no file is; such_as: how a mapping looks. Raises ConfigError."""
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file; {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
        twice: list[tuple[int, Path_]] = []
        lines = lines_of(node, twice)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: not valid YAML: it contains itself or is nested too deeply") from error
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{file}: expected a mapping such as `{such_as}`, found {what}")
    if twice:
        line, path = min(twice)
        raise ConfigError(f"{file}, line {line}: {dotted(path)} is given twice", field=dotted(path))
    return raw, {path: f"{file}, line {line}" for path, line in lines.items()}


def checked(
    root: type[Checked], raw: Mapping[str, Any], origin: Mapping[Path_, str], file: str, elsewhere: Elsewhere | None = None
) -> Checked:
    """A model from plain values. Raises ConfigError that names the place of each mistake."""
    try:
        return root.model_validate(raw)
    except ValidationError as error:
        found = [Mistake.of(e, raw) for e in error.errors()]
        merged: dict[Path_, Mistake] = {}
        for mistake in (m for m in found if m.text != NOT_CHECKED or len(found) == 1):
            before = merged.get(mistake.path)
            merged[mistake.path] = mistake if before is None else before.also(mistake)
        messages = [m.message(raw, origin, file, root, elsewhere) for m in merged.values()]
        raise ConfigError("\n".join(dict.fromkeys(messages)), field=dotted(next(iter(merged))) or None) from error


def lines_of(node: yaml.Node | None, twice: list[tuple[int, Path_]], path: Path_ = ()) -> dict[Path_, int]:
    """The line of each key and list item; keys that are given again go to `twice`."""
    found: dict[Path_, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, key.value)
            line = key.start_mark.line + 1
            if place in found and key.value != "<<":
                twice.append((line, place))
            found[place] = line
            found |= lines_of(value, twice, place)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[(*path, index)] = value.start_mark.line + 1
            found |= lines_of(value, twice, (*path, index))
    return found


def location(loc: Sequence[str | int], raw: Mapping[str, Any], *, absent: bool) -> Path_:
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


def dotted(path: Path_) -> str:
    """A path as a user writes it."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Mistake:
    """What is wrong with the value at `path`. kind: pydantic's; text: what is allowed, or what a rule says."""

    path: Path_
    kind: str
    text: str
    given: object

    @classmethod
    def of(cls, error: Any, raw: Mapping[str, Any]) -> Mistake:
        """One of pydantic's errors."""
        kind = error["type"]
        path = location(error["loc"], raw, absent=kind == "missing")
        if kind == "value_error":
            text = str(error["ctx"]["error"])
            # A rule over several keys begins with the one that it is about.
            named = re.match(r"[a-z_]+(\.[a-z_]+)*", text)
            about: Path_ = tuple(named[0].split(".")) if named else ()
            return cls(about if about[:1] and str(about[0]) in raw and about[: len(path)] == path else path, kind, text, None)
        return cls(path, kind, _allowed(error), error.get("input"))

    def also(self, other: Mistake) -> Mistake:
        """The same value fits none of several allowed forms, or breaks several rules."""
        if self.text == other.text:
            return self
        joint = "; " if "value_error" in (self.kind, other.kind) else " or "
        return replace(self, text=self.text + joint + other.text.removeprefix("expected "))

    def message(
        self,
        raw: Mapping[str, Any],
        origin: Mapping[Path_, str],
        file: str,
        root: type[BaseModel],
        elsewhere: Elsewhere | None = None,
    ) -> str:
        """Where, what was given, and what would be right."""
        above = (origin[self.path[:n]] for n in range(len(self.path), 0, -1) if self.path[:n] in origin)
        below = (place for path, place in origin.items() if self.path and path[: len(self.path)] == self.path)
        place = next(above, next(below, file))
        key = dotted(self.path)
        if self.kind == "extra_forbidden":
            return f"{place}: {key} is not known{_nearest(self.path, raw, root, elsewhere)}"
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


def _nearest(path: Path_, raw: Mapping[str, Any], root: type[BaseModel], elsewhere: Elsewhere | None) -> str:
    """The nearest known key, or the known ones."""
    model: Any = root
    for number, key in enumerate(path[:-1]):
        if isinstance(model, _ValuesOf):
            model = model.model
        elif number == 0 and elsewhere and (other := elsewhere(str(key), raw)):
            model = None if other is UNKNOWN else other
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
    return f"; did you mean {dotted((*path[:-1], close[0]))}?" if close else f"; known: {', '.join(known)}"


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
