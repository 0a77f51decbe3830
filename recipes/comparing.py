"""What differs between two trainings: settings, data, code and machine, curves.

A side is a recipe, a run's folder, or a run in MLflow (`runs:/ID`). Two runs are compared by the
settings that decided their numbers, and by what is known of each; two recipes, or a recipe and a
run's folder, by all that they say. Needs no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.documents import DocumentError, parse_object, reading_yaml
from pipeline.tracking.errors import StoreError, TrackingError
from pipeline.tracking.history import History, history
from pipeline.tracking.resolving import run_reference
from pipeline.tracking.tracker import flat
from recipes.config.bundled import shipped
from recipes.config.load import load_recipe
from recipes.config.run_file import read_run_file
from recipes.config.schema import Recipe
from recipes.config.settings import RecipeError

RUN = "runs:/"
# What is said of a run beside its settings, in the order in which it is shown.
FACTS = {
    "data": ("data_digest",),
    "code": ("git_commit", "git.changed", "python", "torch"),
    "machine": ("host", "cpu", "gpu"),
    "start": ("overrides", "ignored_environment", "parent", "from", "init_fingerprint"),
}
CURVES = ("val/cost", "val/bpp", "val/psnr", "val/ms_ssim", "train/loss", "train/bpp")
# What a recipe says that decides no number: shown of runs as well.
ASIDE = ("out", "processes", "speed", "checkpoint", "launch", "tracking", "evaluate_every", "data")

Curve = list[tuple[int, float]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """What is known of one of the two."""

    name: str
    recipe: dict[str, str] | None = None
    decisive: dict[str, str] | None = None
    facts: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A value that the two sides don't share; None: one of them has none."""

    part: str
    key: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Point:
    """A metric of both runs: where each ends, and at the last step that both have."""

    metric: str
    a: tuple[int, float]
    b: tuple[int, float]
    both: tuple[int, float, float] | None


@dataclass(frozen=True)
class Comparison:
    """The whole comparison; `unknown` are parts that one side says nothing of."""

    a: str
    b: str
    differences: tuple[Difference, ...]
    curves: tuple[Point, ...]
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def compare(a: Side, b: Side) -> Comparison:
    """Return what differs between two sides."""
    found: list[Difference] = []
    if a.decisive is not None and b.decisive is not None:
        found += _differences("settings", a.decisive, b.decisive)
        found += _differences("recipe", _aside(a.recipe), _aside(b.recipe))
    elif a.recipe is not None and b.recipe is not None:
        found += _differences("settings", a.recipe, b.recipe)
    else:
        raise RecipeError(
            f"{a.name} and {b.name} can't be compared: one is a recipe, the other a run of which"
            " only MLflow knows; give its folder"
        )
    unknown = []
    runs = a.decisive is not None and b.decisive is not None
    for part, keys in FACTS.items() if runs else ():
        told = [{key: side.facts[key] for key in keys if side.facts.get(key)} for side in (a, b)]
        if all(told):
            found += _differences(part, *told)
        elif any(told):
            unknown.append(part)
    return Comparison(a.name, b.name, tuple(found), tuple(_points(a, b)), tuple(unknown))


def _aside(recipe: Mapping[str, str] | None) -> dict[str, str]:
    said = recipe or {}
    return {key: value for key, value in said.items() if key.partition(".")[0] in ASIDE}


def _differences(part: str, a: Mapping[str, str], b: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(part, key, a.get(key), b.get(key))
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key)
    ]


def _points(a: Side, b: Side) -> list[Point]:
    found = []
    for metric in CURVES:
        one, other = (dict(side.curves.get(metric, [])) for side in (a, b))
        if one and other:
            shared = max(one.keys() & other.keys(), default=None)
            both = None if shared is None else (shared, one[shared], other[shared])
            a_end, b_end = ((max(given), given[max(given)]) for given in (one, other))
            found.append(Point(metric, a_end, b_end, both))
    return found


def side(given: str) -> Side:
    """Return what is known of `given`: a recipe's file, a run's folder, or `runs:/ID`.

    Raises `RecipeError` when it is none of them. A tracking store that can't be reached, or has
    another's runs, leaves the curves of a folder out; that of `runs:/ID` is needed.
    """
    if given.startswith(RUN):
        known = history(given.removeprefix(RUN), CURVES, needed=True)
        assert known is not None
        return Side(given, None, _settings(known), known.tags, known.curves)
    place = Path(given)
    if (place / "run.json").is_file():
        return _of_folder(place)
    if place.is_dir():
        raise RecipeError(f"{given} is no run's folder: it has no run.json")
    return Side(given, flat_recipe(load_recipe(shipped(place))))


def _of_folder(folder: Path) -> Side:
    told = read_run_file(folder)
    file = folder / "recipe.yaml"
    try:
        recipe = load_recipe(file)
        runs = {run.id: flat(run.decisive()) for run in recipe.runs()}
        said = flat_recipe(recipe)
    except RecipeError as error:
        # Another version wrote it: it is compared as it stands there.
        runs, said = {}, flat(_by_name(_plain(file, error)))
    facts, decisive = _of_checkpoint(folder)
    known = _known(run_reference(folder))
    if known is not None:
        facts, decisive = facts | known.tags, decisive or _settings(known)
    return Side(
        str(folder),
        said,
        runs.get(str(told.get("id")), decisive),
        facts,
        {} if known is None else known.curves,
    )


def _plain(file: Path, error: RecipeError) -> dict[str, Any]:
    """Return what the YAML in `file` says, of whatever version; raises `error` if that is none."""
    try:
        with reading_yaml():
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, DocumentError):
        raise error from None
    if not isinstance(content, dict):
        raise error
    return content


def _known(reference: str | None) -> History | None:
    """Return what the store knows of a run whose folder is there: it may have been deleted."""
    try:
        return history(reference, CURVES, needed=False) if reference else None
    except (StoreError, TrackingError) as error:
        log.warning("without curves: %s", error)
        return None


def _settings(known: History) -> dict[str, str]:
    return {key: value for key, value in known.params.items() if key != "recipe"}


def _of_checkpoint(folder: Path) -> tuple[dict[str, str], dict[str, str] | None]:
    """Return what the newest checkpoint says: facts, and settings that decided numbers."""
    for path in sorted((folder / "checkpoints").glob("step-*/checkpoint.json"), reverse=True):
        try:
            about = parse_object(path.read_bytes())
        except (OSError, DocumentError) as error:
            log.warning("%s is passed over: %s", path, error)
            continue
        run, decisive = about.get("run"), about.get("decisive")
        facts = {"data_digest": about.get("data_digest")}
        facts |= {"git_commit": run.get("git_commit")} if isinstance(run, dict) else {}
        settings = flat(decisive) if isinstance(decisive, dict) else None
        return {k: str(v) for k, v in facts.items() if v}, settings or None
    return {}, None


def flat_recipe(recipe: Recipe) -> dict[str, str]:
    """Return all that a recipe says, by dotted keys, its stages by their names."""
    return flat(_by_name(recipe.model_dump(mode="json")))


def _by_name(content: dict[str, Any]) -> dict[str, Any]:
    stages = content.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return content
    return {**content, "stages": {str(one.get("name", n)): one for n, one in enumerate(stages)}}
