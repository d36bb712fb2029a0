"""The command `seekray`. Verbs are a few lines each; what they do is imported inside them, so that `--help` is fast."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from seekray.cli import generate, jobs, keys, models, project, runs, serve, training

app = typer.Typer(
    name="seekray",
    help="Train, tune, track, register and serve the DeepSeek model families on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
for module in (project, training, generate, jobs):
    module.add(app)
app.add_typer(project.config, name="config", help="Show an experiment whole, or its JSON Schema.")
app.add_typer(models.app, name="models", help="The model registry: versions, aliases, promotion.")
app.add_typer(runs.app, name="runs", help="Runs: list, show, compare.")
app.add_typer(serve.app, name="serve", help="Endpoints on Ray Serve.")
app.add_typer(keys.app, name="keys", help="Keys that the endpoints ask for.")
app.add_typer(jobs.app, name="jobs", help="Jobs on a Ray cluster.")


def main() -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the input is wrong, 130 interrupted."""
    from seekray.log import tell

    sys.path.append(os.getcwd())  # for `family: mymodule:MyFamily` beside the experiment
    try:
        result = app(standalone_mode=False, prog_name="seekray")  # gives the code of a typer.Exit back
        code = result if isinstance(result, int) else 0
        if code == 130:  # Typer makes Ctrl-C an exit code
            raise KeyboardInterrupt
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = tell(KeyboardInterrupt()) or 130
    except Exception as error:
        code = _usage_error(error) or tell(error) or 0
        if not code:
            raise  # a bug keeps its traceback
    sys.exit(code)


def _usage_error(error: Exception) -> int | None:
    """The exit code of an error in the command line itself, which is shown; None for others."""
    from seekray.errors import UserError
    from seekray.log import tell

    show = getattr(error, "show", None)
    if show is None:
        return None
    if "--json" in sys.argv[1:]:
        return tell(UserError(error.format_message()))  # type: ignore[attr-defined]
    show()
    return int(getattr(error, "exit_code", 2))
