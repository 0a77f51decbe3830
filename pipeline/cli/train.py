"""`pipeline train` and `export`: a recipe's stages on this machine; models of checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.common.machine import usable_cores

if TYPE_CHECKING:
    from recipes.config.schema import Recipe

INTERRUPTED = 130
# How often a signal is passed on again: a process that is still starting lets it pass.
SECONDS_BETWEEN_SIGNALS = 2.0


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Describe the runs, try one step, write nothing.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Record a few steps of each run: RUN/profile/*.json.gz."),
    ] = False,
) -> None:
    """Train the stages of a recipe in order; run again to go on after a stop.

    SIGTERM and SIGUSR1 make it keep its state and exit with 75, which says: run me again.

    Example: pipeline train recipes/imagenet.yaml data.train=shards-out model=tiny
    """
    from recipes.config.bundled import shipped
    from recipes.config.load import load_recipe
    from recipes.train import choose

    loaded = load_recipe(recipe, overrides or [])
    choose(loaded.runs(), stage, rate_weight)
    selection = [] if stage is None else ["--stage", stage]
    selection += [] if rate_weight is None else ["--rate-weight", str(rate_weight)]
    selection += ["--dry-run"] if dry_run else []
    selection += ["--profile"] if profile else []
    script = Path(sys.modules["recipes"].__path__[0]) / "train.py"
    how, environment = launch_options(loaded, accelerate and shipped(accelerate))
    command = [sys.executable, "-m", "recipes.launching.accelerate", *how, str(script), str(recipe)]
    code = run([*command, *(overrides or []), *selection], environment)
    if code:
        raise typer.Exit(code)


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN-or-CHECKPOINT", help="A run's folder, or a checkpoint's.")
    ],
    out: Annotated[Path, typer.Option(help="The model: a folder, or a .safetensors file.")],
    best: Annotated[
        bool, typer.Option("--best", help="Of a run: the lowest held-out cost, not the newest.")
    ] = False,
) -> None:
    """Turn a checkpoint into a model, while its run goes on or after it was cut.

    All launches alike, ZeRO among them. A run that is done has its model already.

    Example: pipeline export runs/cca-paper/base-high --best --out base-so-far
    """
    from recipes.training.export import export_checkpoint

    file, checkpoint = export_checkpoint(source, out, best=best)
    typer.echo(f"{file}: step {checkpoint.step} of {checkpoint.about['run'].get('name', source)}")


def launch_options(recipe: Recipe, config: Path | None) -> tuple[list[str], dict[str, str]]:
    """Return what `accelerate launch` needs on this machine: options, and variables to set."""
    if config is not None:
        if not config.is_file():
            raise typer.BadParameter(f"there is no file {config}", param_hint="--accelerate")
        return ["--config_file", str(config)], {}
    import torch

    gpus = torch.cuda.device_count()
    processes = recipe.processes or max(1, gpus)
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += ["--num_processes", str(processes)]
    # OMP_NUM_THREADS holds as it does for `accelerate launch` itself: a busy machine wants fewer.
    set_already = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(set_already) if set_already.isdecimal() else usable_cores() // processes
    threads = max(1, threads)
    options += ["--num_cpu_threads_per_process", str(threads)]
    if processes > 1:
        # On a CPU this starts the right processes, as long as the variable is set.
        return [*options, "--multi_gpu"], {} if gpus else {"ACCELERATE_USE_CPU": "true"}
    return ([*options] if gpus else [*options, "--cpu"]), {}


def run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run `command`, pass signals on to what it starts, return its exit code."""
    process = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
    asked: list[int] = []
    passed_on = {
        signal.SIGTERM: signal.SIGUSR1,
        signal.SIGUSR1: signal.SIGUSR1,
        signal.SIGINT: signal.SIGINT,
    }

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(passed_on[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in passed_on}
    try:
        return _wait(process, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes], asked: list[int]) -> int:
    while True:
        try:
            code = process.wait(SECONDS_BETWEEN_SIGNALS if asked else 0.5)
        except subprocess.TimeoutExpired:
            if asked:
                _signal_descendants(process.pid, asked[-1])
            continue
        return INTERRUPTED if asked and asked[-1] == signal.SIGINT else code


def _signal_descendants(pid: int, number: int) -> None:
    """Signal all that the launcher has started; the launcher itself lets these signals pass."""
    from importlib import import_module

    psutil: Any = import_module("psutil")
    try:
        for child in psutil.Process(pid).children(recursive=True):
            child.send_signal(number)
    except psutil.Error:
        return
