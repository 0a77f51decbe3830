"""Plans of small commands, made by hand, and how to wait for what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestration import control, store
from orchestration.load import engine_of
from orchestration.plan import Job, Plan, exists
from orchestration.profile import Profile, Resources
from orchestration.states import JobStatus, State
from tests import patience

SMALL = Resources(cpus=1, memory="200M", minutes=5)
STEPS = 80

# Training in small: a state that is written whole after each step, a request to stop that is
# obeyed after the step, weights that depend on every step. What stops it otherwise costs a step.
# With the word `tracked` it logs the weights of each step, as training does.
TRAINER = f"""
import pathlib, signal, sys, time
stop = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.append(1))
state = pathlib.Path("state.txt")
step, weights = map(int, state.read_text().split()) if state.exists() else (0, 1)
tracker = None
if "tracked" in sys.argv:
    from pipeline.tracking import Tracker
    where = pathlib.Path("run")
    tracker = Tracker.start("faults", "train", params={{}}, tags={{}}, folder=where)
def close(status):
    if tracker is not None:
        tracker.finish(status, seconds=1)
while step < {STEPS}:
    step, weights = step + 1, weights * 31 % 1000003 + step
    if tracker is not None:
        tracker.log({{"weights": weights}}, step)
    partial = pathlib.Path("state.part")
    partial.write_text(f"{{step}} {{weights}}")
    partial.replace(state)
    if stop:
        close("KILLED")
        sys.exit(75)
    time.sleep(0.1)
close("FINISHED")
pathlib.Path("train.out").write_text(f"{{step}} {{weights}}")
"""


def expected_weights() -> list[int]:
    """Return the weights after each step of an undisturbed training."""
    weights = [1]
    for step in range(STEPS):
        weights.append(weights[-1] * 31 % 1000003 + step)
    return weights[1:]


def job(name: str, shell: str, needs: Sequence[str] = (), **more: Any) -> Job:
    """Return a job that runs `shell` and then leaves the file `NAME.out`."""
    made = f"{name}.out"
    fields: dict[str, Any] = {
        "name": name,
        "kind": "register",
        "words": ("bash", "-c", f"{shell}; code=$?; [ $code = 0 ] && touch {made}; exit $code"),
        "resources": SMALL,
        "needs": tuple(needs),
        "outputs": (made,),
        "done": exists(made),
    }
    return Job(**{**fields, **more})


def made_plan(place: Path, profile: Profile, jobs: Sequence[Job]) -> control.Scheduled:
    """Return a plan of `jobs` in the working folder `place`, not yet scheduled."""
    known = profile.model_copy(update={"workdir": str(place), "environment": None})
    (place / "recipe.yaml").write_text("name: by-hand\n")
    plan = Plan(
        id=store.new_id("test"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=str(place / "recipe.yaml"),
        out=str(place / "out"),
        workdir=str(place),
        profile=known.model_dump(mode="json"),
        jobs=tuple(jobs),
    )
    folder = place / store.FOLDER / plan.id
    engine = engine_of(known)
    return control.Scheduled(plan, folder, engine, engine.scripts(plan, folder))


def wait_for(reached: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait as `patience.wait_for` does, with pauses: each look starts some of Slurm's commands."""
    patience.wait_for(reached, what, seconds, pause=0.4)


def states(plan: Plan, folder: Path) -> dict[str, State]:
    return {one.name: one.state for one in control.status(plan, folder)}


def ended(plan: Plan, folder: Path) -> dict[str, JobStatus]:
    """Wait until nothing of the plan is active, and return the last status of each job."""
    found: list[JobStatus] = []

    def over() -> bool:
        found[:] = control.status(plan, folder)
        return not any(one.state.active for one in found)

    wait_for(over, f"the end of plan {plan.id}", seconds=600)
    return {one.name: one for one in found}
