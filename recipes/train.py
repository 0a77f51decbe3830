"""Train the runs of a recipe: `accelerate launch recipes/train.py RECIPE.yaml [key=value ...]`.

Runs that are done are skipped, a run that was cut goes on from its last checkpoint. Exit codes:
0 all is trained, 1 training failed, 2 the recipe or the launch is wrong, 75 asked to stop (SIGTERM,
SIGUSR1 or SIGHUP) with the state kept, so start it again, 130 the same by Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run by its path, Python looks for modules beside this file: the rooms are one folder up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.common.errors import INTERRUPTED, explained
from pipeline.common.locale import insist_on_utf8
from pipeline.common.printable import log_to
from pipeline.common.secrets import redacted
from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.launching import notice, peers, processes
from recipes.launching.signals import StopNow, StopRequest

log = logging.getLogger("recipes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as `arguments` say; return the exit code."""
    given = parse(arguments)
    log_to(sys.stderr)
    stop = StopRequest()
    stop.listen()
    processes.end_with_launcher()
    try:
        return _run(given, stop)
    except StopNow:
        log.info("train: stopped as asked, before the first step")
        return stop.code
    except KeyboardInterrupt:
        log.error("train: ended by Ctrl-C; the steps since the last checkpoint are not kept")
        return INTERRUPTED
    except Exception as error:
        known = explained(error) or peers.lost(error)
        _tell_of_failure(given, type(error).__name__ if known is None else known[1])
        if given.debug or known is None:
            raise
        code, sentence = known[0], redacted(known[1])
        log.error("train: %s", sentence)
        processes.report_failure(f"train: {sentence}")
        return code


def _tell_of_failure(given: argparse.Namespace, sentence: str) -> None:
    if _first() and not given.dry_run:
        notice.send(f"training {given.recipe} failed: {sentence}", status="failed")


def _first() -> bool:
    """Tell whether this is the first of the processes, before they know each other."""
    return os.environ.get("RANK", "0") == "0"


def _run(given: argparse.Namespace, stop: StopRequest) -> int:
    """Train, or try to, what the command line says; return the exit code."""
    with stop.at_once():
        ignored = processes.settle()
        notice.check()
        recipe = load_recipe(given.recipe, given.overrides)
        runs = choose(recipe.runs(), given.stage, given.rate_weight)
        origins = _origins(runs, given.origin, given.anew)
        if given.dry_run:
            return dry_run(runs, stop, given.overrides, origins, given.price)
    session = {"overrides": given.overrides, "profile": given.profile, "ignored": ignored}
    return train(runs, stop, origins, **session)


def _origins(runs: Sequence[Run], origin: str | None, anew: bool) -> Mapping[str, Any]:
    from recipes.training.resume import find_origins

    return find_origins(runs, origin, anew)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("train.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--stage", help="only the runs of this stage")
    parser.add_argument("--rate-weight", type=float, help="only the runs at this rate weight")
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="CHECKPOINT",
        help="start a new run from a step, a checkpoint's folder or a run's folder",
    )
    parser.add_argument(
        "--anew", action="store_true", help="begin at step 0; set earlier checkpoints aside"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="describe the runs and time a few steps"
    )
    parser.add_argument(
        "--price", type=float, help="price of an hour of one process, for the costs in --dry-run"
    )
    parser.add_argument("--profile", action="store_true", help="profile a few steps of each run")
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


def train(runs: Sequence[Run], stop: StopRequest, origins: Mapping[str, Any], **about: Any) -> int:
    """Train `runs` one after another; return the exit code.

    `origins` are where runs begin that don't go on by themselves, `about` more of the `Session`.
    """
    if _first():
        # Said first: on a busy node it takes a minute, and would look like a hang.
        log.info("train: loads its libraries for %s", ", ".join(run.id for run in runs))

    from pipeline.common.progress import progress, silent
    from recipes.training.loop import Trainer
    from recipes.training.session import Interrupted, Session

    with stop.at_once():
        accelerator = _started(runs, origins)
    session = Session(accelerator, stop, silent, origins=origins, **about)
    for number, run in enumerate(runs, 1):
        if run.id not in origins and complete(run, accelerator):
            continue
        title = f"{run.id} ({number} of {len(runs)})"
        with (
            progress(title, "steps") as report,
            processes.held_by_first(accelerator, run.folder, stop),
        ):
            # Another job may have had the folder since.
            if run.id not in origins and complete(run, accelerator):
                continue
            session.report = report if accelerator.is_main_process else silent
            try:
                with stop.at_once():
                    trainer = Trainer(run, session)
                trainer.train()
                if session.main:
                    notice.send(finished(trainer), status="finished", run=run.id)
            except Interrupted as error:
                stop.ignore()
                log.info("train: %s", error)
                return stop.code
        accelerator.free_memory()
    return 0


def finished(trainer: Any) -> str:
    """Return the message of a run that has come to its end."""
    run, state = trainer.run, trainer.state
    cost = "" if state.cost is None else f", held-out cost {state.cost:.4g}"
    return f"{run.recipe.name}: {run.id} is trained, {state.step} steps{cost}: {run.folder}"


def _started(runs: Sequence[Run], origins: Mapping[str, Any]) -> Any:
    """Return the `Accelerator` of the processes, when nothing is wrong with `runs`."""
    from recipes.training import preflight

    preflight.before_work(runs, origins)
    accelerator = processes.start(runs[0].recipe)
    preflight.for_processes(runs, accelerator)
    return accelerator


def complete(run: Run, accelerator: Any) -> bool:
    """Tell whether `run` is trained already, as the first process sees its folder."""
    done: bool = processes.from_first(accelerator, run.complete)
    if done:
        log.info("%s: is trained already", run.id)
    return done


def dry_run(
    runs: Sequence[Run],
    stop: StopRequest,
    overrides: Sequence[str],
    origins: Mapping[str, Any],
    price: float | None,
) -> int:
    """Print what `runs` would do and try steps of the first; return the exit code.

    `price` is what an hour of one process costs.
    """
    from pipeline.common.progress import silent
    from recipes.training import dry_run as dry
    from recipes.training.loop import Trainer
    from recipes.training.session import Session

    accelerator = _started(runs, origins)
    session = Session(accelerator, stop, silent, overrides, origins=origins)
    for line in dry.describe(runs, Trainer(runs[0], session), price):
        if session.main:
            sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    insist_on_utf8()
    processes.leave(main())
