"""Finds this process's rank, and checks that the other processes exist.

Launchers tell a process its rank by variables. Left behind in a shell they make a lone process
wait, for half an hour, for others that nobody starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.common.documents import DocumentError, reading_yaml
from recipes.config.settings import RecipeError

# Variables of each kind of launcher: the rank, the number of processes, and what belongs to them.
_KINDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "RANK",
        "WORLD_SIZE",
        (
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "NODE_RANK",
            "GROUP_RANK",
            "GROUP_WORLD_SIZE",
            "ROLE_RANK",
            "ROLE_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        ),
    ),
    ("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")),
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ),
)
# Ranks that count on one machine alone.
_LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", *(rest[0] for _, _, rest in _KINDS[2:]))
# The module that a scheduler's job runs in place of `accelerate launch`.
OWN_LAUNCHER = "recipes.launching.job"
# Programs that start processes together, by their names in the ancestors' command lines.
_STARTERS = (
    "torchrun",
    "torch.distributed",
    "accelerate",
    OWN_LAUNCHER,
    "deepspeed",
    "mpirun",
    "mpiexec",
    "orterun",
    "prterun",
    "orted",
    "prted",
    "pmi_proxy",
)
# The variable that says how many threads a process computes with, and the option that does.
THREADS, THREADS_OPTION = "OMP_NUM_THREADS", "--num_cpu_threads_per_process"
# The program that a launcher runs: a path or, after -m, a module.
SCRIPT = ("train.py", "recipes.train")
_HERE = ("", "localhost", "127.0.0.1", "::1")
# Seconds to wait for processes that variables name, where no launcher is among the ancestors.
PATIENCE_HERE, PATIENCE_ELSEWHERE = 30, 600


@dataclass(frozen=True)
class Claim:
    """A claim of variables that this is process `rank` of `world`; `names` are the variables."""

    rank: int
    world: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


def claims(environment: Mapping[str, str]) -> list[Claim]:
    """Return the claim of each kind of launcher whose variables are set."""
    return [claim for kind in _KINDS if (claim := _claim(environment, *kind)) is not None]


def _claim(
    environment: Mapping[str, str], rank: str, world: str, others: Sequence[str]
) -> Claim | None:
    names = tuple(name for name in (rank, world, *others) if environment.get(name))
    if not names or all(name.startswith("MASTER_") for name in names):
        return None
    numbers = [number(environment.get(name)) or 0 for name in (rank, *_LOCAL) if name in names]
    return Claim(max([0, *numbers]), number(environment.get(world)) or 1, names)


def refuse_left_over(environment: Mapping[str, str], advice: str) -> None:
    """Raise `RecipeError` when variables say that this is one of several processes."""
    for claim in claims(environment):
        if claim.world > 1 or claim.rank > 0:
            unset = " ".join(f"-u {name}" for name in claim.names)
            raise RecipeError(
                f"{claim} in this shell say that another launcher started this as process"
                f" {claim.rank} of {max(claim.world, claim.rank + 1)}, so it would wait for the"
                f" others: {advice}, or start it by `env {unset} ...`"
            )


def forget(environment: MutableMapping[str, str], kinds: slice = slice(None)) -> None:
    """Remove the variables of launchers; `kinds` chooses: torch's, PMI's, Open MPI's, MVAPICH's."""
    for rank, world, others in _KINDS[kinds]:
        for name in (rank, world, *others):
            environment.pop(name, None)


def settle(environment: MutableMapping[str, str], parents: Sequence[Sequence[str]]) -> float | None:
    """Remove ranks that are not true from `environment`; `parents` are the ancestors' commands.

    Return how many seconds to wait for the other processes; None: a launcher vouches for them, or
    there are none. Raises `RecipeError` for ranks of a launcher that is gone.
    """
    found = claims(environment)
    if not any(claim.world > 1 or claim.rank > 0 for claim in found):
        if not started_by(parents):
            forget(environment)
        return None
    _refuse_contradiction(environment, parents)
    if started_by(parents) or _by_slurm(environment, found):
        if environment.get("WORLD_SIZE") and environment.get("RANK"):
            forget(environment, slice(1, None))
        return None
    if not _can_meet(environment):
        refuse_left_over(environment, "start it by `accelerate launch` or `pipeline train`")
    forget(environment, slice(1, None))
    here = environment.get("MASTER_ADDR", "").lower() in _HERE
    return PATIENCE_HERE if here else PATIENCE_ELSEWHERE


def _refuse_contradiction(environment: Mapping[str, str], parents: Sequence[Sequence[str]]) -> None:
    """Raise `RecipeError` when `accelerate launch` started one process, and the shell says more."""
    asked = processes_asked(parents[0]) if parents else None
    if asked == 1:
        refuse_left_over(environment, "`accelerate launch` started it alone: unset them")


def _by_slurm(environment: Mapping[str, str], found: Sequence[Claim]) -> bool:
    """Tell whether this is a task of `srun`, of as many as the variables say."""
    tasks = {number(environment.get(name)) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")}
    return "SLURM_PROCID" in environment and all(claim.world in tasks for claim in found)


def _can_meet(environment: Mapping[str, str]) -> bool:
    """Tell whether torch's variables say where all processes meet."""
    return all(environment.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")) and bool(
        number(environment.get("MASTER_PORT"))
    )


def started_by(parents: Sequence[Sequence[str]]) -> bool:
    """Tell whether one of the ancestors, of these command lines, starts processes together."""
    return any(
        starter in Path(word).name or (starter in word and "/" not in word)
        for command in parents
        for word in _program(command)
        for starter in _STARTERS
    )


def _program(command: Sequence[str]) -> Sequence[str]:
    """Return the words of a command line that name its program: Python's module or script."""
    words = list(command)
    if not words or not Path(words[0]).name.startswith("python"):
        return words[:1]
    for index, word in enumerate(words[1:], 1):
        if word == "-m":
            return words[index + 1 : index + 2]
        if not word.startswith("-"):
            return [word]
    return []


def ancestors() -> list[list[str]]:
    """Return the command lines of this process's ancestors, its parent first."""
    return list(_ancestors(os.getppid()))


def _ancestors(pid: int) -> Iterator[list[str]]:
    while pid > 0:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        yield [word.decode(errors="replace") for word in line.split(b"\0") if word]
        # After the name, which may hold anything, in brackets: the state, then the parent.
        pid = int(status.rpartition(")")[2].split()[1])


def check_together(
    together: int,
    recipe_processes: int | None,
    environment: Mapping[str, str],
    parent: Sequence[str],
) -> None:
    """Raise `RecipeError` unless as many processes train `together` as anyone asked for."""
    asked = {
        "the recipe's processes": recipe_processes,
        "the launcher (WORLD_SIZE)": number(environment.get("WORLD_SIZE")),
        "accelerate launch (--num_processes)": processes_asked(parent),
    }
    for who, count in asked.items():
        if count is not None and count != together:
            raise RecipeError(
                f"{who} asked for {count} processes, but {together} would train here, each"
                f" launch its own model: use `pipeline train`, or on a CPU `ACCELERATE_USE_CPU="
                f"true accelerate launch --multi_gpu --num_processes {count} ...`"
            )


def processes_asked(command: Sequence[str]) -> int | None:
    """Return the number of processes that an `accelerate launch` command line asks for."""
    options = _launch_options(command)
    if options is None:
        return None
    if "num_processes" in options:
        return number(options["num_processes"])
    if "config_file" in options:
        return _configured(Path(options["config_file"]))
    return None


def threads_asked(command: Sequence[str]) -> int | None:
    """Return the threads that an `accelerate launch` command line gives to each process."""
    options = _launch_options(command) or {}
    return number(options.get(THREADS_OPTION[2:])) or None


def _launch_options(command: Sequence[str]) -> dict[str, str] | None:
    """Return the options of an `accelerate launch`; None for another command."""
    words = list(command)
    by_accelerate = any("accelerate" in word for word in words) and "launch" in " ".join(words)
    if not by_accelerate and OWN_LAUNCHER not in words:
        return None
    script = next((i for i, word in enumerate(words) if word.endswith(SCRIPT)), len(words))
    return _options(words[:script])


def _options(words: Sequence[str]) -> dict[str, str]:
    options = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else following
    return options


def _configured(path: Path) -> int | None:
    try:
        with reading_yaml():
            config = yaml.safe_load(path.read_text())
    except (OSError, DocumentError):
        return None
    return number(config.get("num_processes")) if isinstance(config, dict) else None


def number(value: object) -> int | None:
    """Return `value` as a whole number; None if it is none."""
    try:
        return int(str(value))
    except ValueError:
        return None
