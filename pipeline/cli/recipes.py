"""`pipeline recipes`: the recipes, launch files and profiles that come with the project."""

from __future__ import annotations

import difflib
import json
import textwrap
from typing import Annotated

import typer

from pipeline.cli.output import echo


def add_to(app: typer.Typer) -> None:
    """Add `recipes` to `app`."""
    app.command()(recipes)


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this file, as a start for one of your own.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="KEY",
            help="Explain a setting of recipes, such as stages.lr or spike, or `all` of them.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print names and places as one JSON document.")
    ] = False,
) -> None:
    """List the recipes, launch files and profiles that come with the project, or print one.

    Every command finds these files by their names, from any folder. A file of the same name in
    the working folder takes precedence.

    Example: pipeline recipes recipes/imagenet.yaml > mine.yaml
    """
    from recipes.config.bundled import listed, purpose

    if key is not None:
        _explain(key)
        return
    known = dict(listed())
    if name is not None and name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}?" if close else "`pipeline recipes` lists them"
        raise typer.BadParameter(f"the project has no file {name}; {hint}")
    if as_json:
        echo(json.dumps({file: str(path) for file, path in known.items()}))
    elif name is not None:
        echo(known[name].read_text(), nl=False)
    else:
        width = max(map(len, known))
        for file, path in known.items():
            echo(f"{file:<{width}}  {purpose(path)}".rstrip())


def _explain(key: str) -> None:
    from recipes.config.explain import explain, settings

    for setting in settings() if key == "all" else explain(key):
        echo(f"{setting.key}: {setting.kind}; {setting.default}")
        if setting.meaning:
            echo(textwrap.fill(setting.meaning, 78, initial_indent="  ", subsequent_indent="  "))
