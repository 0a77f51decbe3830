"""The background process of engine `local`: `python -m orchestration.engines.supervisor PLAN`.

It runs the jobs whose needs are met, as many at once as the profile's cores and GPUs allow, and
ends when nothing is left to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from orchestration.engines.local import CANCELLED, SPOOL, SUPERVISOR, stop_group
from orchestration.load import profile_from
from orchestration.plan import Job, Plan, is_done
from orchestration.profile import LocalProfile
from orchestration.store import read
from pipeline.common.atomic import write_text
from pipeline.common.locks import file_lock
from pipeline.common.machine import usable_cores

POLL_SECONDS = 0.1


@dataclass
class Running:
    """A process that works on one part of a job."""

    job: Job
    label: str
    process: subprocess.Popen[bytes]
    gpus: list[int]


@dataclass
class Supervisor:
    """Starts jobs, and counts the cores and GPUs that are free."""

    plan: Plan
    folder: Path
    profile: LocalProfile
    names: Sequence[str]
    stopping: bool = False
    running: list[Running] = field(default_factory=list)
    started: set[str] = field(default_factory=set)
    succeeded: set[str] = field(default_factory=set)

    def run(self) -> bool:
        """Run until nothing is left to start; return whether all jobs have succeeded."""
        todo = [job for job in self.plan.jobs if job.name in self.names]
        for job in self.plan.jobs:
            if job.name not in self.names or is_done(job, self.plan.workdir):
                self.succeeded.update(job.labels)
                self._note_done(job)
        while True:
            self._reap()
            if self.stopping:
                self._stop()
                return False
            for job, label in self._ready(todo):
                self._start(job, label)
            if not self.running:
                return all(label in self.succeeded for job in todo for label in job.labels)
            time.sleep(POLL_SECONDS)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: start nothing more, stop what runs."""
        self.stopping = True

    def _note_done(self, job: Job) -> None:
        for label in job.labels:
            if job.name in self.names:
                write_text(self._spool(f"{label}.exit"), "0\n")

    def _ready(self, todo: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        for job in todo:
            needs = [label for need in job.needs for label in self.plan.job(need).labels]
            if not self.succeeded.issuperset(needs):
                continue
            for label in job.labels:
                if label not in self.started | self.succeeded and self._fits(job):
                    yield job, label

    def _fits(self, job: Job) -> bool:
        cpus = (self.profile.cpus or usable_cores()) - sum(
            one.job.resources.cpus for one in self.running
        )
        # A job that wants more cores than there are runs alone.
        enough = job.resources.cpus <= cpus or not self.running
        return enough and job.resources.gpus <= len(self._free_gpus())

    def _free_gpus(self) -> list[int]:
        taken = {gpu for one in self.running for gpu in one.gpus}
        return [gpu for gpu in range(self.profile.gpus) if gpu not in taken]

    def _start(self, job: Job, label: str) -> None:
        gpus = self._free_gpus()[: job.resources.gpus]
        environment = {**os.environ, "PART": label.rpartition(".")[2]}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        log = (self.folder / "logs" / f"{label}.log").open("wb")
        with file_lock(self._spool(f"{label}.lock")) as lock, log:
            # The lock goes along to the job and all that it starts, and is given up here.
            process = subprocess.Popen(
                ["/bin/bash", str(self.folder / f"{job.name}.sh")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,
            )
            write_text(self._spool(f"{label}.pid"), str(process.pid))
        self.started.add(label)
        self.running.append(Running(job, label, process, gpus))

    def _reap(self) -> None:
        for one in list(self.running):
            code = one.process.poll()
            if code is None:
                continue
            self.running.remove(one)
            if code == 0:
                self.succeeded.add(one.label)
            # A negative code is a signal, which a shell writes as 128 + its number.
            write_text(self._spool(f"{one.label}.exit"), f"{code if code >= 0 else 128 - code}\n")

    def _stop(self) -> None:
        for one in self.running:
            stop_group(self.folder / SPOOL, one.label)
            one.process.wait()
            write_text(self._spool(f"{one.label}.exit"), f"{CANCELLED}\n")
        for job in self.plan.jobs:
            for label in job.labels:
                ended = self._spool(f"{label}.exit")
                if job.name in self.names and not ended.exists():
                    write_text(ended, f"{CANCELLED}\n")

    def _spool(self, name: str) -> Path:
        return self.folder / SPOOL / name


def main(arguments: Sequence[str]) -> int:
    """Run the plan in the folder `arguments[0]`, of its jobs the ones named after it."""
    folder = Path(arguments[0])
    plan = read(folder)
    profile = profile_from(plan.profile, str(folder))
    assert isinstance(profile, LocalProfile)
    supervisor = Supervisor(plan, folder, profile, arguments[1:])
    signal.signal(signal.SIGTERM, supervisor.stop)
    write_text(folder / SPOOL / f"{SUPERVISOR}.pid", str(os.getpid()))
    with file_lock(folder / SPOOL / f"{SUPERVISOR}.lock"):
        return 0 if supervisor.run() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
