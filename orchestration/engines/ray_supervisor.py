"""The job of Ray that starts a plan's jobs in order: `python -m ...ray_supervisor PLAN`.

It takes no resources, submits each job when those that it needs have succeeded, and ends when
nothing is left to do. What it knows is asked of Ray and read from the plan's folder each time.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestration.engines.ray_engine import SPOOL, Ray
from orchestration.engines.ray_notes import Note, write_note
from orchestration.engines.ray_states import SUPERVISOR
from orchestration.errors import EngineError, UnansweredError
from orchestration.load import profile_from
from orchestration.plan import Job, Plan, is_done
from orchestration.profile import RayProfile
from orchestration.states import JobStatus, State
from orchestration.store import read
from pipeline.common.documents import parse
from pipeline.common.printable import log_to

POLL_SECONDS = 1.0
log = logging.getLogger(__name__)


class Supervisor:
    """Submits the jobs called `names` of a plan, each in its turn."""

    def __init__(self, plan: Plan, folder: Path, engine: Ray, names: Sequence[str]) -> None:
        self.plan, self.folder, self.engine = plan, folder, engine
        self.waiting = [job for job in plan.jobs if job.name in names]
        self.names = names
        self.turn = engine.turns(plan) - 1

    def run(self) -> bool:
        """Run until nothing is left to start or to wait for; return whether all has succeeded."""
        while True:
            try:
                known = self.engine.statuses(self.plan, self.folder)
                self._start_ready(known)
            except UnansweredError as error:
                log.warning("%s; asking again", error)
            else:
                if not self._work_left(known):
                    done = [known[name].state == State.DONE for name in self.names if name in known]
                    return len(done) == len(self.names) and all(done)
            time.sleep(POLL_SECONDS)

    def _start_ready(self, known: Mapping[str, JobStatus]) -> None:
        for job in list(self.waiting):
            one = known.get(job.name)
            # The cluster may have taken a job although its answer was lost.
            taken = one is not None and one.engine_id
            if not taken and not all(self._met(need, known.get(need)) for need in job.needs):
                continue
            if not taken:
                self._start(job)
            self.waiting.remove(job)

    def _start(self, job: Job) -> None:
        if is_done(job, self.plan.workdir):
            for label in job.labels:
                write_note(self.folder / SPOOL, label, Note(State.DONE))
            return
        self.engine.start(self.plan, self.folder, job.name, self.turn)
        log.info("%s: submitted", job.name)

    def _met(self, need: str, status: JobStatus | None) -> bool:
        """Return whether a job that is needed has succeeded."""
        if status is None:
            # One that was done before this submission is not known.
            return need not in self.names
        if status.state.active or status.state == State.DONE:
            return status.state == State.DONE
        return need not in self.names and is_done(self.plan.job(need), self.plan.workdir)

    def _work_left(self, known: Mapping[str, JobStatus]) -> bool:
        at_work = {
            name for name, one in known.items() if one.state in (State.QUEUED, State.RUNNING)
        }
        blocked = {name for name, one in known.items() if one.state == State.CANCELLED}
        return bool(at_work) or any(job.name not in blocked for job in self.waiting)


def main(arguments: Sequence[str]) -> int:
    """Run the plan in the folder `arguments[0]`."""
    import ray

    log_to(sys.stdout)

    folder = Path(arguments[0])
    plan = read(folder)
    profile = profile_from(plan.profile, str(folder))
    assert isinstance(profile, RayProfile)
    # Inside the cluster its dashboard may have another address than outside.
    inside = ray.init(log_to_driver=False).dashboard_url
    engine = Ray(profile.model_copy(update={"address": f"http://{inside}"}))
    names = parse((folder / SPOOL / f"{SUPERVISOR}.json").read_text())["jobs"]
    try:
        return 0 if Supervisor(plan, folder, engine, names).run() else 1
    except EngineError as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
