"""keys create, list, revoke: who may ask the endpoints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seekray.cli.common import Json, example, out, table

app = typer.Typer(no_args_is_help=True)


def _store() -> Any:
    from seekray.settings import settings
    from seekray_serve.keys import KeyStore

    return KeyStore(settings().storage)


@app.command(epilog=example("seekray keys create laptop --expires 30d"))
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    expires: Annotated[str | None, typer.Option(help="How long it lives: 45m, 12h, 30d; default for ever.")] = None,
    json: Json = False,
) -> None:
    """Make a key and show it, this once: only its SHA-256 is kept."""
    from seekray_serve.keys import lifetime, summary

    key, text = _store().create(name, lifetime(expires))
    out(
        {**summary(key), "key": text},
        json,
        lambda: f"{text}\nshown this once; send it as `Authorization: Bearer KEY` (api_key of OpenAI's clients)",
    )


@app.command("list", epilog=example("seekray keys list"))
def list_(json: Json = False) -> None:
    """All keys by their names, the ended ones too."""
    from seekray_serve.keys import summary

    keys = [dict(summary(key)) for key in sorted(_store().read().values(), key=lambda key: key.created)]
    head = ["id", "name", "state", "created", "expires"]
    rows = [[key[column] for column in head] for key in keys]
    out({"keys": keys}, json, lambda: table(rows, head) if keys else "no keys; make one with: seekray keys create NAME")


@app.command(epilog=example("seekray keys revoke laptop"))
def revoke(key: Annotated[str, typer.Argument(help="A key's id or name.")], json: Json = False) -> None:
    """End a key; the endpoints refuse it within seconds."""
    from seekray_serve.keys import summary

    ended = _store().revoke(key)
    out(dict(summary(ended)), json, lambda: f"{ended.name} ({ended.id}) is revoked")
