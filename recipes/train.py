"""Train the runs of a recipe: `accelerate launch recipes/train.py RECIPE.yaml [key=value ...]`.

Runs that are done are skipped, a run that was cut goes on from its last checkpoint. Exit codes:
0 all is trained, 1 training failed, 2 the recipe or the launch is wrong, 75 asked to stop (SIGTERM
or SIGUSR1) with the state kept, so start it again, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run by its path, Python looks for modules beside this file: the rooms are one folder up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.common.errors import INTERRUPTED, explained
from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.training.signals import AGAIN, StopRequest

log = logging.getLogger("recipes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as `arguments` say; return the exit code."""
    given = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop = StopRequest()
    stop.listen()
    try:
        recipe = load_recipe(given.recipe, given.overrides)
        runs = choose(recipe.runs(), given.stage, given.rate_weight)
        if given.dry_run:
            return dry_run(runs, stop, given.overrides)
        return train(runs, stop, given.overrides, profile=given.profile)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        known = explained(error)
        if given.debug or known is None:
            raise
        code, sentence = known
        log.error("train: %s", sentence)
        return code


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("train.py", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--stage", help="only the runs of this stage")
    parser.add_argument("--rate-weight", type=float, help="of these, only the one at this weight")
    parser.add_argument("--dry-run", action="store_true", help="describe, try one step, stop")
    parser.add_argument(
        "--profile", action="store_true", help="record a few steps of each run by torch's profiler"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_intermixed_args(arguments)


def choose(runs: Sequence[Run], stage: str | None, rate_weight: float | None) -> list[Run]:
    """Return the runs that the command line asks for; raises `RecipeError` when there are none."""
    chosen = [run for run in runs if stage in (None, run.stage.name)]
    if rate_weight is not None:
        chosen = [run for run in chosen if run.rate_weight == rate_weight]
    if not chosen:
        weights = ["" if run.rate_weight is None else f" {run.rate_weight:g}" for run in runs]
        known = ", ".join(run.stage.name + w for run, w in zip(runs, weights, strict=True))
        asked = [f"--stage {stage}"] if stage is not None else []
        asked += [f"--rate-weight {rate_weight:g}"] if rate_weight is not None else []
        raise RecipeError(f"no run is of {' '.join(asked)} (there are: {known})")
    return chosen


def train(
    runs: Sequence[Run], stop: StopRequest, overrides: Sequence[str], *, profile: bool = False
) -> int:
    """Train `runs` one after another; return the exit code."""
    from pipeline.common.progress import progress, silent
    from recipes.launching import processes as launch
    from recipes.training import preflight as check
    from recipes.training.loop import Interrupted, Session, Trainer

    check.before_work(runs)
    accelerator = launch.start(runs[0].recipe)
    check.for_processes(runs, accelerator)
    for number, run in enumerate(runs, 1):
        if complete(run, accelerator):
            continue
        title = f"{run.id} ({number} of {len(runs)})"
        with progress(title, "steps") as report, launch.held_by_first(accelerator, run.folder):
            # Another job may have had the folder since.
            if complete(run, accelerator):
                continue
            shown = report if accelerator.is_main_process else silent
            try:
                Trainer(run, Session(accelerator, stop, shown, overrides, profile)).train()
            except Interrupted as error:
                stop.ignore()
                log.info("train: %s", error)
                return AGAIN
        accelerator.free_memory()
    return 0


def complete(run: Run, accelerator: Any) -> bool:
    """Tell whether `run` is trained already, as the first process sees its folder."""
    from recipes.launching import processes as launch

    done: bool = launch.from_first(accelerator, run.complete)
    if done:
        log.info("%s: is trained already", run.id)
    return done


def dry_run(runs: Sequence[Run], stop: StopRequest, overrides: Sequence[str]) -> int:
    """Print what `runs` would do and try one step of the first; return the exit code."""
    from pipeline.common.progress import silent
    from recipes.launching import processes as launch
    from recipes.training import dry_run as dry
    from recipes.training import preflight as check
    from recipes.training.loop import Session, Trainer

    check.before_work(runs)
    accelerator = launch.start(runs[0].recipe)
    check.for_processes(runs, accelerator)
    session = Session(accelerator, stop, silent, overrides)
    for line in dry.describe(runs, Trainer(runs[0], session)):
        if session.main:
            sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
