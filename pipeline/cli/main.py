"""The `pipeline` command: its subcommands, and how an error becomes a sentence and an exit code."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.cli import (
    calibrate,
    cluster,
    codec,
    diff,
    doctor,
    evaluate,
    is_program,
    models,
    recipes,
    shard,
    started,
    train,
)
from pipeline.cli.output import echo
from pipeline.common.errors import FAILURE, USAGE, explained
from pipeline.common.locale import insist_on_utf8
from pipeline.common.secrets import redacted

# The order of `pipeline --help`; a command of no group is listed under OTHER.
GROUPS = {
    "Data": ("shard", "verify", "inspect"),
    "Training": ("train", "export", "diff"),
    "Codec": ("compress", "decompress", "evaluate", "import", "calibrate"),
    "Registry": ("register", "models", "promote", "lineage", "deliver"),
    "Cluster": ("schedule", "status", "logs", "cancel", "retry"),
    "Help": ("recipes", "doctor"),
}
OTHER = "Other"
# An empty word: as a path it would mean the working folder.
EMPTY = re.compile(r"(--[\w-]+=)?")
# Options for which an empty word means "none".
MAY_BE_EMPTY = ("--peers",)
WHOLE = 10_000  # characters of a command's first sentence, which is never cut


class Commands(TyperGroup):
    """The group of commands: an error inside one becomes a sentence and an exit code."""

    debug = False

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands by group, each with its whole first sentence."""
        for title, names in grouped(self.commands).items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(WHOLE)) for name in names]
                )

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer itself reports bad usage of options and arguments."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if type(error).__module__.split(".")[0] == "typer":
                raise  # typer reports what it finds wrong itself
            code, sentence = explained(error) or (
                FAILURE,
                f"{type(error).__name__}: {error} (run again with --debug for the traceback)",
            )
            if self.debug:
                traceback.print_exc()
            for line in (f"pipeline: {sentence}", *getattr(error, "__notes__", ())):
                echo(redacted(line), err=True)
            raise typer.Exit(code) from error


def build() -> typer.Typer:
    """Return the command with all its subcommands; imports nothing heavy."""
    app = typer.Typer(
        name="pipeline",
        cls=Commands,
        help="Train learned image codecs at scale and use them. Every command accepts --debug, "
        "which shows the traceback of an error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for room in (shard, train, diff, evaluate, codec, calibrate, models, cluster, recipes, doctor):
        room.add_to(app)
    return app


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the commands `names` by the title of their group, without empty groups."""
    left = list(names)
    groups = {title: [name for name in names if name in left] for title, names in GROUPS.items()}
    known = {name for group in groups.values() for name in group}
    groups[OTHER] = [name for name in left if name not in known]
    return {title: group for title, group in groups.items() if group}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `pipeline` with `arguments` (default: the process's own) and exit.

    Exit codes: 0 success, 2 bad usage or bad input, 1 failure at run time, 130 interrupted.
    """
    started()
    if arguments is None and is_program():
        insist_on_utf8()
    words = list(sys.argv[1:] if arguments is None else arguments)
    Commands.debug = "--debug" in words
    before = ["", *words]
    if any(
        EMPTY.fullmatch(w) and b not in MAY_BE_EMPTY for b, w in zip(before, words, strict=False)
    ):
        echo("pipeline: an argument is empty: is a variable of your shell not set?", err=True)
        raise SystemExit(USAGE)
    build()(args=[word for word in words if word != "--debug"], prog_name="pipeline")


if __name__ == "__main__":
    main()
