"""submit, and jobs list, logs, stop."""

from __future__ import annotations

from typing import Annotated

import typer

from seekray.cli.common import Json, example, note, out, table

app = typer.Typer(no_args_is_help=True)
Address = Annotated[str | None, typer.Option(help="The cluster's dashboard, http://host:8265; default RAY_ADDRESS.")]
Job = Annotated[str, typer.Argument(help="A job id; `seekray jobs list` shows them.")]


def add(parent: typer.Typer) -> None:
    """Add the verb."""
    parent.command(
        epilog=example("seekray submit train experiment.yaml --address http://head:8265 --set training.epochs=5"),
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(submit)


def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(help="train, tune, evaluate or predict.")],
    file: Annotated[str, typer.Argument(help="The experiment file of train and tune, or the MODEL of evaluate and predict.")],
    address: Address = None,
    ship_data: Annotated[bool, typer.Option("--ship-data", help="Send the data file along (up to 50 MiB).")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the log and exit with the job's code.")] = True,
    json: Json = False,
) -> None:
    """Run a verb on a Ray cluster; further options are the verb's own."""
    from seekray import submission

    job = submission.submit(verb, file, context.args, address=address, ship_data=ship_data, say=note)
    if wait:
        try:
            for text in submission.follow(job["job_id"], address):
                note(text.rstrip("\n"))
        except KeyboardInterrupt:
            note(f"the job goes on; `seekray jobs logs {job['job_id']} --follow` or `seekray jobs stop {job['job_id']}`")
            raise
        job = submission.info(job["job_id"], address)
    out(job, json, lambda: f"{job['job_id']}  {job['status']}")
    raise typer.Exit(job.get("exit_code") or 0)


@app.command("list", epilog=example("seekray jobs list --address http://head:8265"))
def list_(address: Address = None, json: Json = False) -> None:
    """Jobs of a cluster, newest first."""
    from seekray import submission

    found = submission.jobs(address)
    rows = [[j["job_id"], j["status"], j["started"], j["entrypoint"]] for j in found]
    out({"jobs": found}, json, lambda: table(rows, ["job", "status", "started", "command"]))


@app.command(epilog=example("seekray jobs logs raysubmit_123 --follow"))
def logs(job: Job, address: Address = None, follow: Annotated[bool, typer.Option(help="Go on until it ends.")] = False) -> None:
    """A job's log."""
    from seekray import submission

    for text in submission.follow(job, address) if follow else [submission.log(job, address)]:
        print(text, end="", flush=True)


@app.command(epilog=example("seekray jobs stop raysubmit_123"))
def stop(job: Job, address: Address = None, json: Json = False) -> None:
    """Stop a job; its run can be resumed."""
    from seekray import submission

    found = submission.stop(job, address)
    out(found, json, lambda: f"{found['job_id']}  {found['status']}")
