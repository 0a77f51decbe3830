"""`pipeline schedule`, `status`, `logs`, `cancel` and `retry`: a recipe as jobs on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import echo
from pipeline.common.references import key_of

if TYPE_CHECKING:
    from orchestration.control import Scheduled
    from orchestration.plan import Plan
    from orchestration.states import JobStatus
    from pipeline.tracking import RunProgress

PIPE_COLUMNS = 250
# Columns of `status`, from left to right; the reason follows. On a narrow screen the columns in
# LEAST_WANTED are left out first; a reason with less room than LEAST_REASON is put below its job.
COLUMNS = ("job", "state", "progress", "left", "elapsed", "nodes", "id")
LEAST_WANTED = ("elapsed", "id", "nodes", "left", "progress")
LEAST_REASON = 20
BELOW = 4
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PlanId = Annotated[str, typer.Argument(metavar="PLAN", help="The id that `schedule` printed.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (schedule, status, logs, cancel, retry):
        app.command()(command)


def schedule(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe to train.")],
    on: Annotated[
        Path, typer.Option("--on", metavar="PROFILE.yaml", help="The machine or cluster to run on.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]...", help="Settings to change in the recipe."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its scripts; submit nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the plan has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a recipe as a plan of dependent jobs, and print the plan's id.

    The plan has jobs for sharding, for each stage at each rate, and for evaluation, registration
    and promotion. The profile names the engine that runs them. Finished work gets no job.

    Example: pipeline schedule recipes/imagenet.yaml --on orchestration/profiles/slurm.yaml
    """
    from orchestration import control
    from recipes.config.bundled import shipped

    scheduled = control.make_plan(shipped(recipe), shipped(on), overrides or [])
    plan, folder = scheduled.plan, scheduled.folder
    if dry_run:
        _print_plan(scheduled, as_json)
        return
    names = control.schedule(scheduled)
    left_out = len(plan.jobs) - len(names)
    echo(f"submitted {len(names)} jobs; {left_out} were done already", err=True)
    if wait and names and not control.wait(plan, folder, _reporter()):
        failed = [job for job in control.status(plan, folder) if job.state == "failed"]
        _fail_because_of(plan, failed)
    if as_json:
        _print_json({"plan": plan.id, "folder": str(folder), "jobs": names})
    else:
        echo(plan.id)


def status(
    plan: Annotated[
        str | None, typer.Argument(metavar="[PLAN]", help="The plan's id. Default: list all plans.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show each job of a plan: state, progress, time left, and why it waits or failed.

    States come from the engine, progress from the runs' records. Without PLAN, list the plans that
    were scheduled from this folder.

    Example: pipeline status imagenet-261123-0950-7c1f
    """
    from orchestration import control

    if plan is None:
        _print_plans(as_json)
        return
    scheduled, folder = control.find(plan)
    rows = _rows(scheduled, control.status(scheduled, folder))
    if as_json:
        _print_json({"plan": scheduled.id, "engine": scheduled.profile["engine"], "jobs": rows})
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_COLUMNS
    echo(f"{scheduled.id} on {scheduled.profile['engine']}")
    for line in status_lines(rows, width):
        echo(line)


def logs(
    plan: PlanId,
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The job's name, as `status` shows it.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the job ends.")
    ] = False,
) -> None:
    """Print a job's log; with --follow, also new lines until the job ends.

    Example: pipeline logs imagenet-261123-0950-7c1f train-base --follow
    """
    from orchestration import control

    scheduled, folder = control.find(plan)
    for piece in control.logs(scheduled, folder, job, follow):
        sys.stdout.write(piece)
        sys.stdout.flush()


def cancel(plan: PlanId, as_json: AsJson = False) -> None:
    """Stop all jobs of a plan; finished work and checkpoints are kept.

    Running training has time to write a checkpoint. The command returns when no job runs.

    Example: pipeline cancel imagenet-261123-0950-7c1f
    """
    from orchestration import control

    scheduled, folder = control.find(plan)
    names = control.cancel(scheduled, folder)
    if as_json:
        _print_json({"plan": scheduled.id, "cancelled": names})
    elif names:
        echo(f"{len(names)} jobs cancelled; `pipeline retry {scheduled.id}` continues the plan")
    else:
        echo("nothing to cancel: no job waits or runs")


def retry(plan: PlanId, as_json: AsJson = False) -> None:
    """Submit again only the jobs that failed, were cancelled or are missing.

    Example: pipeline retry imagenet-261123-0950-7c1f
    """
    from orchestration import control

    scheduled, folder = control.find(plan)
    names = control.retry(scheduled, folder)
    if as_json:
        _print_json({"plan": scheduled.id, "jobs": names})
    elif names:
        echo(f"submitted {len(names)} jobs: {', '.join(names)}")
    else:
        echo("nothing to retry: every job is done, waiting or running")


def _print_plan(scheduled: Scheduled, as_json: bool) -> None:
    from orchestration.drawing import mermaid, rows

    plan, scripts = scheduled.plan, scheduled.scripts
    table, picture = rows(plan), mermaid(plan)
    if as_json:
        _print_json({"plan": plan.id, "jobs": table, "mermaid": picture, "scripts": scripts})
        return
    columns = ("job", "needs", "resources", "outputs", "done")
    _print_table("Plan (dry run: nothing is submitted)", table, columns)
    echo("Drawing (Mermaid):\n\n```mermaid\n" + picture + "```\n")
    for name, text in scripts.items():
        echo(f"===== {name} =====\n{text}")


def _print_plans(as_json: bool) -> None:
    from orchestration import control

    rows = []
    for plan, folder in control.plans():
        try:
            words = _counts(control.status(plan, folder))
        except control.EngineError as error:
            words = str(error)
        engine = str(plan.profile["engine"])
        rows.append({"plan": plan.id, "recipe": plan.recipe, "engine": engine, "jobs": words})
    if as_json:
        _print_json({"plans": rows})
    elif rows:
        _print_table("Plans", rows, ("plan", "recipe", "engine", "jobs"))
    else:
        echo("no plans were scheduled from this folder")


def _rows(plan: Plan, statuses: Sequence[JobStatus]) -> list[dict[str, Any]]:
    """Return each job's status as a row to print, with its progress while it trains."""
    _look_where_jobs_write(plan)
    rows = []
    reachable = True
    for job_status in statuses:
        row = _row(job_status)
        job = plan.job(job_status.name)
        if job.run_folder and job_status.state != "waiting":
            known = _spooled(plan, job.run_folder)
            if known is None and reachable and (run := _run_in(plan, job.run_folder)):
                from pipeline.tracking import run_progress

                known = run_progress(run)
                # A store that does not answer is asked only once: each attempt takes seconds. One
                # that has no run of a key yet may know the others.
                reachable = known is not None or key_of(run) is not None
            _add_progress(row, known, job.steps or 0, job_status)
        rows.append(row)
    return rows


def _look_where_jobs_write(plan: Plan) -> None:
    """Point this process at the tracking store that the plan's jobs use."""
    for name, value in plan.profile["env"].items():
        if name.startswith("MLFLOW_"):
            os.environ.setdefault(name, value)
    # The default store is a file in the working folder.
    if Path(plan.workdir).is_dir():
        os.chdir(plan.workdir)


def _spooled(plan: Plan, run_folder: str) -> RunProgress | None:
    from pipeline.tracking.progress import spooled_progress

    return spooled_progress(Path(plan.workdir, run_folder))


def _row(job: JobStatus) -> dict[str, Any]:
    row: dict[str, Any] = {
        "job": job.name,
        "state": str(job.state),
        "progress": job.progress,
        "left": job.left,
        "elapsed": job.elapsed,
        "nodes": job.nodes,
        "id": job.engine_id,
        "reason": job.reason,
        "restarts": job.restarts,
    }
    if job.restarts:
        again = f"started again {job.restarts} x"
        row["reason"] = ", ".join(word for word in (job.reason, again) if word)
    return row


def _run_in(plan: Plan, run_folder: str) -> str | None:
    """Return the reference of the run in `run_folder`; None before training has written it."""
    from pipeline.tracking.resolving import run_reference

    return run_reference(Path(plan.workdir, run_folder))


def _add_progress(
    row: dict[str, Any], known: RunProgress | None, steps: int, job: JobStatus
) -> None:
    """Add the steps that a run has done and, while it runs, the time that it still needs."""
    if known is None:
        return
    row["progress"] = f"{known.step} of {steps}"
    if job.state == "running" and known.seconds_per_step is not None:
        needed = _duration((steps - known.step) * known.seconds_per_step)
        row["left"] = f"{needed} (limit {job.left})" if job.left else needed


def status_lines(rows: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    """Yield the lines of a plan's status, a line for each job if `width` characters allow it.

    Names are neither cut nor folded. Columns that do not fit beside them are left out, and the
    reason is put below.
    """
    columns = [name for name in COLUMNS if any(row[name] for row in rows)]
    size = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in columns}
    least = _least_reason(rows)
    for name in LEAST_WANTED:
        # Progress and time left stay as long as they fit without the reason.
        room = width if name in ("left", "progress") else width - least
        if sum(size.values()) + 2 * len(size) > room:
            size.pop(name, None)
    used = sum(size.values()) + 2 * len(size)
    beside = width - used >= least
    reasons = any(row["reason"] for row in rows)
    header = [name.ljust(size[name]) for name in size] + (["reason"] if beside and reasons else [])
    yield "  ".join(header).rstrip()
    indent = used if beside else BELOW
    for row in rows:
        line = "  ".join(str(row[name]).ljust(size[name]) for name in size)
        room = max(width - indent, LEAST_REASON)
        first, *rest = textwrap.wrap(row["reason"], room, break_on_hyphens=False) or [""]
        yield f"{line}  {first}".rstrip() if beside else line.rstrip()
        yield from (" " * indent + part for part in (rest if beside else [first, *rest]) if part)


def _least_reason(rows: Sequence[dict[str, Any]]) -> int:
    """Return the width in characters that a reason needs so that no job's name is folded."""
    names = {str(row["job"]) for row in rows}
    words = [word for row in rows for word in str(row["reason"]).split()]
    return max([LEAST_REASON, *(len(word) for word in words if word.strip(",") in names)])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _reporter() -> Callable[[Sequence[JobStatus]], None]:
    """Return a report that writes a line whenever something has changed."""
    last = ""

    def report(jobs: Sequence[JobStatus]) -> None:
        nonlocal last
        running = ", ".join(job.name for job in jobs if job.state == "running")
        line = _counts(jobs) + (f" ({running})" if running else "")
        if line != last:
            last = line
            echo(line, err=True)

    return report


def _counts(jobs: Sequence[JobStatus]) -> str:
    states = [job.state for job in jobs]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _fail_because_of(plan: Plan, failed: Sequence[JobStatus]) -> None:
    from orchestration.errors import EngineError

    why = "; ".join(f"{job.name}: {job.reason}" for job in failed) or "it was cancelled"
    raise EngineError(
        f"plan {plan.id} did not succeed ({why}); `pipeline logs {plan.id} JOB` shows more,"
        f" `pipeline retry {plan.id}` continues the plan"
    )


def _print_json(content: Any) -> None:
    echo(json.dumps(content, indent=1))


def _print_table(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        if any(row[column] for row in rows) or column == columns[0]:
            table.add_column(column, overflow="fold")
    shown = [column.header for column in table.columns]
    for row in rows:
        table.add_row(*(str(row[str(column)]) for column in shown))
    # A pipe has no width to fit: each job gets one line.
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)
