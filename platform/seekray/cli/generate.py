"""generate: what a generative model makes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seekray.cli.common import Address, Json, Model, example, out


def add(app: typer.Typer) -> None:
    """Add the verb."""
    texts = 'seekray generate chat --prompt "Once upon" --max-tokens 50'
    app.command(
        epilog=example(f"seekray generate penguins --rows 1000 --where species=Adelie --out synthetic.parquet, or {texts}")
    )(generate)


def generate(
    model: Model,
    rows: Annotated[int, typer.Option(help="How many rows or images.")] = 100,
    where: Annotated[list[str] | None, typer.Option(help="Only those with this value: --where column=value.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows, images or texts.")] = 0,
    target: Annotated[
        str | None, typer.Option("--out", help="A .parquet, .csv or .jsonl file, or a folder of parts or of PNG files.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes with the model loaded; default by size.")] = None,
    address: Address = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to go on from, written as it is made.")] = None,
    data: Annotated[str | None, typer.Option(help="Prompts: a file or folder, with --out.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of each text.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Fewer do not end a text.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the most likely token.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only those that reach this together.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only those this times as likely as the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: less repetition.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends it.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Texts of each prompt.")] = None,
    json: Json = False,
) -> None:
    """Make rows, images or texts like those a model has learned from; many stream over Ray Data."""
    from seekray.batch.generate import conditions
    from seekray.errors import UserError
    from seekray_jobs import generate as job

    if prompt is None and data is None:
        if target is None:
            raise UserError("--out is missing: a .parquet, .csv or .jsonl file, or a folder (texts: --prompt)", field="out")
        request: dict[str, Any] = {"rows": rows, "seed": seed, "where": conditions(where or [])}
        done = job.run(model, target, request, address=address, workers=workers)
        return out(done, json, lambda: f"{done['rows']:,} rows → {done['out']}")
    given = {
        "max_tokens": max_tokens, "min_tokens": min_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "min_p": min_p, "repetition_penalty": repetition_penalty, "stop": stop or None, "n": n, "seed": seed,
    }  # fmt: skip
    request = {name: value for name, value in given.items() if value is not None}
    if data is not None:
        if prompt or target is None:
            raise UserError("--data takes its prompts from the file, and writes to --out, which is missing", field="out")
        done = job.answer(model, data, target, request, address=address, workers=workers)
        return out(done, json, lambda: f"{done['rows']:,} texts → {done['out']}  ({done['rejected']:,} rejected)")
    return _write(model, prompt or [], request, json, target)


def _write(model: str, prompts: list[str], request: dict[str, Any], json: bool, target: str | None) -> None:
    """One text on the terminal as it is made; several, or with `--json`, when they are done."""
    from seekray.errors import UserError
    from seekray.generator import Generator, json_rows

    if target is not None:
        raise UserError("--prompt writes to the terminal; prompts for a file come from --data", field="out")
    generator = Generator.load(model)
    if not json and len(prompts) == 1 and request.get("n", 1) == 1:
        for text in generator.stream(prompts[0], **request):
            print(text, end="", flush=True)
        return print()
    made = json_rows(generator.generate(prompts, **request))
    return out({"texts": made}, json, lambda: "\n".join(f"== {row['prompt']}\n{row['text']}" for row in made))
