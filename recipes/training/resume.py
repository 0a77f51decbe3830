"""Finds what a run continues from: its newest checkpoint, another one that was named, or nothing.

A checkpoint goes on under the settings that it was made under. Going on under others is asked for
(`--from`), or is the cure of a step that could not be taken; it makes a new run, whose parent is
the one that the checkpoint is of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.documents import parse
from recipes.config.optimizing import Optimizer
from recipes.config.schema import Run
from recipes.config.settings import AUTO, Augmentation, Cca, Loss, Plateau, RecipeError, Section
from recipes.config.stage import Stage
from recipes.training import checkpoint
from recipes.training.checkpoint import Checkpoint, NoCheckpointError, Unusable
from recipes.training.data import Corpora
from recipes.training.results import read_run

# Settings that may change after a step that could not be taken, without asking for a new run.
CURES = frozenset(
    {
        *("lr", "quantile_lr", "quantile_schedule", "clip", "steps"),
        *("warmup", "schedule", "final_lr", "decay", "milestones", "restarts"),
    }
)
# Parts of a recipe that are compared whole: a setting that an older version lacked had its default.
_PARTS: dict[str, type[Section]] = {
    "loss": Loss,
    "optimizer": Optimizer,
    "plateau": Plateau,
    "augment": Augmentation,
}
# Settings that costs depend on: under others, an earlier lowest cost means nothing.
MEASURES = ("rate_weight", "variable_rate", "distortion", "loss")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The start of a run in place of its own newest checkpoint.

    `checkpoint` None: step 0, with what there is of the run set aside. `automatic`: nobody asked.
    """

    checkpoint: Checkpoint | None
    automatic: bool = False

    @property
    def key(self) -> dict[str, Any] | None:
        """The record of where a run began, so that it goes on when started again."""
        if self.checkpoint is None:
            return None
        about = self.checkpoint.about
        run = about.get("run", {})
        return {
            "step": self.checkpoint.step,
            "sha256": about["sha256"],
            "run": run.get("name"),
            "run_id": run.get("run_id"),
            "recipe_digest": about.get("recipe_digest"),
        }


def find_origins(runs: Sequence[Run], given: str | None, anew: bool) -> dict[str, Origin]:
    """Return the origins of runs, by name, for those that don't continue their newest checkpoint.

    Args:
        runs: those that are to be trained.
        given: a step, a run's folder, or a checkpoint's: from there the run goes on, under
            whatever settings it has now.
        anew: begin all `runs` at step 0.

    Raises `RecipeError` when there is no such checkpoint, or it is not clear which run is meant.
    """
    if given is not None and anew:
        raise RecipeError("--from and --anew exclude each other: give one")
    if anew:
        return {run.id: Origin(None) for run in runs}
    if given is not None:
        if any(_went_on_from(run, given) for run in runs):
            return {}
        chosen = _named(runs, given)
        run = _run_of(runs, chosen)
        if chosen.step >= run.stage.steps:
            raise RecipeError(
                f"--from: {chosen.folder} is at step {chosen.step}, and {run.id} ends at"
                f" {run.stage.steps}: give an earlier one, or more stages.{run.stage.name}.steps"
            )
        return {} if _begun_from(run, Origin(chosen)) else {run.id: Origin(chosen)}
    cured = {run.id: _cure(run) for run in runs if not run.complete}
    return {name: origin for name, origin in cured.items() if origin is not None}


def _named(runs: Sequence[Run], given: str) -> Checkpoint:
    if given.isdecimal():
        there = [(run, one) for run in runs for one in checkpoint.examine(run.folder)[0]]
        chosen = [one for _, one in there if one.step == int(given)]
        if len(chosen) == 1:
            return chosen[0]
        steps = ", ".join(f"{run.id} at {one.step}" for run, one in there) or "none"
        problem = "several runs have" if chosen else "there is no"
        raise RecipeError(
            f"--from: {problem} usable checkpoint of step {given} (there are: {steps}): give a"
            " checkpoint's folder, or --stage"
        )
    folder = Path(given).expanduser()
    if folder.name in (checkpoint.STATE, checkpoint.ABOUT):
        folder = folder.parent
    if (folder / checkpoint.ABOUT).exists() or folder.name.startswith(checkpoint.PREFIX):
        one = checkpoint.opened(folder)
        if isinstance(one, Unusable):
            raise RecipeError(f"--from: {folder.parent / str(one)}")
        return one
    good, bad = checkpoint.examine(folder)
    if not good:
        found = "; ".join(str(one) for one in bad) or "nothing"
        raise RecipeError(
            f"--from: {given} has no usable checkpoint (found: {found}): give a step, a run's"
            " folder, or a folder checkpoints/step-... of one (a model is started from by a stage's"
            " init)"
        )
    return good[-1]


def _run_of(runs: Sequence[Run], chosen: Checkpoint) -> Run:
    """Return the run that goes on from `chosen`: the only one, or that of its name."""
    name = chosen.about.get("run", {}).get("name")
    alike = runs if len(runs) == 1 else [run for run in runs if run.id == name]
    if len(alike) != 1:
        known = ", ".join(run.id for run in runs)
        raise RecipeError(
            f"--from: {chosen.folder} is of {name or 'an unknown run'}, and the runs here are"
            f" {known}: choose the one that goes on from it by --stage and --rate-weight"
        )
    return alike[0]


def _went_on_from(run: Run, given: str) -> bool:
    """Tell whether `run` goes on from the step that `given` names, whose checkpoint may be gone."""
    good, _ = checkpoint.examine(run.folder)
    origin = good[-1].origin if good else None
    if origin is None or differences(run, good[-1].about):
        return False
    named = Path(given).name.removeprefix(checkpoint.PREFIX)
    gone = not Path(given, checkpoint.ABOUT).exists()
    return gone and named.isdecimal() and int(named) == origin["step"]


def _begun_from(run: Run, origin: Origin) -> bool:
    """Tell whether `run` has gone on from `origin` before, under the settings of now."""
    good, _ = checkpoint.examine(run.folder)
    newest = good[-1].about if good else {}
    return bool(good) and newest.get("origin") == origin.key and not differences(run, newest)


def _cure(run: Run) -> Origin | None:
    """Return the origin after a step that could not be taken, if new settings cure it.

    A loss that is NaN stays NaN at any learning rate, so an earlier checkpoint is chosen.
    """
    failed = read_run(run.folder).get("failed")
    good, _ = checkpoint.examine(run.folder)
    if not isinstance(failed, dict) or not good:
        return None
    changed = differences(run, good[-1].about)
    if not changed or not changed.keys() <= CURES:
        return None
    before = [one for one in good if one.step < int(failed["step"])]
    log.warning(
        "%s: could not take step %s (%s); goes back to step %d, under %s",
        run.id,
        failed["step"],
        failed.get("reason"),
        before[-1].step if before else 0,
        ", ".join(f"{key}={changed[key][1]} in place of {changed[key][0]}" for key in changed),
    )
    return Origin(before[-1] if before else None, automatic=True)


def differences(run: Run, about: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return settings that decide numbers and differ, with their earlier and present values.

    A setting that an older version did not know had its default then.
    """
    now, then = parse(json.dumps(run.decisive())), about["decisive"]
    then = {**_defaults(now), **then}
    for key, kind in _PARTS.items():
        if isinstance(then.get(key), dict):
            then[key] = {**_plain(kind), **then[key]}
    if now["precision"] == AUTO:
        # A run keeps to what it began with.
        now["precision"] = then["precision"]
    return {
        key: (then.get(key), now.get(key))
        for key in {**now, **then}
        if now.get(key) != then.get(key) or (key not in now and then[key] is not None)
    }


def _defaults(now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default of each setting of `now` that has one."""
    fields = {f"cca.{name}": field for name, field in Cca.model_fields.items()}
    fields |= dict(Stage.model_fields)
    given = {key: fields[key] for key in now if key in fields and not fields[key].is_required()}
    defaults = {key: field.get_default(call_default_factory=True) for key, field in given.items()}
    plain: dict[str, Any] = parse(json.dumps(defaults, default=str))
    return plain | {"optimizer": _plain(Optimizer), "held_out": 0}


def _plain(kind: type[Section]) -> dict[str, Any]:
    """Return the defaults of a part of a recipe, of the fields that have one."""
    fields = kind.model_fields.items()
    made = {name: one.get_default(call_default_factory=True) for name, one in fields}
    known: dict[str, Any] = parse(json.dumps(made, default=lambda _: None))
    return {
        name: value for name, value in known.items() if not kind.model_fields[name].is_required()
    }


def check_same(run: Run, about: Mapping[str, Any], corpora: Corpora | None) -> None:
    """Raise `RecipeError` when a checkpoint was made under other settings or from other shards.

    Without `corpora` the shards are not looked at.
    """
    changed = differences(run, about)
    if changed:
        said = ", ".join(f"{key} was {then} and is {now}" for key, (then, now) in changed.items())
        raise RecipeError(
            f"{run.folder} was begun with other settings ({said}): restore them, give another"
            " out=, or go on under the new ones, as a new run, by --from STEP"
        )
    if corpora is not None and about["data_digest"] != corpora.digest:
        raise RecipeError(
            f"the shards in {run.data.train} have changed since {run.folder} was begun:"
            " restore them, give another out=, or go on with the new ones by --from STEP"
        )


def check_steps_left(run: Run) -> None:
    """Raise `NoCheckpointError` when a run that has taken steps has no checkpoint any more."""
    about = read_run(run.folder)
    good, bad = checkpoint.examine(run.folder)
    checkpoint.refuse_unusable(run.folder, [] if good else bad)
    if not good and about.get("done") is True and int(about.get("step", 0)) > 0:
        raise NoCheckpointError(
            f"{run.folder} was trained to step {about['step']}, and has no checkpoint to train on"
            " from: give another out=, or set it aside and begin at step 0 by --anew"
        )
