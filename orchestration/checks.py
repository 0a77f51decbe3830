"""Checks of a profile that need its recipe and this machine, made before anything is submitted."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from orchestration.errors import OrchestrationError
from orchestration.profile import Profile
from recipes.config.bundled import shipped
from recipes.config.schema import Recipe

# Log files are named after stages, and no file system takes names beyond 255 characters.
LONGEST_STAGE = 150
# Sources of pictures that are no paths.
ELSEWHERE = ("hf:", "shards:")


def check(recipe: Recipe, profile: Profile, name: str) -> None:
    """Refuse stages that do not exist or have endless names, and paths that do not exist.

    `name` is what the profile is called in the message.

    Raises:
        OrchestrationError: with every mistake in one message.
    """
    mistakes = [*_stages(recipe, profile)]
    # Without shared files, the paths that jobs on the cluster use can't be checked from here.
    if profile.shares_files:
        mistakes += _places(profile)
    if mistakes:
        raise OrchestrationError(" ".join(f"{name}: {'; '.join(mistakes)}".split()))


def _stages(recipe: Recipe, profile: Profile) -> Iterator[str]:
    stages = [stage.name for stage in recipe.stages]
    for name in stages:
        if len(name) > LONGEST_STAGE:
            yield (
                f"the recipe's stage {name[:20]}... has a name of {len(name)} characters, and jobs"
                f" can be called after {LONGEST_STAGE} at most"
            )
    for name in profile.resources:
        stage = name.removeprefix("train.")
        if stage != name and stage not in stages:
            close = difflib.get_close_matches(stage, stages, n=1, cutoff=0.5)
            meant = f"did you mean {close[0]}?" if close else f"there are: {', '.join(stages)}"
            yield f"resources.{name}: the recipe has no stage {stage} ({meant})"


def _places(profile: Profile) -> Iterator[str]:
    workdir = Path(profile.workdir or ".")
    if not _is_folder(workdir):
        yield f"workdir: there is no folder {workdir}"
    elif not os.access(workdir, os.W_OK):
        yield f"workdir: {workdir} can't be written to"
    inside = getattr(profile, "container", [])
    if profile.environment and not inside and not _is_folder(Path(profile.environment, "bin")):
        yield f"environment: there is no Python environment {profile.environment} (no bin in it)"
    data = profile.evaluation.data
    if data and not _there(workdir, data):
        yield f"evaluation.data: there is no folder {data}"
    for source in profile.pictures.source:
        if not _there(workdir, source):
            yield f"pictures.source: there is no {source}"


def _there(workdir: Path, path: str) -> bool:
    """Return whether `path` exists or is no path at all; a pattern must match at least one file."""
    if "://" in path or path.startswith(ELSEWHERE):
        return True
    place = Path(path).expanduser()
    try:
        if (workdir / place).exists() or Path(shipped(path)).exists():
            return True
    except OSError:
        return False  # no file can have this name, or its folder can't be looked into
    # Names of data sets that are fetched, such as org/name, are no paths of this machine.
    return any(sign in path for sign in "*?[{")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
