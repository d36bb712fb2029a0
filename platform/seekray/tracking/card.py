"""The model card: what a version is, from what, how good, how far it goes, how to call it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

VERIFIED = "## Verified\n\n"


def model_card(
    info: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any] | None = None,
    importances: Sequence[Mapping[str, Any]] = (),
    validation: Mapping[str, float] | None = None,
    example: Mapping[str, Any] | None = None,
) -> str:
    """Markdown. info: bundle.json with the schema, and the bundle's hash as `hash`."""
    name, features = info["name"], info["schema"]["features"]
    evaluation = evaluation or {}
    parts = [
        f"# {name}",
        f"A `{info['family']}` model for {info['task']}"
        + (f" of `{'`, `'.join(info['schema']['targets'])}`" if info["schema"]["targets"] else "")
        + f", from {len(features)} columns.",
        f"{VERIFIED}Not yet: `seekray verify {name}@champion --data rows.csv`.",
        "## Data",
        _data(info),
        "## Metrics",
        _metrics(info, evaluation, validation or {}),
    ]
    parts += [str(sentence) for sentence in (evaluation.get("details") or {}).get("verdict", [])]
    if (made := evaluation.get("details", {})).get("marginals"):
        parts += ["### Columns, synthetic beside real", _marginals(made)]
    if remarks := made.get("remarks"):
        parts += ["### What training said", "\n".join(f"* {remark}" for remark in remarks)]
    for column, groups in (evaluation.get("groups") or {}).items():
        parts += [f"### By `{column}`", _groups(groups)]
    if importances:
        parts += [
            "## What it looks at",
            "Loss of quality when a column is shuffled, on held-out rows:",
            _importances(importances),
        ]
    calls = _calls(name, example or _example(info)) if info["schema"]["targets"] else _requests(name)
    parts += ["## Limits", _limits(info), "## How to call it", calls]
    parts += ["## Lineage", f"* run `{info['run_id']}`\n* bundle `{info['hash']}`"]
    return "\n\n".join(parts) + "\n"


def with_verification(card: str, result: Mapping[str, Any]) -> str:
    """A card with what `verify` found, in place of what it said before."""
    head, _, rest = card.partition(VERIFIED)
    tail = rest[rest.index("## ") :] if "## " in rest else ""
    word = "All doors answer alike" if result.get("passed") else "**The doors do not answer alike**"
    doors = ", ".join(str(door) for door in result.get("doors", []))
    said = f"{VERIFIED}{word}: {doors} (bundle `{result.get('bundle')}`)."
    return f"{head.rstrip()}\n\n{said}\n\n{tail}".rstrip() + "\n"


def _example(info: Mapping[str, Any]) -> dict[str, Any]:
    return {feature["name"]: feature.get("example") for feature in info["schema"]["features"]}


def _data(info: Mapping[str, Any]) -> str:
    print_ = info["fingerprint"]
    lines = [f"* {print_.get('rows', '?')} rows; {info['schema'].get('rows', '?')} of them trained on"]
    lines += [f"* {key}: `{value}`" for key, value in print_.items() if key != "rows"]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _metrics(info: Mapping[str, Any], evaluation: Mapping[str, Any], validation: Mapping[str, float]) -> str:
    intervals = evaluation.get("intervals") or {}
    lines = [f"| metric | {info['held_out']} | 95 % interval | validation |", "|---|---|---|---|"]
    for key, value in info["metrics"].items():
        low_high = intervals.get(key)
        span = f"{_number(low_high[0])} to {_number(low_high[1])}" if low_high else ""
        lines.append(f"| {key} | {_number(value)} | {span} | {_number(validation[key]) if key in validation else ''} |")
    return "\n".join(lines)


def _groups(groups: Sequence[Mapping[str, Any]]) -> str:
    keys = [k for k in groups[0] if not isinstance(groups[0][k], dict)] if groups else []
    metrics = list(groups[0].get("metrics", {})) if groups else []
    lines = ["| " + " | ".join([*keys, *metrics]) + " |", "|" + "---|" * (len(keys) + len(metrics))]
    for group in groups:
        cells = [str(group[k]) for k in keys] + [_number(group["metrics"].get(m)) for m in metrics]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _importances(importances: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| column | mean | std |", "|---|---|---|"]
    for entry in list(importances)[:20]:
        lines.append(f"| {entry.get('feature')} | {_number(entry.get('mean'))} | {_number(entry.get('std'))} |")
    return "\n".join(lines)


def _limits(info: Mapping[str, Any]) -> str:
    lines = ["* It knows the columns and the kinds of values that it was trained on; others are an error, not a guess."]
    if info["task"] == "classification":
        lines.append(f"* It answers one of {len(info['schema']['classes'])} classes, also for a row that belongs to none.")
    if info["family"] == "gen":
        lines = [
            "* It makes values that the training rows' columns can have; relations between them are learned, not guaranteed.",
            "* No privacy is promised: `copies` and `nearest_record_ratio` are measured, there is no differential privacy.",
        ]
    lines.append("* Its metrics hold for rows like the held-out ones; measure again on your own with `seekray evaluate`.")
    return "\n".join(lines)


def _marginals(details: Mapping[str, Any]) -> str:
    """The columns that differ most, with what held-out rows differ by."""
    lines = ["Distance to the training rows (Kolmogorov-Smirnov of numbers, total variation of the others), largest first:", ""]
    lines += ["| column | synthetic | held-out rows |", "|---|---|---|"]
    for name, value in sorted(details["marginals"].items(), key=lambda pair: -pair[1])[:20]:
        lines.append(f"| {name} | {_number(value)} | {_number(details['marginals_held_out'][name])} |")
    return "\n".join(lines)


def _requests(name: str) -> str:
    return f"""```python
from seekray.generator import Generator
Generator.load("{name}@champion").generate(seed=0)
```

```sh
seekray generate {name}@champion --help
```"""


def _calls(name: str, example: Mapping[str, Any]) -> str:
    body = shlex.quote(json.dumps({"rows": [example]}))
    return f"""```python
import mlflow
mlflow.pyfunc.load_model("models:/{name}@champion").predict(dataframe)
```

```sh
seekray predict {name}@champion --data rows.csv --out answers.csv
seekray serve up {name}@champion
curl -s http://127.0.0.1:8000/{name}/v1/predict -H 'Content-Type: application/json' -d {body}
```"""
