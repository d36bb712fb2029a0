"""init, config, doctor, ui, sync."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seekray.cli.common import Address, File, Json, Overrides, example, note, out, table

config = typer.Typer(no_args_is_help=True)


def add(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog=example("seekray init houses.csv --target price"))(init)
    app.command(epilog=example("seekray doctor"))(doctor)
    app.command(epilog=example("seekray ui --port 5000"))(ui)
    app.command(epilog=example("seekray sync s3://bucket/seekray"))(sync)


def init(
    data: Annotated[str, typer.Argument(help="A CSV, Parquet, JSONL or Arrow file, a folder or sample:NAME.")],
    target: Annotated[list[str] | None, typer.Option(help="The column to predict; several for multilabel.")] = None,
    family: Annotated[str, typer.Option(help="net, rec (sequences), gen (synthetic rows) or lm (texts).")] = "net",
    out_file: Annotated[Path, typer.Option("--out", help="The experiment file to write.")] = Path("experiment.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite the file.")] = False,
    json: Json = False,
) -> None:
    """Look at a data file and write a commented, runnable experiment."""
    from seekray import inspect

    found = inspect.init(data, target or [], out_file, family=family, force=force)
    out(found, json, lambda: inspect.init_text(found))


def doctor(address: Address = None, json: Json = False) -> None:
    """What this machine and cluster have, and what is wrong with it."""
    from seekray import inspect
    from seekray.settings import settings

    found = inspect.doctor(settings(), address=address)
    out(found, json, lambda: inspect.doctor_text(found))
    raise typer.Exit(1 if any(c["state"] == "wrong" for c in found["checks"]) else 0)


def ui(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """Open MLflow's pages on 127.0.0.1; Ctrl-C ends them."""
    from seekray.settings import settings
    from seekray.tracking.runs import ui as serve_ui

    serve_ui(settings(), port)


def sync(
    storage: Annotated[str | None, typer.Argument(help="Storage to send from; default this folder's.")] = None,
    json: Json = False,
) -> None:
    """Send what the tracking server has not got yet."""
    from seekray.settings import settings
    from seekray.tracking.sync import sync as send_all

    sent = [vars(r) for r in send_all(settings(), storage)]
    rows = [
        [*(r[c] for c in ("run_id", "version", "sent", "remaining")), ", ".join([*r["problems"], r["error"] or ""])]
        for r in sent
    ]
    out(
        {"runs": sent},
        json,
        lambda: table(rows, ["run", "version", "sent", "remaining", "problems"]) if rows else "nothing to send",
    )
    if any(r["remaining"] for r in sent):
        note("some runs could not be sent; is the tracking server up? `seekray doctor` looks")
        raise typer.Exit(1)


@config.command("show", epilog=example("seekray config show experiment.yaml --set model.dropout=0.2"))
def show(file: File, overrides: Overrides = None, json: Json = False) -> None:
    """The whole experiment with every default."""
    import yaml

    from seekray.experiment_file import load

    values = load(file, overrides or []).as_json()
    out(values, json, lambda: yaml.safe_dump(values, sort_keys=False).rstrip())


@config.command("schema", epilog=example("seekray config schema > experiment.schema.json"))
def schema() -> None:
    """JSON Schema of experiment files, for editors."""
    import json

    from seekray.experiment_file import json_schema

    print(json.dumps(json_schema(), indent=1))
