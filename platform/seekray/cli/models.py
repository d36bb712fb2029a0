"""models list, show, promote, rollback, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seekray.cli.common import Json, Model, example, metrics_line, out, table

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A registered model; `seekray models list` shows them.")]
Alias = Annotated[str, typer.Option("--to", "--alias", help="The alias to move.")]


@app.command("list", epilog=example("seekray models list"))
def list_(json: Json = False) -> None:
    """Registered models."""
    from seekray.settings import settings
    from seekray.tracking.registry import list_models

    found = list_models(settings())
    rows = [[m["name"], m["latest"], " ".join(f"{a}→{v}" for a, v in m["aliases"].items()) or None] for m in found]
    out({"models": found}, json, lambda: table(rows, ["model", "latest", "aliases"]))


@app.command(epilog=example("seekray models show digits"))
def show(name: Name, json: Json = False) -> None:
    """Versions with their lineage, and who held which alias when."""
    from seekray.settings import settings
    from seekray.tracking import registry

    found = registry.show(name, settings())
    rows = [
        [v["version"], v["run_id"], v["created"], _verified(v["verified"]), metrics_line(v["metrics"], 2)]
        for v in found["versions"]
    ]
    past = [[h["alias"], h["version"], h["from"], h["to"], h["by"], h.get("reason")] for h in found["history"]]

    def text() -> str:
        versions = table(rows, ["version", "run", "created", "verified", "metrics"])
        return versions + "\n\n" + table(past, ["alias", "version", "from", "to", "by", "reason"]) if past else versions

    out(found, json, text)


def _verified(result: dict[str, Any] | None) -> str | None:
    """What `verify` or the gate found, in a cell."""
    if not result:
        return None
    return f"{len(result['doors'])} doors alike" if result["passed"] else "doors differ"


@app.command(epilog=example("seekray models promote digits 3 --to champion"))
def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version to promote.")],
    alias: Alias = "champion",
    tolerance: Annotated[float, typer.Option(help="How much worse than the champion is still accepted.")] = 0.0,
    metric: Annotated[str | None, typer.Option(help="The metric to compare; default by task.")] = None,
    data: Annotated[str | None, typer.Option(help="Compare on this data instead of the held-out rows.")] = None,
    force: Annotated[str | None, typer.Option(help="Promote all the same; the reason is recorded.")] = None,
    json: Json = False,
) -> None:
    """Move an alias to a version, if it is verified and not worse than the version that holds it."""
    from seekray.promotion import promote as move
    from seekray.settings import settings

    found = move(name, version, alias, settings(), tolerance=tolerance, metric=metric, data=data, force=force)
    out(found, json, lambda: found["message"])


@app.command(epilog=example("seekray models rollback digits --alias champion"))
def rollback(name: Name, alias: Alias = "champion", json: Json = False) -> None:
    """Give an alias back to its previous holder."""
    from seekray.settings import settings
    from seekray.tracking import registry

    found = registry.rollback(name, alias, settings())
    out(found, json, lambda: f"{name}@{alias} is version {found['version']} again")


@app.command(epilog=example("seekray models export digits@champion --out digits-bundle"))
def export(
    model: Model,
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    form: Annotated[str, typer.Option("--format", help="bundle, or huggingface: a folder for transformers.")] = "bundle",
    json: Json = False,
) -> None:
    """Copy a model's bundle to a folder, or write its weights and tokenizer as Hugging Face's LlamaForCausalLM."""
    import shutil

    from seekray.errors import UserError
    from seekray.model_ref import resolve
    from seekray.settings import settings

    if form not in ("bundle", "huggingface"):
        raise UserError(f"--format: {form!r} given, expected bundle or huggingface", field="format")
    found = resolve(model, settings())
    if folder.exists():
        raise UserError(f"{folder} is there already; give a new folder with --out")
    if form == "huggingface":
        from seekray.huggingface import write_folder

        write_folder(found.bundle, folder)
    else:
        shutil.copytree(found.bundle, folder)
    answer = {"name": found.name, "version": found.version, form if form == "huggingface" else "bundle": str(folder)}
    out(answer, json, lambda: f"{found.name} → {folder}")


@app.command("import", epilog=example("seekray models import ./llama --name chat"))
def import_(
    folder: Annotated[Path, typer.Argument(help="A folder of a LlamaForCausalLM: config.json, tokenizer.json, safetensors.")],
    name: Annotated[str, typer.Option(help="The registered model that it becomes a version of.")],
    json: Json = False,
) -> None:
    """Register a Hugging Face folder as a model that can be fine-tuned (model.init_from), served and evaluated."""
    import dataclasses

    from seekray.model_import import import_huggingface
    from seekray.settings import settings

    done = import_huggingface(folder, name, settings())
    version = f"version {done.version}" if done.version else "registered when the server is reached: seekray sync"
    out(dataclasses.asdict(done), json, lambda: f"{folder} → {name}, {version}\n{done.bundle}")
