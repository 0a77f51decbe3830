"""A plan of jobs: the command, resources and needs of each, and a test that it is done already."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestration.errors import OrchestrationError
from orchestration.profile import Resources
from orchestration.stamps import fresh
from recipes.launching.command import RENDEZVOUS

Kind = Literal["shard", "train", "evaluate", "register", "promote"]
# Stands in a command for the number of an array's part, which only the engine knows.
PART = "{part}"
DONE_TEST_SECONDS = 60


class Stamp(BaseModel):
    """How to tell that outputs were made from the present inputs: see `orchestration.stamps`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """Where the stamp is kept, relative to the plan's working folder."""
    command: str
    """The command, as text: after a change, the work has to be done again."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    container: tuple[str, ...] = ()
    """Words before each command, where jobs run in a container."""

    def shell(self, action: str) -> str:
        """Return the command of `orchestration.stamps` that does `action`, `check` or `take`."""
        words = [*self.container, "python", "-P", "-m", "orchestration.stamps", action, self.file]
        words += [f"--command={self.command}"]
        words += [f"--input={path}" for path in self.inputs]
        words += [f"--output={path}" for path in self.outputs]
        return shlex.join(words)


class Job(BaseModel):
    """One job: a command that a person could type, its resources, needs and outputs.

    Paths are relative to the plan's working folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Unique in the plan: letters, digits, points and dashes."""
    kind: Kind
    words: tuple[str, ...]
    """The command; `PART` and `RENDEZVOUS` are filled in by the engine."""
    resources: Resources
    needs: tuple[str, ...] = ()
    """Names of the jobs that must have succeeded before."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    done: str
    """Shell test that succeeds when the job's work is there already."""
    stamp: Stamp | None = None
    """Left when the job has succeeded, and what `done` looks at; None: `done` is another test."""
    parts: int = 1
    """More than one: an array of so many jobs that run side by side."""
    receipt: str | None = None
    """File that keeps what the command printed, for commands that write to a registry."""
    run_folder: str | None = None
    """For training: the folder of the run, whose run.json names it in MLflow."""
    steps: int | None = None
    """For training: the optimizer steps of the run."""

    @property
    def resumable(self) -> bool:
        """Whether the job, told to stop, keeps its state and goes on when started again."""
        return self.kind == "train"

    @property
    def labels(self) -> list[str]:
        """What the files of each part of the job are called."""
        return [self.name] if self.parts == 1 else [f"{self.name}.{n}" for n in range(self.parts)]

    def shell(self, **known: str) -> str:
        """Return the command as shell text; `known` gives the text for `part` and `rendezvous`."""
        return " ".join(_shell_words(self.words, known))


class Plan(BaseModel):
    """A graph of jobs in an order in which what a job needs comes before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    id: str
    created: str
    """When it was made, ISO 8601 with zone."""
    recipe: str
    """Path of the recipe that was scheduled."""
    overrides: tuple[str, ...] = ()
    out: str
    """The recipe's folder of runs; two plans may not work in it at once."""
    workdir: str
    profile: dict[str, Any]
    jobs: tuple[Job, ...]

    def job(self, name: str) -> Job:
        """Return the job called `name`; raises `OrchestrationError` naming those there are."""
        for job in self.jobs:
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self.jobs)
        raise OrchestrationError(f"plan {self.id} has no job {name}; its jobs are: {known}")


def is_done(job: Job, workdir: str) -> bool:
    """Return whether the job's own test finds its work done, run in `workdir`."""
    if not Path(workdir).is_dir():
        return False
    if job.stamp is not None and "://" not in "".join(job.stamp.outputs):
        stamp = job.stamp
        return fresh(Path(stamp.file), stamp.command, stamp.inputs, stamp.outputs, Path(workdir))
    test = subprocess.run(
        ["/bin/sh", "-c", job.done],
        cwd=workdir,
        check=False,
        capture_output=True,
        timeout=DONE_TEST_SECONDS,
    )
    return test.returncode == 0


def exists(path: str) -> str:
    """Return a shell test that `path` exists: files are written whole, so that is enough."""
    return f"test -e {shlex.quote(path)}"


def _shell_words(words: Sequence[str], known: Mapping[str, str]) -> Iterator[str]:
    """Quote each word; what the engine fills in is shell text already."""
    for word in words:
        if word == RENDEZVOUS:
            if known.get("rendezvous"):
                yield known["rendezvous"]
        elif PART in word:
            before, _, after = word.partition(PART)
            yield f"{before}{known.get('part', '$PART')}{after}"
        else:
            yield shlex.quote(word)
