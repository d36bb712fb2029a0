"""runs list, show, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seekray.cli.common import Json, example, metrics_line, out, table

app = typer.Typer(no_args_is_help=True)
Run = Annotated[str, typer.Argument(help="A run id; `seekray runs list` shows them.")]


@app.command("list", epilog=example("seekray runs list --json"))
def list_(json: Json = False) -> None:
    """All runs, newest first."""
    from seekray.settings import settings
    from seekray.tracking.runs import list_runs

    found = list_runs(settings())
    rows = [[r["run_id"], r["name"], r["status"], r["started"], metrics_line(r["metrics"], 2)] for r in found]
    out({"runs": found}, json, lambda: table(rows, ["run", "name", "status", "started", "metrics"]))


@app.command(epilog=example("seekray runs show 20261124-120000-digits-1a2b"))
def show(run: Run, json: Json = False) -> None:
    """One run: settings, metrics, where its files are."""
    import yaml

    from seekray.settings import settings
    from seekray.tracking.runs import show_run

    found = show_run(run, settings())
    out(found, json, lambda: yaml.safe_dump(found, sort_keys=False).rstrip())


@app.command(epilog=example("seekray runs compare RUN_A RUN_B --out compare.png"))
def compare(
    a: Run,
    b: Run,
    plot: Annotated[Path, typer.Option("--out", help="The plot to write.")] = Path("compare.png"),
    json: Json = False,
) -> None:
    """Differences in settings and metrics, and one plot of both."""
    from seekray import plots
    from seekray.settings import settings
    from seekray.tracking.runs import compare as compare_runs

    found = compare_runs(a, b, settings())
    plots.compare_runs(found, plot)
    found["plot"] = str(plot)
    rows = [[k, v["a"], v["b"]] for part in ("settings", "metrics") for k, v in found[part].items()]
    out(found, json, lambda: table(rows, ["", a, b]) + f"\nplot: {plot}")
