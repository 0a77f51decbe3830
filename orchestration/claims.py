"""Claims on folders of runs: a file in the folder names the plan that works there.

A plan claims its recipe's `out` before anything is submitted, under a lock, so that of two plans
that are scheduled at once, from one folder or from two, one is refused. A claim lasts for as long
as its plan is at work, as the plan's engine says.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestration import store
from orchestration.errors import HalfSubmittedError, OrchestrationError
from orchestration.plan import Plan
from pipeline.common.atomic import write_json
from pipeline.common.documents import parse
from pipeline.common.locks import file_lock

CLAIM = ".plan.json"
LOCK = ".plan.lock"


@dataclass(frozen=True)
class Claim:
    """The plan that works in a folder of runs."""

    plan: str
    folder: Path


@contextlib.contextmanager
def claimed(
    plan: Plan, folder: Path, visible: bool, at_work: Callable[[Plan, Path], bool]
) -> Iterator[None]:
    """Claim the plan's folder of runs, and hold the lock on claims until the block ends.

    A block that fails gives the claim back, unless jobs of the plan may be at work all the same.

    Args:
        plan: the plan that is about to be submitted.
        folder: the plan's own folder.
        visible: whether the folder of runs can be seen from this machine.
        at_work: says whether another plan, in the folder given, has jobs that run or wait.

    Raises:
        OrchestrationError: another plan is at work there.
        EngineError: the scheduler can't say now whether another plan is at work.
    """
    place = Path(plan.workdir, plan.out) if visible else _aside(plan, folder)
    place.mkdir(parents=True, exist_ok=True)
    with file_lock(place / LOCK):
        before = _read(place)
        if before is not None and before.plan != plan.id:
            _refuse_if_at_work(before, plan, at_work)
        _write(place, Claim(plan.id, folder))
        try:
            yield
        except HalfSubmittedError:
            raise
        except BaseException:
            _write(place, before)
            raise


def _refuse_if_at_work(other: Claim, plan: Plan, at_work: Callable[[Plan, Path], bool]) -> None:
    try:
        found = store.read(other.folder)
    except OrchestrationError:
        return  # its folder was removed, and nothing is left to ask about
    if at_work(found, other.folder):
        raise OrchestrationError(
            f"plan {other.plan} is at work in {plan.out} (its folder is {other.folder}): wait for"
            f" it, or type `pipeline cancel {other.plan}` first"
        )


def _aside(plan: Plan, folder: Path) -> Path:
    """Return the folder that keeps claims on folders which only the jobs can see."""
    runs = f"{plan.profile.get('context')} {plan.workdir} {plan.out}"
    return folder.parent / ".claims" / hashlib.sha256(runs.encode()).hexdigest()[:16]


def _read(place: Path) -> Claim | None:
    try:
        said = parse((place / CLAIM).read_bytes())
        return Claim(str(said["plan"]), Path(said["folder"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(place: Path, claim: Claim | None) -> None:
    if claim is None:
        (place / CLAIM).unlink(missing_ok=True)
        return
    content = {"plan": claim.plan, "folder": str(claim.folder)}
    write_json(place / CLAIM, content)
