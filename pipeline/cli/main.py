"""The `pipeline` command: gathers the commands, turns errors into a sentence and a code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.cli import cluster, codec, doctor, evaluate, models, recipes, shard, train

# Exit codes: bad usage or input, a failure at run time, Ctrl-C, and what typer reports itself.
USAGE, FAILURE, INTERRUPTED, PASS = 2, 1, 130, -1
ROOMS = ("pipeline", "shards", "recipes", "orchestration")


class Commands(TyperGroup):
    """The group of commands: an error inside one becomes a sentence and an exit code."""

    debug = False

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer itself reports bad usage of options and arguments."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code, sentence = explain(error)
            if code == PASS:
                raise
            if self.debug:
                traceback.print_exc()
            typer.echo(f"pipeline: {sentence}", err=True)
            raise typer.Exit(code) from error


def build() -> typer.Typer:
    """Return the command with all its subcommands; imports nothing heavy."""
    app = typer.Typer(
        name="pipeline",
        cls=Commands,
        help="Train learned image codecs at scale, and use them. "
        "Every command takes --debug, which shows the traceback of an error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for room in (shard, train, evaluate, codec, models, cluster, recipes, doctor):
        room.add_to(app)
    return app


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one sentence that `error` deserves (PASS: typer's own)."""
    room = type(error).__module__.split(".")[0]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; what was complete is kept, run the same command to go on"
    if room == "typer":
        return PASS, ""
    if isinstance(error, ValueError) and room in ROOMS:
        return USAGE, str(error)
    if room in ROOMS or isinstance(error, OSError):
        return FAILURE, str(error)
    return FAILURE, f"{type(error).__name__}: {error} (run again with --debug for the traceback)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `pipeline` with `arguments` (default: the process's own) and exit.

    Exit codes: 0 success, 2 bad usage or bad input, 1 failure at run time, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    Commands.debug = "--debug" in words
    build()(args=[word for word in words if word != "--debug"], prog_name="pipeline")


if __name__ == "__main__":
    main()
