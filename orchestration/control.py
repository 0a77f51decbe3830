"""The commands on plans: schedule, look at their status, read logs, cancel, retry."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from orchestration import store
from orchestration.build import build_jobs
from orchestration.checks import check
from orchestration.claims import claimed
from orchestration.engines.base import Engine
from orchestration.errors import (
    EngineError,
    HalfSubmittedError,
    OrchestrationError,
    UnansweredError,
)
from orchestration.load import ENGINES, engine_of, load_profile, profile_from
from orchestration.logs import last_words, read_on
from orchestration.plan import Job, Plan, is_done
from orchestration.profile import Profile
from orchestration.states import JobStatus, State, blockers
from pipeline.common.atomic import write_text
from recipes.config.load import load_recipe

# Seconds to keep asking a scheduler that does not answer: its controller may be restarting.
PATIENCE_SECONDS = 600.0
PAUSE_SECONDS = 10.0
# Seconds between two looks at a log that is followed.
READ_SECONDS = 1.0
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Scheduled:
    """A plan, its folder, and what its engine is given."""

    plan: Plan
    folder: Path
    engine: Engine
    scripts: dict[str, str]


def make_plan(recipe: Path, profile: Path, overrides: Sequence[str] = ()) -> Scheduled:
    """Return the plan of `recipe` on the machine of `profile`; nothing is written or submitted.

    Raises `OrchestrationError` or `RecipeError` when one of the two can't be used.
    """
    read = load_recipe(recipe, overrides)
    known = _at_home(load_profile(profile))
    check(read, known, str(profile))
    workdir = Path(known.workdir or ".")
    folder = workdir / store.FOLDER / store.new_id(read.name)
    # The jobs read a copy, so that an edit can't change a plan in the middle; a cluster that
    # shares no files with this machine has the recipe in its image instead.
    path = _copy_of(recipe, folder) if known.shares_files else recipe.as_posix()
    plan = Plan(
        id=folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=recipe.as_posix(),
        overrides=tuple(overrides),
        out=read.out,
        workdir=workdir.as_posix(),
        profile=known.model_dump(mode="json"),
        jobs=build_jobs(read, known, path, overrides),
    )
    engine = engine_of(known)
    if not known.shares_files:
        folder = Path.cwd() / store.FOLDER / folder.name
    return Scheduled(plan, folder, engine, engine.scripts(plan, folder))


def schedule(made: Scheduled) -> list[str]:
    """Write the plan and hand its jobs to the engine; return the names of those handed over.

    Jobs whose work is there already are left out. When the scheduler refuses one, nothing of the
    plan stays behind.

    Raises:
        OrchestrationError: another plan is at work in the same folder of runs.
        EngineError: the scheduler refuses or does not answer.
        HalfSubmittedError: it does not answer any more, and the plan may have jobs there.
    """
    plan, folder = made.plan, made.folder
    with _claimed(plan, folder):
        try:
            folder.mkdir(parents=True)  # ours alone: it is removed when the scheduler refuses
        except FileExistsError as error:
            raise OrchestrationError(
                f"there is a plan {plan.id} already: type the command again, for another id"
            ) from error
        try:
            return _hand_over(made)
        except HalfSubmittedError:
            raise
        except BaseException:
            shutil.rmtree(folder)
            raise


def _hand_over(made: Scheduled) -> list[str]:
    plan, folder = made.plan, made.folder
    names = [job.name for job in plan.jobs if not _done_here(plan, job)]
    for name, text in made.scripts.items():
        write_text(folder / name, text)
    recipe = Path(plan.recipe)
    write_text(folder / recipe.name, recipe.read_text())
    store.save(plan, folder)
    if names:
        made.engine.submit(plan, folder, names)
    return names


def find(plan_id: str) -> tuple[Plan, Path]:
    """Return the plan with this id (or the folder of one) and its folder.

    It is looked for under the working folder, then in the queues of schedulers.

    Raises `OrchestrationError` when neither knows it.
    """
    for folder in (Path.cwd() / store.FOLDER / plan_id, Path(plan_id)):
        if (folder / store.FILE).is_file():
            return store.read(folder), folder.absolute()
    queues = (kind.find(plan_id) for kind in ENGINES.values() if kind.find)
    elsewhere = next((folder for folder in queues if folder is not None), None)
    if elsewhere is not None:
        return store.read(elsewhere), elsewhere
    known = [folder.name for _, folder in plans()]
    raise OrchestrationError(
        f"there is no plan {plan_id} in {Path.cwd() / store.FOLDER}"
        f" (there are: {', '.join(known) or 'none'}); type this in the plan's working folder"
    )


def plans() -> list[tuple[Plan, Path]]:
    """Return the plans of the working folder, oldest first."""
    return store.plans(Path.cwd())


def status(plan: Plan, folder: Path) -> list[JobStatus]:
    """Return the status of each job, as the engine and the files say at this moment."""
    engine = _engine(plan)
    known = engine.statuses(plan, folder)
    cancelled = store.read_cancelled(folder)
    found: dict[str, JobStatus] = {}
    for job in plan.jobs:
        one = _status(plan, job, known.get(job.name), cancelled.get(job.name, ""))
        if one.state == State.FAILED:
            words = [one.reason, _last_words(engine, plan, folder, job)]
            one = replace(one, reason=": ".join(word for word in words if word))
        found[job.name] = _explained(one, blockers(job, found))
    return list(found.values())


def cancel(plan: Plan, folder: Path) -> list[str]:
    """Stop everything of the plan that runs or waits; return the names of those jobs."""
    active = [one.name for one in status(plan, folder) if one.state.active]
    # This comes before anything is stopped: a stopped job must not queue itself again.
    store.note_cancelled(folder, active)
    _engine(plan).cancel(plan, folder)
    return active


def retry(plan: Plan, folder: Path) -> list[str]:
    """Submit again the jobs that are neither done nor on their way; return their names.

    Raises as `schedule` does; jobs that are on their way stay, also when the scheduler refuses.
    """
    with _claimed(plan, folder):
        names = [
            one.name
            for one in status(plan, folder)
            if not (one.state == State.DONE or one.state.active)
        ]
        if names:
            before = store.forget_cancelled(folder)
            try:
                _engine(plan).submit(plan, folder, names)
            except EngineError:
                store.restore_cancelled(folder, before)
                raise
    return names


def logs(plan: Plan, folder: Path, name: str, follow: bool = False) -> Iterator[str]:
    """Yield the log of the job `name`, in pieces; with `follow`, until the job has ended.

    The parts of an array come one after another, each under its file's name.
    """
    job = plan.job(name)
    engine = _engine(plan)
    seen: dict[Path, int] = {}
    known: JobStatus | None = None
    due = 0.0
    while True:
        # The state comes first, so that all that a job wrote before it ended is read afterwards.
        if follow and time.monotonic() >= due:
            known = _patiently(engine.statuses, plan, folder).get(name)
            due = time.monotonic() + engine.pause
        files = engine.log_files(plan, folder, name)
        for path in files:
            text = read_on(path, seen)
            if text:
                yield f"==> {path.name} <==\n{text}" if job.parts > 1 else text
        if known is None or not known.state.active:
            break
        time.sleep(min(READ_SECONDS, engine.pause))
    if not seen:
        raise OrchestrationError(f"job {name} of plan {plan.id} has not written a log yet")


def wait(plan: Plan, folder: Path, report: Callable[[Sequence[JobStatus]], None]) -> bool:
    """Report the status every few seconds until no job is active; return whether all are done."""
    while True:
        found = _patiently(status, plan, folder)
        report(found)
        if not any(one.state.active for one in found):
            return all(one.state == State.DONE for one in found)
        time.sleep(_engine(plan).pause)


def _patiently(ask: Callable[[Plan, Path], T], plan: Plan, folder: Path) -> T:
    """Call `ask` again for some minutes while the scheduler does not answer."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask(plan, folder)
        except UnansweredError as error:
            if time.monotonic() > end:
                raise
            log.warning("%s; asking again", error)
            time.sleep(PAUSE_SECONDS)


def _engine(plan: Plan) -> Engine:
    return engine_of(profile_from(plan.profile, f"plan {plan.id}"))


def _at_home(profile: Profile) -> Profile:
    """Fill in the defaults that come from this process: its folder and its Python environment."""
    if not profile.shares_files:
        return profile
    own = None if getattr(profile, "container", None) else sys.prefix
    named = profile.environment
    filled = {
        **profile.defaults_in(os.environ),
        "workdir": str(Path(profile.workdir or ".").expanduser().absolute()),
        "environment": str(Path(named).expanduser()) if named else own,
    }
    return profile.model_copy(update=filled)


def _copy_of(recipe: Path, folder: Path) -> str:
    return f"{store.FOLDER}/{folder.name}/{recipe.name}"


def _claimed(plan: Plan, folder: Path) -> AbstractContextManager[None]:
    kind = ENGINES[plan.profile["engine"]].profile
    return claimed(plan, folder, kind.shares_files, _at_work)


def _at_work(plan: Plan, folder: Path) -> bool:
    try:
        known = _engine(plan).statuses(plan, folder)
    except UnansweredError:
        raise
    except EngineError:
        # The engine can't be asked at all: its manifest was only written, say.
        return False
    return any(one.state.active for one in known.values())


def _done_here(plan: Plan, job: Job) -> bool:
    # Pods see other files than this machine; there, each job's script tests for itself.
    kind = ENGINES[plan.profile["engine"]].profile
    return kind.shares_files and is_done(job, plan.workdir)


def _status(plan: Plan, job: Job, known: JobStatus | None, cancelled: str) -> JobStatus:
    """Return the job's status; `cancelled` says who cancelled it, empty if nobody has."""
    if known is not None and (known.state.active or known.state == State.DONE):
        return known
    if _done_here(plan, job):
        return replace(known or JobStatus(job.name, State.DONE), state=State.DONE, reason="")
    if cancelled:
        known = known or JobStatus(job.name, State.CANCELLED)
        return replace(known, state=State.CANCELLED, reason=cancelled)
    return known or JobStatus(job.name, State.UNKNOWN, "not known to the engine (any more)")


def _explained(one: JobStatus, blocking: Sequence[JobStatus]) -> JobStatus:
    """Add the names of the jobs that a job waits for, or because of which it was cancelled."""
    if not blocking:
        return one
    if one.state == State.WAITING:
        return replace(one, reason=f"for {', '.join(other.name for other in blocking)}")
    if one.state == State.CANCELLED and not one.reason.startswith("cancelled by"):
        failed = [other.name for other in blocking if other.state == State.FAILED]
        inherited = [other.reason for other in blocking if other.reason.endswith(" failed")]
        reason = f"{', '.join(failed)} failed" if failed else next(iter(inherited), one.reason)
        return replace(one, reason=reason)
    return one


def _last_words(engine: Engine, plan: Plan, folder: Path, job: Job) -> str:
    try:
        return last_words(engine.log_files(plan, folder, job.name))
    except EngineError:
        # The pods of a job that failed may be gone, and their logs with them.
        return ""


__all__ = [
    "EngineError",
    "OrchestrationError",
    "Scheduled",
    "cancel",
    "find",
    "logs",
    "make_plan",
    "plans",
    "retry",
    "schedule",
    "status",
    "wait",
]
