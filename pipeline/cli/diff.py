"""`pipeline diff`: the differences between two runs or recipes."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recipes.comparing import Comparison

SHORT = 16
TITLES = {"settings": "settings", "recipe": "places and speed"}
# Hashes, shortened: their beginning tells them apart.
DIGESTS = ("data_digest", "git_commit", "init_fingerprint")


def add_to(app: typer.Typer) -> None:
    """Add `diff` to `app`."""
    app.command()(diff)


def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A recipe's file, a run's folder, or runs:/ID.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other recipe or run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two runs or recipes: settings, data, code, machine, curves.

    Settings include defaults. The exit code is 0 whether the two differ or not.

    Example: pipeline diff runs/imagenet/base runs/cured/base
    """
    from recipes.comparing import compare, side

    comparison = compare(side(a), side(b))
    if as_json:
        echo(json.dumps(comparison.to_dict(), indent=2))
        return
    for line in _lines(comparison):
        echo(line)


def _lines(comparison: Comparison) -> Iterator[str]:
    yield f"A: {comparison.a}"
    yield f"B: {comparison.b}"
    for part, group in groupby(comparison.differences, key=lambda difference: difference.part):
        yield f"{TITLES.get(part, part)}:"
        for difference in group:
            short = SHORT if difference.key in DIGESTS else None
            sides = (difference.a, difference.b)
            a, b = ("–" if value is None else value[:short] for value in sides)
            yield f"  {difference.key}: {a} -> {b}"
    if not comparison.differences:
        yield "no difference in settings" + (", data and code" if comparison.curves else "")
    for part in comparison.unknown:
        yield f"{part}: known for only one of the two"
    if comparison.curves:
        yield "curves:"
    for point in comparison.curves:
        (step_a, value_a), (step_b, value_b) = point.a, point.b
        text = f"  {point.metric}: {value_a:.4g} at step {step_a} -> {value_b:.4g} at {step_b}"
        if point.both is not None and step_a != step_b:
            step, mine, other = point.both
            text += f"; at step {step}, which both have, {mine:.4g} -> {other:.4g}"
        yield text
