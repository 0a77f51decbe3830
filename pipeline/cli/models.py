"""`pipeline register`, `models`, `promote`, `lineage`: the registry; `deliver`: late records."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import echo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.tracking import Version

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(register)
    app.command()(models)
    app.command()(promote)
    app.command()(lineage)
    app.command()(deliver)


def register(
    name: Annotated[str, typer.Option(help="The registered model to add the version to.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="[CHECKPOINT-or-RUN]",
            help="A checkpoint, a model or a run. Default: box, the model that comes with the "
            "package.",
            show_default=False,
        ),
    ] = "box",
    alias: Annotated[
        str | None, typer.Option(help="An alias to set on the version, such as champion.")
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(help="The results.json that `pipeline evaluate` wrote for this model."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a trained codec to the registry, with its origin and its measurements.

    If NAME already has this codec, its version stays, and its tags and alias are updated.

    Example: pipeline register runs/mse/w0.85 --name cca --alias challenger --metrics results.json
    """
    from pipeline.tracking import measurements, register_model

    measured = measurements(metrics, source) if metrics else None
    version = register_model(source, name, alias, measured)
    aliases = "".join(f", @{a}" for a in version.aliases)
    # With --json, the log of a job still gets a line for people.
    echo(f"{version.uri}{aliases}", err=as_json)
    if as_json:
        echo(json.dumps(version.to_dict(), indent=2))


def models(
    name: Annotated[
        str | None, typer.Argument(help="List only the versions of this model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List registered versions with their aliases, rate, quality, stage and run.

    Example: pipeline models cca
    """
    from pipeline.tracking import list_versions

    versions = list_versions(name)
    if as_json:
        echo(json.dumps([version.to_dict() for version in versions], indent=2))
    elif versions:
        _print_tables(versions)
    else:
        echo("no model is registered yet: pipeline register CHECKPOINT --name NAME")


def promote(
    name: Annotated[str, typer.Argument(help="A registered model with a challenger.")],
    data: Annotated[
        Path, typer.Option(help="A folder of pictures on which to measure both trainings.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Keep the evaluation and its report in this folder.")
    ] = None,
    device: Annotated[str, typer.Option(help="The device: auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Make the challenger the champion if its curve is better beyond the noise.

    The versions of both trainings code the pictures. Resampling the pictures (bootstrap) shows how
    reliable the BD-rate is. Prints the decision and its reason; the exit code is 0 either way.

    Example: pipeline promote cca --data kodak
    """
    import tempfile

    from pipeline.cli.challenge import decide
    from recipes.config.bundled import shipped

    with tempfile.TemporaryDirectory() as folder:
        decision = decide(name, shipped(data), out or Path(folder, "evaluation"), device)
    outcome = "moved to" if decision.better else "stays, not moved to"
    # With --json, the log of a job still gets a line for people.
    echo(f"@champion {outcome} {decision.challenger}: {decision.why}", err=as_json)
    if as_json:
        echo(json.dumps(decision.to_dict(), indent=2))


def lineage(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION, any other MODEL, or a run.")],
    as_json: AsJson = False,
) -> None:
    """Trace a model back through its stages and recipe to the shards and their source.

    Example: pipeline lineage models:/cca@champion
    """
    from pipeline.cli.lineage import lines_of
    from pipeline.tracking import lineage as trace

    traced = trace(model)
    echo(json.dumps(traced.to_dict(), indent=2) if as_json else "\n".join(lines_of(traced)))


def deliver(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, searched recursively.")],
    seconds: Annotated[float, typer.Option(help="Seconds to try for each run.")] = 60.0,
) -> None:
    """Send the records that runs could not send while the tracking server was down.

    A run that still trains sends its records itself; use this command for runs that have ended.

    Example: pipeline deliver out
    """
    from pipeline.tracking import StoreError, TrackingError
    from pipeline.tracking import deliver as send

    runs = [s.parent.parent for folder in folders for s in folder.rglob("tracking/state.json")]
    if not runs:
        raise TrackingError(f"there are no runs in {', '.join(map(str, folders))}")
    left = [str(folder) for folder in sorted(runs) if not send(folder, seconds)]
    if left:
        raise StoreError(f"the tracking store can't be reached; records still wait in {left[0]}")
    echo(f"delivered, {len(runs)} in all" if len(runs) > 1 else "delivered")


def _print_tables(versions: Sequence[Version]) -> None:
    """Print a table for each model."""
    from rich.console import Console
    from rich.table import Table

    # Where it is not a terminal, nothing is cut to a terminal's width.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for name in dict.fromkeys(version.name for version in versions):
        table = Table("version", "aliases", "stage", title=f"models:/{name}", title_justify="left")
        for column in ("rate weight", "bpp", "PSNR dB", "MS-SSIM", "BD-rate to JPEG %", "step"):
            table.add_column(column, justify="right")
        for column in ("measured on", "run"):
            table.add_column(column)
        for version in versions:
            if version.name == name:
                table.add_row(*_cells(version))
        console.print(table)


def _cells(version: Version) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def measured(key: str, value: float | None, form: str) -> str:
        ends = version.ranges.get(key, (value,))
        return " to ".join(number(end, form) for end in ends)

    weights = version.rate_weights[:: len(version.rate_weights) - 1] if version.rate_weights else ()
    return [
        str(version.version),
        " ".join(f"@{alias}" for alias in version.aliases),
        " ".join(dict.fromkeys(part for part in (version.stage, version.distortion) if part))
        or "-",
        " to ".join(f"{w:g}" for w in weights) or number(version.rate_weight, "g"),
        measured("bpp", version.bpp, ".4f"),
        measured("psnr", version.psnr, ".2f"),
        measured("ms_ssim", version.ms_ssim, ".4f"),
        number(version.bd_rate.get("jpeg.psnr"), "+.1f"),
        number(version.step, "d"),
        version.measured_on or "-",
        version.run_id[:8] if version.run_id else "-",
    ]
