"""The shell script of a job: what is the same on every engine."""

from __future__ import annotations

import shlex

from orchestration.plan import Job, Plan
from orchestration.profile import Profile

# EX_TEMPFAIL of sysexits.h: stopped by a signal after a checkpoint, start me again.
AGAIN = 75


def preamble(plan: Plan, job: Job, profile: Profile) -> list[str]:
    """Return the lines before the command: folder, environment, and the test for work done."""
    lines = [f"cd {shlex.quote(plan.workdir)} || exit 1"]
    if profile.environment:
        lines.append(f"export PATH={shlex.quote(profile.environment + '/bin')}:$PATH")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in profile.env.items()]
    lines += profile.setup
    lines += [
        "set -eo pipefail",
        f"if {job.done}; then",
        "  echo 'The work of this job is there already.'",
        "  exit 0",
        "fi",
    ]
    return lines


def command(job: Job, container: list[str] | None = None, **known: str) -> str:
    """Return the job's command as shell text, its receipt kept if it has one.

    A receipt is renamed into place when the command has succeeded, so that it stands for success.
    """
    text = " ".join([*(shlex.quote(word) for word in container or []), job.shell(**known)])
    if job.receipt is None:
        return text
    receipt, partial = shlex.quote(job.receipt), shlex.quote(f"{job.receipt}.part")
    return "\n".join(
        [
            f'mkdir -p "$(dirname {receipt})"',
            f"{text} | tee {partial}",
            f"sync {partial}",
            f"mv {partial} {receipt}",
        ]
    )
