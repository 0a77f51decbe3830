"""Output of commands, without the control characters that names from outside may have."""

from __future__ import annotations

import typer

from pipeline.common.printable import LAYOUT, printable


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write `text` to standard output, or with `err` to standard error."""
    typer.echo(printable(text, LAYOUT), err=err, nl=nl)
