"""Shows a plan: as rows of a table, and as a Mermaid graph."""

from __future__ import annotations

from orchestration.plan import Job, Plan, is_done

SHAPES = {
    "shard": ("[(", ")]"),
    "train": ("[", "]"),
    "evaluate": ("([", "])"),
    "register": ("{{", "}}"),
    "promote": (">", "]"),
}


def rows(plan: Plan) -> list[dict[str, str]]:
    """Return a row for each job: its name, needs, resources, whether it is done, its command."""
    return [
        {
            "job": job.name if job.parts == 1 else f"{job.name} x {job.parts}",
            "needs": ", ".join(job.needs),
            "resources": resources(job),
            "done": "yes" if is_done(job, plan.workdir) else "no",
            "inputs": ", ".join(job.inputs),
            "outputs": ", ".join(job.outputs),
            "done when": job.done,
            "command": job.shell(),
        }
        for job in plan.jobs
    ]


def resources(job: Job) -> str:
    """Return what a job takes in a few words."""
    wanted = job.resources
    words = [f"{wanted.nodes} nodes of"] if wanted.nodes > 1 else []
    words.append(f"{wanted.cpus} cpus")
    words += [f"{wanted.gpus} gpus"] if wanted.gpus else []
    words += [wanted.memory] if wanted.memory else []
    return " ".join([*words, f"{wanted.minutes} min"])


def mermaid(plan: Plan) -> str:
    """Return the plan as a Mermaid flow chart; what is done already is drawn grey."""
    number = {job.name: f"j{index}" for index, job in enumerate(plan.jobs)}
    lines = ["flowchart LR"]
    for job in plan.jobs:
        left, right = SHAPES[job.kind]
        times = f" x {job.parts}" if job.parts > 1 else ""
        lines.append(f'    {number[job.name]}{left}"{job.name}{times}"{right}')
    for job in plan.jobs:
        lines += [f"    {number[need]} --> {number[job.name]}" for need in job.needs]
    done = [number[job.name] for job in plan.jobs if is_done(job, plan.workdir)]
    if done:
        lines += ["    classDef done fill:#ddd,color:#666", f"    class {','.join(done)} done"]
    return "\n".join(lines) + "\n"
