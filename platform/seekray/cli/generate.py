"""generate: what a generative model makes."""

from __future__ import annotations

from typing import Annotated

import typer

from seekray.cli.common import Address, Json, Model, example, out


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(epilog=example("seekray generate penguins --rows 1000 --where species=Adelie --out synthetic.parquet"))(
        generate
    )


def generate(
    model: Model,
    rows: Annotated[int, typer.Option(help="How many rows, images or texts.")] = 100,
    where: Annotated[list[str] | None, typer.Option(help="Only those with this value: --where column=value.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows.")] = 0,
    target: Annotated[
        str | None, typer.Option("--out", help="A .parquet, .csv or .jsonl file, or a folder of parts or of PNG files.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes with the model loaded; default by size.")] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Make rows, images or texts like those a model has learned from; many stream over Ray Data."""
    from seekray.errors import UserError
    from seekray_jobs import generate as job

    if target is None:
        raise UserError("--out is missing: a .parquet, .csv or .jsonl file, or a folder", field="out")
    request = {"rows": rows, "seed": seed, "where": job.conditions(where or [])}
    done = job.run(model, target, request, address=address, workers=workers)
    out(done, json, lambda: f"{done['rows']:,} rows → {done['out']}")
