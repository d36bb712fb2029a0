"""serve up, status, down, build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seekray.cli.common import Address, Json, example, note, out, table

if TYPE_CHECKING:
    from seekray_serve.lifecycle.ready import ModelToServe

app = typer.Typer(no_args_is_help=True)
Models = Annotated[list[str], typer.Argument(help="digits@champion, wine/2, models:/…, runs:/ID or bundle folders.")]
Host = Annotated[str | None, typer.Option(help="Address to bind; default 127.0.0.1.")]
Insecure = Annotated[
    bool, typer.Option("--insecure-no-auth", help="Ask for no key, and agree to ports beyond loopback that ask for none.")
]
Port = Annotated[int | None, typer.Option(help="Port; default 8000.")]


def models_to_serve(references: list[str]) -> list[ModelToServe]:
    """Resolve what the command line names. Raises ModelNotFoundError."""
    from seekray.errors import UserError
    from seekray.settings import settings
    from seekray_serve.lifecycle.models_file import to_serve

    found: list[ModelToServe] = []
    for reference in references:
        model = to_serve(reference, settings())
        if model.name in {m.name for m in found}:
            raise UserError(f"{model.name} is named twice; an address serves one version of a model")
        found.append(model)
    return found


@app.command(epilog=example("seekray serve up digits@champion wine/2 --port 8000"))
def up(
    models: Models,
    port: Port = None,
    host: Host = None,
    address: Address = None,
    grpc_port: Annotated[int | None, typer.Option(help="Also Open Inference Protocol over gRPC, at this port.")] = None,
    insecure_no_auth: Insecure = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of a models file: say what would change, and change nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve models; returns when each has answered a real request. A models file (.yaml) says all that is served."""
    from seekray.errors import UserError
    from seekray.settings import settings
    from seekray_serve.keys import KeyStore
    from seekray_serve.lifecycle import declared, deploy

    if insecure_no_auth:
        note("the endpoints ask for no key: everybody who reaches their ports may use the models")
    if any(name.endswith((".yaml", ".yml")) for name in models):
        if len(models) > 1:
            raise UserError(f"a models file says all that is served; give {models[0]} alone")
        if not (json or dry_run):
            note(f"making it as {models[0]} says …")
        done = declared.apply(
            models[0], settings(), host, port,
            address=address, dry_run=dry_run, grpc_port=grpc_port, insecure_no_auth=insecure_no_auth,
        )  # fmt: skip
        out(done, json, lambda: _changes(done) + ("" if dry_run else "\n\n" + _text(done)))
        if done["failed"]:
            raise typer.Exit(1)
        return
    if dry_run:
        raise UserError("--dry-run says what a models file would change; give one, for example: seekray serve up models.yaml")
    wanted = models_to_serve(models)
    if not json:
        note(f"starting {', '.join(m.name for m in wanted)} …")
    found = deploy.up(wanted, settings(), host, port, address=address, grpc_port=grpc_port, insecure_no_auth=insecure_no_auth)
    asks = not insecure_no_auth and bool(KeyStore(settings().storage).read())
    out(found, json, lambda: _text(found) + "\n\n" + "\n".join(curl(found["url"], m, asks) for m in wanted))


def _changes(done: dict[str, Any]) -> str:
    """What a models file changes, and what failed, a line each."""
    changes = done["changes"]
    lines = [f"+ {name}" for name in changes["added"]]
    for name, keys in changes["changed"].items():
        lines += [f"~ {name}: {key} {before} → {after}" for key, (before, after) in keys.items()]
    lines += [f"- {name}" for name in changes["removed"]]
    lines += [f"! {name}: {why}" for name, why in done["failed"].items()]
    return "\n".join(lines) or "nothing changes"


def curl(url: str, model: ModelToServe, asks: bool = False) -> str:
    """A line that works as pasted; asks: with the key that $SEEKRAY_API_KEY holds."""
    import json
    import shlex

    path, body = model.example()
    key = ' -H "Authorization: Bearer $SEEKRAY_API_KEY"' if asks else ""
    return f"curl -s {url}/{model.name}/{path}{key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def _text(found: dict[str, Any]) -> str:
    if not found["models"]:
        return "nothing is served; start with: seekray serve up MODEL"
    named = {m["name"]: f"{m['name']}@{m['alias']}" if m["alias"] else m["name"] for m in found["models"]}
    rows = [[named[m["name"]], m["version"], m["state"], m["replicas"], m["url"]] for m in found["models"]]
    lines = [table(rows, ["model", "version", "state", "replicas", "url"]), f"front door: {found['url']}"]
    if "grpc" in found:
        lines.append(f"gRPC: {found['grpc']}, with the model's name as the header 'application'")
    for m in found["models"]:
        if last := m["scaling"]:
            lines.append(f"{m['name']}: {last['from']} → {last['to']} replicas at {last['at']}: {last['why']}")
        if m["problem"]:
            lines.append(f"{m['name']}: {m['problem']}")
    return "\n".join(lines)


@app.command(epilog=example("seekray serve status --json"))
def status(address: Address = None, json: Json = False) -> None:
    """What is served."""
    from seekray.settings import settings
    from seekray_serve.lifecycle import deploy

    found = deploy.status(settings(), address=address)
    out(found, json, lambda: _text(found))


@app.command(epilog=example("seekray serve down"))
def down(address: Address = None, json: Json = False) -> None:
    """End everything that `serve up` started."""
    from seekray.settings import settings
    from seekray_serve.lifecycle import deploy

    found = deploy.down(settings(), address=address)
    out(found, json, lambda: f"stopped: {', '.join(found['stopped']) or 'nothing was running'}")


@app.command(epilog=example("seekray serve build digits@champion --out serve.yaml"))
def build(
    models: Models,
    file: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("serve.yaml"),
    port: Port = None,
    host: Host = None,
    insecure_no_auth: Insecure = False,
    json: Json = False,
) -> None:
    """Write a config file that plain `serve deploy` accepts."""
    from seekray.settings import settings
    from seekray_serve.lifecycle import deploy, place
    from seekray_serve.lifecycle.consent import auth_of

    host = host or place.DEFAULT_HOST
    auth = auth_of(host, settings(), insecure_no_auth)
    config = deploy.build(models_to_serve(models), file, host, port or place.DEFAULT_PORT, auth=auth)
    out(config, json, lambda: f"wrote {file}; deploy it with: serve deploy {file}")
