"""How soon ways of training reach a quality: samples and CPU seconds to the baseline's final cost.

    python -m tests.benchmarks.quality tests/benchmarks/quality.yaml data.train=SHARDS \
        --contenders tests/benchmarks/contenders.yaml --seeds 3 --out quality-out

The recipe is the baseline. A contender is the recipe with the changes that CONTENDERS.yaml gives
under its name, `stages.base.lr=2e-3` say; with `share: 0.5`, in half of the steps; with `like:
NAME`, on top of another contender's changes and in its share. Each is trained by training's own
loop, once a seed, on the same pictures, crops and noise. `data.workers` is 0 and `speed.threads` 1,
so that a process's CPU time is that of one run's work: threads that wait for each other use it too.
All are judged alike, whatever they are trained for: by the baseline's last stage, on pictures held
out of the shards. Contenders take turns, seed after seed. Run it again to go on; with `--only`,
what other contenders have ended stays in the results. OUT gets a folder a run, results.json, a
table in Markdown and a plot; `--against NAME` compares with another contender than the recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.common.progress import progress
from recipes.config.load import load_recipe
from recipes.config.schema import Recipe, Run
from recipes.config.stage import Stage
from recipes.launching import processes
from recipes.launching.signals import StopRequest
from recipes.training.loop import Trainer
from recipes.training.session import Interrupted, Session, TrainingError
from recipes.training.steps import Metrics
from recipes.training.validate import evaluate, rate_points
from shards import Batch
from tests.benchmarks import quality_report

BASELINE = "baseline"
LOG = "quality.jsonl"
# What no contender may change: it would be judged, fed or timed otherwise.
FIXED = ("data.workers=0", "speed.threads=1", "tracking.pictures=0", "checkpoint.spike=null")


class Measured(Trainer):
    """Training's own loop, which notes what its steps took and what `judge` makes of the model.

    `before` are the samples and seconds of the stages before this one.
    """

    def __init__(self, run: Run, session: Session, judge: Run, before: Mapping[str, float]) -> None:
        super().__init__(run, session)
        self.judge, self.path = judge, run.folder / LOG
        kept = [line for line in lines(self.path) if line["step"] <= self.state.step]
        self.taken = dict(kept[-1] if kept else {"cpu": 0.0, "seconds": 0.0, "samples": 0} | before)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        with Timed(self.taken):
            return super()._next(batches)

    def _step(self, batch: Batch) -> Metrics:
        with Timed(self.taken):
            found = super()._step(batch)
        self.taken["samples"] += len(batch.keys)
        return found

    def _save(self) -> None:
        super()._save()
        self._note({})

    def _evaluate(self) -> bool:
        accelerator, model = self.session.accelerator, self.module.model
        with self.average.in_place() if self.average is not None else nullcontext():
            means = evaluate(model, self.judge, self.pictures, accelerator, self._asked)
        self.state.unevaluated = means is None
        if means is None:
            return False
        self.state.judge(means["cost"], self.run.stage.plateau)
        self._note({"held_out": means})
        return True

    def _note(self, more: Mapping[str, Any]) -> None:
        told = self.taken | {"step": self.state.step} | more
        told = {key: told[key] for key in ("step", "samples", "cpu", "seconds", *more)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


class Timed:
    """Adds what a block takes to `taken`, in CPU and in wall-clock seconds."""

    def __init__(self, taken: dict[str, float]) -> None:
        self.taken = taken

    def __enter__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.taken["cpu"] += time.process_time() - self.cpu
        self.taken["seconds"] += time.perf_counter() - self.wall


def lines(path: Path) -> list[dict[str, Any]]:
    """Return what a run has noted, without a last line that was cut short by a kill."""
    try:
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole.splitlines()]


def contenders(path: Path | None, named: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the contenders of a file by name, the baseline first; exit if a `named` one lacks."""
    told = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
    given: dict[str, dict[str, Any]] = {BASELINE: {}}
    for name, one in told.items():
        own = one or {}
        above = _known(given, [own["like"]])[own["like"]] if "like" in own else {}
        given[name] = {**above, **own, "set": [*above.get("set", []), *own.get("set", [])]}
    return _known(given, named)


def _known(given: dict[str, dict[str, Any]], named: Sequence[str]) -> dict[str, dict[str, Any]]:
    unknown = set(named) - given.keys()
    if unknown:
        raise SystemExit(f"no contender is called {', '.join(unknown)}: there are {[*given]}")
    return given


def prepared(recipe: str, changes: Sequence[str], contender: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a contender: all `changes`, its own settings, its share of the steps."""
    loaded = load_recipe(recipe, [*changes, *contender.get("set", []), *FIXED])
    share = float(contender.get("share", 1))
    stages = [shortened(stage, share) for stage in loaded.stages]
    return loaded.model_copy(update={"stages": stages})


def shortened(stage: Stage, share: float) -> Stage:
    """Return `stage` in a `share` of its steps, with all that happens at steps in its place."""
    told = stage.model_dump(exclude_unset=True)

    def at(step: int) -> int:
        return max(1, round(step * share))

    told["steps"] = at(stage.steps)
    told["restarts"] = [at(step) for step in stage.restarts]
    told["milestones"] = {at(step): factor for step, factor in stage.milestones.items()}
    told["phases"] = [one | {"step": at(one["step"])} for one in told.get("phases", [])]
    return Stage.model_validate(told)


def train(recipe: Recipe, judge: Run, session: Session) -> list[dict[str, Any]]:
    """Train all stages of `recipe`, those that are done left out; return its evaluations."""
    before: dict[str, float] = {}
    found: list[dict[str, Any]] = []
    for run in recipe.runs():
        ended = run.complete
        if not ended:
            with processes.held_by_first(session.accelerator, run.folder, session.stop):
                ended = _ended(Measured(run, session, judge, before))
            session.accelerator.free_memory()
        noted = lines(run.folder / LOG)
        before = {key: noted[-1][key] for key in ("cpu", "seconds", "samples")}
        # A step that was done again after a kill counts as it was at last.
        judged = {line["step"]: line for line in noted if "held_out" in line}
        found += [judged[step] for step in sorted(judged)]
        if not ended:
            break
    return found


def _ended(trainer: Measured) -> bool:
    """Train a stage; return whether it came to its end, and not to a loss that is no number."""
    try:
        trainer.train()
    except TrainingError as error:
        print(error)
        return False
    return True


def judge_of(recipe: Recipe) -> Run:
    """Return the run whose loss and rates all contenders are judged by."""
    run = recipe.runs()[-1]
    if len(recipe.runs()) != len(recipe.stages) or not run.data.judges:
        raise SystemExit("give a recipe of one model a stage, with data.held_out or validation")
    return run


def asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="to all of them")
    parser.add_argument("--contenders", type=Path, metavar="CONTENDERS.yaml")
    parser.add_argument("--only", action="append", metavar="NAME", help="repeat it for several")
    parser.add_argument("--against", metavar="NAME", default=BASELINE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not done yet, then write and print the results."""
    given = asked(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.resolve()}/mlflow.db"
    ways = contenders(given.contenders, [given.against, *(given.only or ())])
    trained = {BASELINE, given.against, *(given.only or ways)}
    judge = judge_of(prepared(given.recipe, given.changes, {}))
    stop = StopRequest()
    stop.listen()
    accelerator = processes.start(judge.recipe)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for name, way in ways.items():
            place = [f"seed={seed}", f"out={given.out}/{name}/seed-{seed}"]
            recipe = prepared(given.recipe, [*given.changes, *place], way)
            if rate_points(recipe.runs()[-1]) != rate_points(judge):
                raise SystemExit(f"{name}: a contender has the rate weights of the baseline")
            if name not in trained and not all(run.complete for run in recipe.runs()):
                continue
            with progress(f"{name}, seed {seed}", "steps") as report:
                session = Session(accelerator, stop, report)
                try:
                    judged = train(recipe, judge, session)
                except Interrupted as error:
                    print(error)
                    return stop.code
            rows.append({"contender": name, "seed": seed, "evaluations": judged})
            quality_report.write(given.out, given.recipe, rows, given.against)
    print((given.out / "results.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
