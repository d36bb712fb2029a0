"""A YAML file and overrides → Experiment, with errors that say file, line, key, given and allowed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from seekray.config import Experiment
from seekray.errors import ConfigError
from seekray.models import FAMILIES, get_family
from seekray.yaml_file import UNKNOWN, Mistake, Path_, checked, lines_of, location, read


def load(file: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment. overrides: `a.b=value`. Raises ConfigError."""
    raw, origin = read(file, "`seekray init data.csv --target COLUMN` writes one", "name: digits")
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
    return checked(Experiment, raw, origin or {}, file, _of_family)


def _of_family(key: str, raw: Mapping[str, Any]) -> Any:
    """The config that `model` is of; it depends on the family."""
    family = raw.get("family", "net")
    return None if key != "model" else get_family(family).Config if family in FAMILIES else UNKNOWN


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
                own = [e for e in error.errors() if location(e["loc"], changed, absent=False)[: len(path)] == path]
                mistakes = [Mistake.of(e, changed) for e in own]
                messages |= {m.message(changed, {path: at}, file, Experiment, _of_family): key for m in mistakes}
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
    places = lines_of(yaml.compose("\n".join(lines), Loader=yaml.SafeLoader), [])
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
