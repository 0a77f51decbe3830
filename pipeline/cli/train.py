"""`pipeline train` and `export`: a recipe's stages on this machine; models of checkpoints."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import echo

if TYPE_CHECKING:
    from recipes.launching.local import Asked


def add_to(app: typer.Typer) -> None:
    """Add `train` and `export` to `app`."""
    app.command()(train)
    app.command()(export)


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to train.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]...", help="Changes to the recipe: stages.0.steps=200."),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Train only the runs of this stage.")] = None,
    rate_weight: Annotated[
        float | None, typer.Option(help="Of these, only the one at this weight.")
    ] = None,
    accelerate: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG.yaml", help="Launch by this file of recipes/accelerate/."),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CHECKPOINT",
            help="Go on from a step, a checkpoint's folder or a run's, under the settings of now, "
            "as a new run with its parent on record.",
        ),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin at step 0; what there is is set aside.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Describe the runs, time a few steps, write nothing.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Of an hour of one process: --dry-run says what runs will cost."),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Record a few steps of each run: RUN/profile/*.json.gz."),
    ] = False,
) -> None:
    """Train the stages of a recipe in order; run again to go on after a stop.

    SIGTERM, SIGUSR1 and SIGHUP make it keep its state and exit with 75, which says: run me again.
    Ctrl-C does the same and exits with 130; a second one doesn't wait for the state.

    Example: pipeline train recipes/imagenet.yaml data.train=shards-out model=tiny
    """
    from recipes.launching.owner import nothing_started

    changes = overrides or []
    given = {"--stage": stage, "--rate-weight": rate_weight, "--from": origin, "--price": price}
    words = [word for name, value in given.items() if value is not None for word in (name, value)]
    flags = {"--anew": anew, "--dry-run": dry_run, "--profile": profile}
    words += [name for name, given in flags.items() if given]
    with nothing_started():
        from recipes.config.load import load_recipe
        from recipes.train import choose

        loaded = load_recipe(recipe, changes)
        choose(loaded.runs(), stage, rate_weight)
        code = _launch(loaded, accelerate, [str(word) for word in (recipe, *changes, *words)])
    if code:
        raise typer.Exit(code)


def _launch(recipe: Asked, accelerate: Path | None, words: list[str]) -> int:
    """Start the processes that train, `words` after their script, and return their exit code."""
    from recipes.config.bundled import shipped
    from recipes.launching.environment import for_own_launch, listed
    from recipes.launching.owner import run
    from recipes.launching.ranks import THREADS, THREADS_OPTION, forget, refuse_left_over

    script = Path(sys.modules["recipes"].__path__[0]) / "train.py"
    refuse_left_over(os.environ, "`pipeline train` starts its processes itself: unset them")
    how, variables = launch_options(recipe, accelerate and shipped(accelerate))
    environment, ignored = for_own_launch(os.environ)
    forget(environment)
    threads = dict(pairwise(how)).get(THREADS_OPTION)
    if threads is not None and environment.get(THREADS, threads) != threads:
        ignored[THREADS] = environment[THREADS]
    if ignored:
        echo(f"train: ignored, the recipe decides: {listed(ignored)}", err=True)
    variables = {**variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "recipes.launching.accelerate", *how, str(script)]
    return run([*command, *words], {**environment, **variables})


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN-or-CHECKPOINT", help="A run's folder, or a checkpoint's.")
    ],
    out: Annotated[Path, typer.Option(help="The model: a folder, or a .safetensors file.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is no export of this run, too.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run: the lowest held-out cost, not the newest.")
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Round the weights to float16: a file of half the size.")
    ] = False,
) -> None:
    """Turn a checkpoint into a model, while its run goes on or after it was cut.

    All launches alike, ZeRO among them. A run that is done has its model already.

    Example: pipeline export runs/cca-paper/base-high --best --out base-so-far
    """
    from recipes.training.export import export_checkpoint

    file, checkpoint = export_checkpoint(source, out, best=best, force=force, half=half)
    echo(f"{file}: step {checkpoint.step} of {checkpoint.about['run'].get('name', source)}")


def launch_options(recipe: Asked, config: Path | None) -> tuple[list[str], dict[str, str]]:
    """Return what `accelerate launch` needs on this machine: options, and variables to set."""
    from recipes.launching.local import local_options

    return local_options(recipe, config)
