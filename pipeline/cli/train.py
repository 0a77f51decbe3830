"""`pipeline train` and `export`: train a recipe's stages here; turn checkpoints into models."""

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
        typer.Argument(
            metavar="[key=value]...", help="Settings to change in the recipe: stages.0.steps=200."
        ),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Train only the runs of this stage.")] = None,
    rate_weight: Annotated[
        float | None, typer.Option(help="Train only the runs at this rate weight.")
    ] = None,
    accelerate: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG.yaml", help="Launch file, such as recipes/accelerate/gpu.yaml."
        ),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CHECKPOINT",
            help="Start a new run from a step of the run, a checkpoint's folder or a run's folder, "
            "with the recipe's current settings. The parent is recorded.",
        ),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin at step 0; earlier checkpoints are set aside.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Describe the runs and time a few steps; write nothing."),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Price of an hour of one process, for the costs in --dry-run."),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Profile a few steps of each run: RUN/profile/*.json.gz."),
    ] = False,
) -> None:
    """Train the stages of a recipe in order.

    To resume after a stop, run the same command again. SIGTERM, SIGUSR1 and SIGHUP make training
    save its state and exit with 75. Ctrl-C makes it save its state and exit with 130; a second
    Ctrl-C ends it without saving.

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
    """Start the training processes, with `words` as their arguments; return their exit code."""
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
        bool,
        typer.Option("--force", help="Replace the file, even if it is not an export of this run."),
    ] = False,
    best: Annotated[
        bool,
        typer.Option("--best", help="Take the run's checkpoint with the lowest held-out cost."),
    ] = False,
    half: Annotated[
        bool,
        typer.Option("--half", help="Round the weights to float16, for a file of half the size."),
    ] = False,
) -> None:
    """Turn a checkpoint into a model, also while its run trains or after it was stopped.

    By default, take a run's newest checkpoint. Checkpoints of every launch work, including those
    of ZeRO. A finished run already has its model.

    Example: pipeline export runs/cca-paper/base-high --best --out base-so-far
    """
    from recipes.training.export import export_checkpoint

    file, checkpoint = export_checkpoint(source, out, best=best, force=force, half=half)
    echo(f"{file}: step {checkpoint.step} of {checkpoint.about['run'].get('name', source)}")


def launch_options(recipe: Asked, config: Path | None) -> tuple[list[str], dict[str, str]]:
    """Return options of `accelerate launch` for this machine, and environment variables to set."""
    from recipes.launching.local import local_options

    return local_options(recipe, config)
