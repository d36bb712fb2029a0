"""train, evaluate, predict, verify."""

from __future__ import annotations

import json as json_module
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seekray.cli.common import Address, Json, Model, Overrides, example, metrics_line, note, out, table

if TYPE_CHECKING:
    from seekray.tuner import TuneResult

Data = Annotated[str, typer.Option("--data", help="sample:NAME, a file, a folder, s3://… or gs://…")]


def add(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog=example("seekray train examples/digits.yaml --set training.epochs=10"))(train)
    app.command(epilog=example("seekray tune examples/digits-tune.yaml --set tune.trials=10 --register digits"))(tune)
    app.command(epilog=example("seekray evaluate digits@champion --data new.csv --by region"))(evaluate)
    app.command(epilog=example("seekray predict digits@champion --data new.csv --out answers.parquet"))(predict)
    app.command(epilog=example("seekray verify digits/3 --data new.csv"))(verify)


def train(
    file: Annotated[Path | None, typer.Argument(help="The experiment file; may be left out with --resume.")] = None,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would happen, and do nothing.")] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Train an experiment: to a bundle, a tracked run and, with `register`, a model version."""
    from seekray_jobs import train as job

    if dry_run:
        from seekray import inspect

        found = inspect.dry_run(job.experiment_of(file, overrides or [], resume), address=address)
        out(found, json, lambda: inspect.dry_run_text(found))
        raise typer.Exit(2 if found["refused"] else 0)
    result = job.run(file, overrides or [], resume=resume, address=address)
    out(result.as_json(), json, lambda: metrics_line(result.metrics, 6))
    if not json:
        note(next_step(result))


def tune(
    file: Annotated[Path | None, typer.Argument(help="The experiment file, with tune:; may be left out with --resume.")] = None,
    overrides: Overrides = None,
    register: Annotated[str | None, typer.Option(help="Register the best trial's model under this name.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this search.")] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Search the values of an experiment's fields (`tune:`), and keep the best trial's model."""
    from seekray_jobs import tune as job

    done = job.run(file, overrides or [], register=register, resume=resume, address=address)
    out(done.as_json(), json, lambda: _trials(done))
    if not json:
        note(f"best    {done.folder}/best.yaml\n" + next_step(done.best_run))


def _trials(done: TuneResult) -> str:
    """All trials, the best first."""
    keys = list(dict.fromkeys(key for t in done.trials for key in t["values"]))
    others = list(dict.fromkeys(name for t in done.trials for name in t.get("others", ())))
    order = sorted(done.trials, key=lambda t: (t["value"] is None, -t["value"] * done.sign if t["value"] is not None else 0))
    rows = [
        [f"{t['number']}{'*' if t['number'] in done.front else ''}", t["status"], t["value"]]
        + [t.get("others", {}).get(name) for name in others]
        + [t["epoch"], t["seconds"], *(t["values"].get(k) for k in keys), t["reason"]]
        for t in order
    ]
    shown = table(rows, ["trial", "status", done.metric, *others, "epochs", "seconds", *keys, "reason"])
    return f"{shown}\n* none beats it in all metrics" if done.front else shown


def next_step(result: object) -> str:
    """What a user would do after a training."""
    from seekray.trainer import TrainResult

    assert isinstance(result, TrainResult)
    lines = [f"bundle  {result.bundle}"]
    if result.plots:
        lines.append(f"plots   {Path(result.plots[0]).parent} ({', '.join(Path(p).name for p in result.plots)})")
    if not result.tracked:
        lines.append("the tracking server did not answer; the run is spooled: `seekray sync` sends it when it is back")
    model, steps = result.bundle, []
    if result.model and result.version:
        model = f"{result.model}/{result.version}"
        lines.append(f"model   {model}")
        steps.append(f"seekray models promote {result.model} {result.version} --to champion")
    if result.makes == "texts":
        steps.append(f"seekray generate {model} --prompt {shlex.quote(_sample_prompt(result.bundle))}")
    elif result.makes == "rows":
        steps.append(f"seekray generate {model} --rows 100 --out synthetic.parquet")
    steps.append(f"seekray serve up {model}")
    lines.append("next    " + "\n        ".join(steps))
    return "\n".join(lines)


def _sample_prompt(bundle: str) -> str:
    """A prompt like those that the model has learned from: the first line of the first of its bundle's sample."""
    try:
        sample = json_module.loads((Path(bundle) / "sample.json").read_text())
        found = str(sample["requests"][0]["prompts"][0]).strip().splitlines()[0]
    except (OSError, KeyError, IndexError, TypeError):
        found = "Once upon"
    return found if len(found) <= 70 else found[:70].rsplit(" ", 1)[0]


def evaluate(
    model: Model,
    data: Data,
    by: Annotated[list[str] | None, typer.Option(help="Also list the metrics by this column's values.")] = None,
    compare: Annotated[str | None, typer.Option(help="A second MODEL: the paired difference with its interval.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for plots and evaluation.json.")] = None,
    json: Json = False,
) -> None:
    """Metrics of a model on data, with 95 % bootstrap intervals, plots and a table by group."""
    from seekray.evaluation import as_text
    from seekray_jobs import evaluate as job

    found = job.run(model, data, by=by or [], compare=compare, out=out_dir)
    out(found, json, lambda: as_text(found))


def predict(
    model: Model,
    data: Data,
    target: Annotated[str, typer.Option("--out", help="A .parquet, .csv or .jsonl file, or a folder of parts.")],
    address: Address = None,
    workers: Annotated[int | None, typer.Option(help="Processes with the model loaded; default by size.")] = None,
    stateful: Annotated[
        str | None, typer.Option(help="Recurrent models: feed the rows as steps, carrying states on from and to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Predict every row of a file, a folder or an object store; large data streams over Ray Data."""
    from seekray_jobs import predict as job

    done = job.run(model, data, target, address=address, workers=workers, stateful=stateful)
    out(done, json, lambda: f"{done['rows']:,} rows → {done['out']}  ({done['rejected']:,} rejected)")


def verify(
    model: Model,
    data: Annotated[str | None, typer.Option(help="Rows to send; a generator is sent the requests in its bundle.")] = None,
    json: Json = False,
) -> None:
    """Send the same rows through every door (Python, batch, pyfunc, REST, Open Inference Protocol) and compare."""
    from seekray.cli.doors import verify_all

    found = verify_all(model, data)
    rows = [[d["door"], d["rows"], d["largest_difference"], "yes" if d["passed"] else d["mismatch"]] for d in found["doors"]]
    out(found, json, lambda: table(rows, ["door", "rows", "largest difference", "equal"]))
    raise typer.Exit(0 if found["passed"] else 1)
