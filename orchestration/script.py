"""The shell script of a job: what is the same on every engine."""

from __future__ import annotations

import shlex

from orchestration.plan import Job, Plan
from orchestration.profile import Profile

# EX_TEMPFAIL of sysexits.h: stopped by a signal after a checkpoint, start me again.
AGAIN = 75

# `wait` returns at once when a signal comes, and must then be called again; 127 means that the
# child's code was read before.
WAITING = """\
while :; do
  wait "$child"; status=$?
  [ "$status" = 127 ] || code=$status
  [ "$caught" = 1 ] || break
  caught=0
done"""


def preamble(plan: Plan, job: Job, profile: Profile) -> list[str]:
    """Return the lines before the command: folder, environment, and the test for work done."""
    lines = [f"cd {shlex.quote(plan.workdir)} || exit 1"]
    if job.kind in ("register", "promote"):
        # After days of training, a server that restarts must not fail the plan: 4 minutes.
        lines.append("export MLFLOW_HTTP_REQUEST_MAX_RETRIES=7")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in profile.env.items()]
    lines += profile.setup
    if profile.environment:
        # After the set-up: a module that is loaded there may bring a Python of its own.
        lines.append(f"export PATH={shlex.quote(profile.environment + '/bin')}:$PATH")
    lines += [
        "set -eo pipefail",
        f"if {job.done}; then",
        "  echo 'The work of this job is there already.'",
        "  exit 0",
        "fi",
    ]
    return lines


def title(plan: Plan, job: Job) -> str:
    """Return a comment of one line that says what the script is of."""
    return f"# {job.name} of plan {plan.id}: {' '.join(job.shell().splitlines())}"


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
