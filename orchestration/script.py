"""The parts of a job's shell script that are the same on every engine."""

from __future__ import annotations

import os
import shlex

from orchestration.environment import by_name
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

# Told to go (SIGTERM), the script tells the ranks; their launcher must outlive them, for it would
# kill them. Each of several ranks has a session of its own, so they are found by who started them.
STOPPING = """\
stopping=0 caught=0
tell() {{
  local stat pid rest
  for stat in /proc/[0-9]*/stat; do
    read -r pid rest <"$stat" || continue
    rest=(${{rest##*) }})
    [ "${{rest[1]}}" != "$1" ] || {{ kill -USR1 "$pid"; tell "$pid"; }}
  done
}}
stop() {{
  [ "$stopping" = 1 ] ||
    {{ while kill -USR1 "$child"; do tell "$child"; sleep 5; done >/dev/null 2>&1 & }}
  stopping=1 caught=1
}}
trap stop TERM USR1
set +e
bash -c {command} &
child=$!
{waiting}
[ "$code" = 0 ] || [ "$stopping" = 0 ] || code={again}
exit "$code\""""

LOADING = " (Python loads its libraries first, which can take minutes on a busy node)"


def preamble(plan: Plan, job: Job, profile: Profile) -> list[str]:
    """Return the lines before the command: folder, environment, and the test for work done.

    The first line that fails ends the script, one of the profile's set-up too.
    """
    lines = ["set -eo pipefail", f"cd {shlex.quote(plan.workdir)}"]
    if job.kind in ("register", "promote"):
        # After days of training, a server that restarts must not fail the plan: 4 minutes.
        lines.append("export MLFLOW_HTTP_REQUEST_MAX_RETRIES=7")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in profile.env.items()]
    for line in profile.setup:
        # Printed first, so that the log ends with the line that failed and the shell's message.
        lines += [f"echo {shlex.quote(f'set-up: {line}')} >&2", line]
    if profile.environment:
        # After the set-up: a module that is loaded there may bring a Python of its own.
        lines.append(f"export PATH={shlex.quote(profile.environment + '/bin')}:$PATH")
    lines += [
        f"if {job.done}; then",
        "  echo 'The work of this job is there already.'",
        "  exit 0",
        "fi",
    ]
    if job.kind == "train":
        now = "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
        lines.append(f'echo "{now} {job.name} starts on $(uname -n){LOADING}" >&2')
    if job.stamp is not None and job.parts == 1:
        lines.append(job.stamp.shell("take"))
    return lines


def arriving() -> list[str]:
    """Return lines that make a job independent of what its scheduler hands on from the shell.

    With --export=NONE (a site's default, it may be) a job of Slurm has hardly a variable, and Ray
    hands on none. What holds no secret is written here by name; credentials can only come through
    the environment, and a job that misses one says so.
    """
    plain, secret = by_name(os.environ)
    lines = ['export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}"']
    lines += [f"export {name}={shlex.quote(value)}" for name, value in plain.items()]
    if secret:
        lines += [
            f"for name in {' '.join(secret)}; do",
            '  [ -n "${!name+set}" ] || echo "warning: $name is set in the shell that submitted'
            ' this plan, and this cluster does not hand it on" >&2',
            "done",
        ]
    return lines


def stoppable(command: str) -> str:
    """Return shell text that runs training and, on SIGTERM, lets its ranks write a checkpoint.

    It exits with `AGAIN` then, whatever the launcher makes of the ranks' own exit codes.
    """
    inner = f'trap "" USR1 TERM; exec {command}'
    return STOPPING.format(command=shlex.quote(inner), waiting=WAITING, again=AGAIN)


def title(plan: Plan, job: Job) -> str:
    """Return a comment of one line that names the script's plan and job."""
    return f"# {job.name} of plan {plan.id}: {' '.join(job.shell().splitlines())}"


def command(job: Job, container: list[str] | None = None, **known: str) -> str:
    """Return the job's command as shell text; its receipt and its stamp are kept if it has them.

    Both are renamed into place when the command has succeeded, so that they stand for success.
    """
    text = " ".join([*(shlex.quote(word) for word in container or []), job.shell(**known)])
    lines = [text]
    if job.receipt is not None:
        receipt, partial = shlex.quote(job.receipt), shlex.quote(f"{job.receipt}.part")
        lines = [f'mkdir -p "$(dirname {receipt})"', f"{text} >{partial}", *_put(partial, receipt)]
    if job.stamp is not None and job.parts == 1:
        lines += _put(shlex.quote(f"{job.stamp.file}.part"), shlex.quote(job.stamp.file))
    return "\n".join(lines)


def _put(partial: str, whole: str) -> list[str]:
    return [f"sync {partial}", f"mv {partial} {whole}"]
