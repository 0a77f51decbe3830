"""Slurm: sbatch, squeue, sacct and scancel, and nothing else."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestration.engines.slurm_script import batch_script, known_names, named_options
from orchestration.engines.slurm_states import accounted, queued
from orchestration.engines.slurm_tools import NoNumberError, ask, submit
from orchestration.errors import EngineError, HalfSubmittedError
from orchestration.plan import Job, Plan
from orchestration.profile import SlurmProfile
from orchestration.states import JobStatus, State, gathered

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
# Seconds for cancelled jobs to end: a cluster gives their processes KillWait, 30 s by default.
SECONDS_TO_END = 300.0
# Seconds between attempts to withdraw jobs from a controller that does not answer.
WITHDRAW_PAUSES = (1.0, 3.0, 10.0, 0.0)


class Slurm:
    """Plans on a Slurm cluster. Jobs are found again by their names, which hold the plan's id."""

    pause = 10.0

    def __init__(self, profile: SlurmProfile) -> None:
        self.profile = profile

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        """Return a batch script for each job."""
        return {
            f"{job.name}.sh": batch_script(plan, job, self.profile, folder) for job in plan.jobs
        }

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        """Submit the jobs, each after those it needs; when one is refused, none stays."""
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        before = self.statuses(plan, folder)
        known = {name: status.engine_id for name, status in before.items() if status.state.active}
        taken: list[str] = []
        try:
            for job in plan.jobs:
                if job.name in names:
                    known[job.name] = self._sbatch(plan, folder, job, known, before.get(job.name))
                    taken.append(known[job.name])
        except BaseException as error:
            self._withdraw(plan, names, taken, error)
            raise

    def _sbatch(
        self,
        plan: Plan,
        folder: Path,
        job: Job,
        known: Mapping[str, str],
        before: JobStatus | None,
    ) -> str:
        """Submit `job`, last seen as `before`, after those in `known`; return its number."""
        words = ["sbatch", "--parsable", "--export=ALL"]
        words += [f"--{name}={value}" for name, value in named_options(plan, job, folder).items()]
        needs = [known[need] for need in job.needs if need in known]
        if needs:
            words.append(f"--dependency=afterok:{':'.join(needs)}")
        words.append(str(folder / f"{job.name}.sh"))
        try:
            numbers = submit(words, self.profile.cluster)
        except NoNumberError:
            # The site's wrapper prints the number in words of its own, or on standard error.
            there = self._submitted(plan, job, before)
            if not there:
                raise
            return there[0]
        if len(numbers) > 1:
            # A banner may hold numbers too: the queue tells which one is the job's.
            there = self._submitted(plan, job, before)
            numbers = [number for number in numbers if number in there] or there or numbers
        return numbers[0]

    def _submitted(self, plan: Plan, job: Job, before: JobStatus | None) -> list[str]:
        """Return the numbers that the queue has for `job` since `before`, the last one first."""
        last = _number(before.engine_id) if before is not None and before.engine_id else 0
        there = queued(dict.fromkeys(known_names(plan, job), job), self.profile.cluster)
        numbers = {_number(status.engine_id) for status in there}
        return [str(number) for number in sorted(numbers, reverse=True) if number > last]

    def _withdraw(
        self, plan: Plan, names: Sequence[str], taken: Sequence[str], error: BaseException
    ) -> None:
        """Take back what was submitted before `error`; raises HalfSubmittedError if that fails.

        First by the numbers that are known, which needs one command. Then by name: a controller
        that did not answer in time may have taken a job all the same.
        """
        for pause in WITHDRAW_PAUSES:
            try:
                if taken:
                    self._ask("scancel", *reversed(taken))
                self._end(plan, names)
                return
            except EngineError as another:
                why = another
            time.sleep(pause)
        raise HalfSubmittedError(
            f"{error}; it is unknown now whether jobs of plan {plan.id} are left ({why}): type"
            f" `pipeline cancel {plan.id}` when the scheduler answers, or `pipeline retry"
            f" {plan.id}` to go on"
        ) from error

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        """Return what the queue knows, and accounting and the jobs' own files where it does not."""
        by_name = {name: job for job in plan.jobs for name in known_names(plan, job)}
        found = queued(by_name, self.profile.cluster)
        there = {status.name for status in found}
        forgotten = {name: job for name, job in by_name.items() if job.name not in there}
        if forgotten:
            found = [*accounted(plan, forgotten, self.profile.cluster), *found]
        parts: dict[str, dict[str, JobStatus]] = {}
        for status in found:
            # The newest of several submissions counts: the one with the highest number.
            newest = parts.setdefault(status.name, {})
            mine = _number(status.engine_id)
            if newest and max(_number(part) for part in newest) < mine:
                newest.clear()
            if not newest or max(_number(part) for part in newest) == mine:
                newest[status.engine_id] = status
        for job in plan.jobs:
            if job.name not in parts and (left := self._left_behind(plan, folder, job)):
                parts[job.name] = left
        return {
            name: gathered(name, _without_bundles(each), plan.job(name).parts)
            for name, each in parts.items()
        }

    def _left_behind(self, plan: Plan, folder: Path, job: Job) -> dict[str, JobStatus]:
        """Return what the log and the exit file of each part say, where Slurm knows nothing."""
        found = {}
        for path in self.log_files(plan, folder, job.name):
            number = path.name[len(job.name) + 1 : -len(".log")]
            try:
                code = path.with_suffix(".exit").read_text().strip()
            except OSError:
                code = ""
            state = State.DONE if code == "0" else State.FAILED
            reason = "" if code == "0" else f"exit code {code}"
            if not code:
                reason = "ended by force, and neither queue nor accounting knows it"
            found[number] = JobStatus(job.name, state, reason, engine_id=number)
        return found

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        """Return the logs of the newest submission."""
        found = [
            path
            for path in (folder / "logs").glob("*.log")
            if re.fullmatch(rf"{re.escape(name)}\.[0-9]+(_[0-9]+)?\.log", path.name)
        ]
        numbers = {path: int(re.split(r"[._]", path.name[len(name) + 1 :])[0]) for path in found}
        newest = max(numbers.values(), default=0)
        return sorted((path for path in found if numbers[path] == newest), key=_part)

    def cancel(self, plan: Plan, folder: Path) -> None:
        """Cancel every job of the plan that is not over, and wait until they have ended.

        Training that runs is asked to stop first and has `signal_seconds` to write its checkpoint.
        Whatever is submitted before the end would wait for a cancelled job, and be cancelled too.
        """
        names = [job.name for job in plan.jobs]
        training = [job.name for job in plan.jobs if job.resumable]
        listed = self._listed(plan, training) if training else []
        running = [str(number) for number, state in listed if state == "RUNNING"]
        if running:
            seconds = self.profile.signal_seconds
            log.warning("training has up to %d s to write its checkpoint", seconds)
            self._try("scancel", "--batch", "--signal=USR1", *running)
            self._cancel(plan, names, sparing=running)
            end = time.monotonic() + seconds
            while self._lively(plan, training, running) and time.monotonic() < end:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        self._end(plan, names)

    def _end(self, plan: Plan, names: Sequence[str]) -> None:
        """Cancel the jobs until the queue has none of them that is not over."""
        end = time.monotonic() + SECONDS_TO_END
        # Again and again: one that was putting itself back in the queue is there again.
        while there := self._cancel(plan, names):
            if time.monotonic() > end:
                raise EngineError(
                    f"jobs {', '.join(map(str, there))} of plan {plan.id} were cancelled"
                    f" {SECONDS_TO_END:g} s ago and do not end: ask `squeue` why"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _lively(self, plan: Plan, names: Sequence[str], numbers: Sequence[str]) -> bool:
        """Return whether one of the jobs with these numbers still has processes."""
        return any(
            str(number) in numbers and state != "COMPLETING"
            for number, state in self._listed(plan, names)
        )

    def _cancel(self, plan: Plan, names: Sequence[str], sparing: Sequence[str] = ()) -> list[int]:
        """Cancel these jobs where the queue has them; return the numbers of those not yet over."""
        lines = [line for line in self._listed(plan, names) if str(line[0]) not in sparing]
        # scancel takes one name at most, but any number of jobs; the last ones first, so that
        # none starts because of what happens to another.
        numbers = sorted({number for number, _ in lines}, reverse=True)
        lively = {number for number, state in lines if state != "COMPLETING"}
        if lively:
            # One may have ended since it was listed, which is no failure: the next look tells.
            self._try("scancel", *(str(number) for number in numbers if number in lively))
        return numbers

    def _listed(self, plan: Plan, names: Sequence[str]) -> list[tuple[int, str]]:
        """Return number and state of each of these jobs that is in the queue and not over."""
        wanted = ",".join(each for name in names for each in known_names(plan, plan.job(name)))
        listed = self._ask("squeue", "--noheader", f"--name={wanted}", "--format=%A %T")
        found = (re.fullmatch(r"\s*([0-9]+) ([A-Z_]+)\s*", line) for line in listed.splitlines())
        return [(int(line[1]), line[2]) for line in found if line]

    def _ask(self, *words: str) -> str:
        return ask(words, self.profile.cluster)

    def _try(self, *words: str) -> None:
        try:
            self._ask(*words)
        except EngineError as error:
            log.info("%s", error)


def find_folder(plan_id: str) -> Path | None:
    """Return the folder of a plan that the queue knows by its id, from the jobs' comments."""
    if shutil.which("squeue") is None:
        return None
    try:
        listed = ask(["squeue", "--me", "--noheader", "--states=all", "--format=%j|%k"])
    except EngineError:
        return None
    for line in listed.splitlines():
        name, _, folder = line.partition("|")
        if plan_id in name.split(":"):
            return Path(folder)
    return None


def _number(engine_id: str) -> int:
    return int(re.split(r"[_.+]", engine_id)[0])


def _without_bundles(found: Mapping[str, JobStatus]) -> list[JobStatus]:
    """Drop the line of an array as a whole, `12_[0-7]`, when its parts have lines of their own."""
    single = [status for number, status in found.items() if "[" not in number]
    return single or list(found.values())


def _part(path: Path) -> int:
    return int(path.name.rsplit(".", 2)[1].partition("_")[2] or 0)
