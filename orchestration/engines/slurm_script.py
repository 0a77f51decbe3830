"""The batch script of a job on Slurm."""

from __future__ import annotations

import shlex
from pathlib import Path

from orchestration.plan import Job, Plan
from orchestration.profile import SlurmProfile
from orchestration.script import AGAIN, WAITING, arriving, command, preamble, title
from orchestration.store import CANCELLED_FILE
from recipes.launching.command import rendezvous

# Nodes find each other at the first one of the job; the port keeps two jobs on a node apart.
HEAD = (
    '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" |'
    " grep -m 1 -x '[A-Za-z0-9][A-Za-z0-9._-]*')\""
)
PORT = "$((20000 + SLURM_JOB_ID % 10000))"

# What to do when the batch shell is told that time is nearly up. srun passes the signal to every
# process of every node. It is sent again and again, for a process that still imports ignores it.
STOPPING = """\
stopping=0 caught=0
stop() {
  [ "$stopping" = 1 ] || { while kill -USR1 "$child"; do sleep 5; done >/dev/null 2>&1 & }
  stopping=1 caught=1
}
trap stop USR1
set +e"""

# A cancelled job must not come back: only one that Slurm still counts as running is requeued.
# The exit code alone would not do, a launcher within a container may turn every code into 1. In a
# partition with a grace time, only the tasks get a signal, and the batch shell none. A controller
# that restarts does not answer for a while. What set-up lines and modules tell Slurm's tools would
# change their answers.
REQUEUE = """\
unset ${{!SQUEUE_@}} ${{!SCONTROL_@}} SLURM_TIME_FORMAT SLURM_CLUSTERS
ask() {{
  for pause in 5 10 20 40 0; do
    "$@" && return
    sleep "$pause"
  done
  return 1
}}
preempted() {{
  ask scontrol show job "$SLURM_JOB_ID" | grep "[[:space:]]PreemptTime=[0-9]" >/dev/null
}}
if [ "$code" != 0 ] && [ ! -e {cancelled} ] &&
  {{ [ "$stopping" = 1 ] || [ "$code" = {again} ] || preempted; }} &&
  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ] &&
  ask squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T | grep -x RUNNING >/dev/null; then
  echo "Stopped after a checkpoint; queued again."
  ask scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code\""""


def batch_script(plan: Plan, job: Job, profile: SlurmProfile, folder: Path) -> str:
    """Return the script that `sbatch` gets for `job`; dependencies are on its command line."""
    lines = ["#!/bin/bash", title(plan, job)]
    lines += [f"#SBATCH {option}" for option in _options(plan, job, profile, folder)]
    lines += [
        "",
        *_ending(job, folder),
        "unset SLURM_EXPORT_ENV",
        *arriving(),
        *preamble(plan, job, profile),
        "",
    ]
    if job.resumable:
        lines += [STOPPING, f"{_training(job, profile)} &", "child=$!", WAITING]
        cancelled = shlex.quote(str(folder / CANCELLED_FILE))
        lines.append(REQUEUE.format(again=AGAIN, requeues=profile.requeues, cancelled=cancelled))
    else:
        lines.append(command(job, profile.container, part='"$SLURM_ARRAY_TASK_ID"'))
    return "\n".join(lines) + "\n"


def _ending(job: Job, folder: Path) -> list[str]:
    """Return lines that leave the job's exit code beside its log, for a scheduler that forgets."""
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.parts > 1 else "$SLURM_JOB_ID"
    return [
        f'ended={shlex.quote(f"{folder}/logs/{job.name}.")}"{number}.exit"',
        'rm -f "$ended"',
        """trap 'echo "$?" >"$ended"' EXIT""",
    ]


def job_name(plan: Plan, job: Job) -> str:
    """Return the job's name on Slurm, which holds the plan's id, so that nothing else need be kept.

    The job's own name comes first, because `squeue` shows only eight characters.
    """
    return f"{job.name}:{plan.id}"


def known_names(plan: Plan, job: Job) -> tuple[str, str]:
    """Return the job's names on Slurm: the present one, and that of older versions."""
    return job_name(plan, job), f"{plan.id}:{job.name}"


def named_options(plan: Plan, job: Job, folder: Path) -> dict[str, str]:
    """Return the options of sbatch by which a job and its log are found again."""
    log = "%A_%a" if job.parts > 1 else "%j"
    return {
        "job-name": job_name(plan, job),
        "comment": str(folder),
        "output": f"{str(folder).replace('%', '%%')}/logs/{job.name}.{log}.log",
    }


def _options(plan: Plan, job: Job, profile: SlurmProfile, folder: Path) -> list[str]:
    wanted = job.resources
    named = {
        **named_options(plan, job, folder),
        "clusters": profile.cluster,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "nodes": wanted.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": wanted.cpus,
        "mem": wanted.memory,
        "time": wanted.minutes,
        "array": f"0-{job.parts - 1}" if job.parts > 1 else None,
        "signal": f"B:USR1@{profile.signal_seconds}" if job.resumable else None,
    }
    options = [
        f"--{name}={shlex.quote(str(value))}" for name, value in named.items() if value is not None
    ]
    if wanted.gpus:
        options.append(profile.gpu_option.format(gpus=wanted.gpus))
    # A node that dies puts the job back in the queue; its log goes on in the same file.
    options += ["--export=ALL", "--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes"]
    return [*options, *profile.sbatch]


def _training(job: Job, profile: SlurmProfile) -> str:
    """Return one task on each node that launches the node's ranks.

    The launcher must outlive the signal that its ranks act upon: what the shell ignores, the
    launcher ignores too, while the training script sets a handler of its own. srun does not take
    over --cpus-per-task from the job (since Slurm 22.05).
    """
    meet = rendezvous('"$SLURM_NODEID"', '"$HEAD"', f'"{PORT}"')
    inner = f'trap "" USR1 TERM; exec {command(job, profile.container, rendezvous=meet)}'
    options = ["--export=ALL", "--kill-on-bad-exit=1", f"--cpus-per-task={job.resources.cpus}"]
    options += profile.srun
    words = " ".join(shlex.quote(option) for option in options)
    head = f"export HEAD={HEAD}\n" if job.resources.nodes > 1 else ""
    return f"{head}srun {words} bash -c {shlex.quote(inner)}"
