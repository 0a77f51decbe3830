"""Checkpoints: the whole state of a run at a step, in a folder that is complete or absent.

`checkpoints/step-00000200/` holds `state.safetensors`, tensors by the names of parameters
(`weights.`, `exp_avg.`, `exp_avg_sq.`, `ema.` and then the parameter), and `checkpoint.json`:
the step, what the run's numbers depend on, and the SHA-256 of the tensors. It is the same for any
number of processes and any sharding, so a run can go on with another. There is no state of random
numbers, of the schedule or of the data in it: all three are functions of the step.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.atomic import NoSpaceError, remove_folder, sweep, write_json, writing_folder
from pipeline.common.digests import file_sha256
from pipeline.common.documents import parse
from pipeline.common.errors import RunError
from pipeline.common.locks import check_held
from recipes.config.settings import RecipeError
from recipes.training.tensor_file import write_tensors
from recipes.training.trainer_state import TrainerState

FORMAT = 1
FOLDER = "checkpoints"
PREFIX = "step-"
STATE, ABOUT = "state.safetensors", "checkpoint.json"
# Facts about the step that a run began from.
ORIGIN = ("step", "sha256", "run", "run_id", "recipe_digest")
_NEEDED = {"step", "sha256", "decisive", "data_digest", "memory"}
log = logging.getLogger(__name__)


class CheckpointError(RunError):
    """A checkpoint can't be written or used."""


class NoCheckpointError(RecipeError):
    """There are checkpoints, but none that a run may continue from unasked."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk; `about` is what `checkpoint.json` says."""

    folder: Path
    about: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that led to it."""
        return int(self.about["step"])

    @property
    def cost(self) -> float | None:
        """The held-out cost at its step; None if there was no evaluation."""
        cost = self.about.get("cost")
        return None if cost is None else float(cost)

    @property
    def origin(self) -> dict[str, Any] | None:
        """The run and step that its run began from, and facts about them; None: step 0."""
        said = self.about.get("origin")
        return dict.fromkeys(ORIGIN) | said if isinstance(said, dict) else None

    @property
    def judged_by(self) -> str:
        """The digest of the held-out pictures that costs are of; "" if there are none."""
        return str(self.about["memory"].get("judged_by", ""))

    def tensors(self) -> dict[str, Tensor]:
        """Read the state; raises `CheckpointError` when it is not what was written."""
        path = self.folder / STATE
        if not os.path.lexists(path) or file_sha256(path) != self.about["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum differs from {ABOUT}")
        state: dict[str, Tensor] = load_file(path)
        return state


@dataclass(frozen=True)
class Unusable:
    """A checkpoint that can't be used now; `reason` says why.

    `passing`: the fault may pass by itself, or be none for another version.
    """

    folder: Path
    reason: str
    passing: bool

    @property
    def step(self) -> int:
        """The step in its name; -1 if there is none."""
        number = self.folder.name.removeprefix(PREFIX)
        return int(number) if number.isdecimal() else -1

    def __str__(self) -> str:
        return f"{self.folder.name} {self.reason}"


def examine(run_folder: Path) -> tuple[list[Checkpoint], list[Unusable]]:
    """Return the complete checkpoints of a run, the newest last, and the other ones.

    Raises `NoCheckpointError` when the folder of checkpoints is there and can't be read.
    """
    good: list[Checkpoint] = []
    bad: list[Unusable] = []
    for folder in _folders(run_folder / FOLDER):
        checkpoint = opened(folder)
        if isinstance(checkpoint, Checkpoint):
            good.append(checkpoint)
        else:
            bad.append(checkpoint)
    return good, bad


def found(run_folder: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a run, the newest last."""
    return examine(run_folder)[0]


def opened(folder: Path) -> Checkpoint | Unusable:
    """Return the checkpoint in `folder`, its tensors not yet read, or why it can't be used."""
    path = folder / ABOUT
    try:
        about = parse(path.read_bytes())
    except FileNotFoundError:
        # A link that leads nowhere may point to a disk that is absent for the moment.
        return Unusable(folder, f"has no {ABOUT}", os.path.lexists(path))
    except OSError as error:
        return Unusable(folder, f"can't be read ({error.strerror or error})", True)
    except ValueError:
        return Unusable(folder, f"is damaged: {ABOUT} is not JSON", False)
    number = about.get("format") if isinstance(about, dict) else None
    if isinstance(number, int) and number > FORMAT:
        return Unusable(folder, f"is of format {number}, newer than this version's {FORMAT}", True)
    if number != FORMAT or not _says_enough(about):
        return Unusable(folder, f"is damaged: {ABOUT} lacks what it must say", False)
    named = Unusable(folder, f"is damaged: {ABOUT} says step {about['step']}", False)
    return Checkpoint(folder, about) if named.step in (-1, about["step"]) else named


def _says_enough(about: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint's description is enough to continue from."""
    step, cost, memory = about.get("step"), about.get("cost"), about.get("memory")
    if not (about.keys() >= _NEEDED and isinstance(memory, dict)):
        return False
    try:
        TrainerState.of(about)
    except ValueError:
        return False
    return (
        type(step) is int
        and 0 <= step < 2**63
        and isinstance(cost, int | float | None)
        and isinstance(about["decisive"], dict)
    )


def _folders(place: Path) -> list[Path]:
    try:
        entries = [entry.name for entry in os.scandir(place)]
    except (FileNotFoundError, NotADirectoryError) as error:
        if not os.path.lexists(place):
            return []
        if place.is_symlink():
            raise NoCheckpointError(f"{place} is a broken link") from None
        raise NoCheckpointError(f"{place} can't be read ({error.strerror or error})") from None
    except OSError as error:
        raise NoCheckpointError(f"{place} can't be read ({error.strerror or error})") from error
    return [place / name for name in sorted(entries) if name.startswith(PREFIX)]


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint of lowest held-out cost, on the pictures of the newest cost."""
    judged = [checkpoint for checkpoint in checkpoints if checkpoint.cost is not None]
    alike = [one for one in judged if one.judged_by == judged[-1].judged_by]
    return min(alike, key=lambda one: one.cost or 0.0, default=None)


def read_newest(
    run_folder: Path, below: int | None = None
) -> tuple[Checkpoint, dict[str, Tensor]] | None:
    """Return the newest checkpoint that is undamaged, with its tensors; None if there are none.

    With `below`, the newest of a step below that. Damaged ones are skipped. Raises
    `NoCheckpointError` when one can't be read for a reason that may pass, or all are damaged.
    """
    good, bad = examine(run_folder)
    good = [one for one in good if below is None or one.step < below]
    problems = [one for one in bad if below is None or one.step < below]
    for checkpoint in reversed(good):
        _refuse_passing(run_folder, problems, checkpoint.step)
        try:
            return checkpoint, checkpoint.tensors()
        except CheckpointError as error:
            log.warning("%s; taking the one before it", error)
            problems.append(Unusable(checkpoint.folder, "is damaged", False))
        except OSError as error:
            reason = f"can't be read ({error.strerror or error})"
            problems.append(Unusable(checkpoint.folder, reason, True))
    refuse_unusable(run_folder, problems)
    return None


def _refuse_passing(run_folder: Path, problems: Sequence[Unusable], step: int) -> None:
    """Raise `NoCheckpointError` when one newer than `step` may be read another time."""
    refuse_unusable(run_folder, [one for one in problems if one.passing and one.step > step])


def refuse_unusable(run_folder: Path, problems: Sequence[Unusable]) -> None:
    """Raise `NoCheckpointError`, which says what was found and the ways on, if there is any."""
    if problems:
        raise NoCheckpointError(
            f"{run_folder} has checkpoints that can't be used:"
            f" {'; '.join(str(one) for one in problems)}. Nothing was changed. Make them readable"
            " again, go on from another step by --from STEP, or set the run aside and begin at"
            " step 0 by --anew"
        )


def read(run_folder: Path, step: int) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Return the checkpoint of `step` with its tensors; raises `CheckpointError`."""
    for checkpoint in found(run_folder):
        if checkpoint.step == step:
            return checkpoint, checkpoint.tensors()
    raise CheckpointError(
        f"{run_folder} has no complete checkpoint of step {step}, which the first process goes on"
        " from: every process must see the same folder"
    )


def write(run_folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write a checkpoint of step `about["step"]`; it is there once it has its final name.

    Raises:
        CheckpointError: the disk is full, or fails.
        FolderLostError: another process has taken the run's folder over; nothing was written.
    """
    folder = run_folder / FOLDER / f"step-{about['step']:08d}"
    try:
        with writing_folder(folder) as partial:
            _fill(partial, tensors, about)
            check_held(run_folder)
    except NoSpaceError as error:
        raise CheckpointError(f"can't write a checkpoint: {error}") from error
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error}") from error
    return folder


def amend(run_folder: Path, about: Mapping[str, Any]) -> None:
    """Replace the description of the existing checkpoint of step `about["step"]` by `about`."""
    path = run_folder / FOLDER / f"{PREFIX}{about['step']:08d}" / ABOUT
    check_held(run_folder)
    try:
        before = parse(path.read_bytes())
        write_json(path, {**before, **about})
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error}") from error


def _fill(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    digest = write_tensors(folder / STATE, tensors)
    write_json(folder / ABOUT, {"format": FORMAT, "sha256": digest, **about})


def set_aside(run_folder: Path, step: int, prefix: str = "damaged") -> None:
    """Set aside checkpoints that claim to be newer than `step`, which a run continues from.

    It is damaged, or was not to be gone on from. Left there, it would count as the newest.
    """
    for folder in _folders(run_folder / FOLDER):
        number = folder.name.removeprefix(PREFIX)
        if number.isdecimal() and int(number) > step:
            aside = free_name(folder.with_name(f"{prefix}-{folder.name}"))
            folder.rename(aside)
            log.warning("%s is not gone on from: it is %s now", folder, aside.name)


def free_name(path: Path) -> Path:
    """Return `path`, or the first of `path`-2, `path`-3, ... that is free."""
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], names) if not os.path.lexists(one))


def prune(run_folder: Path, keep: int, keep_best: bool, spikes: Sequence[int] = ()) -> None:
    """Remove all checkpoints but the newest `keep` and, if wanted, the best.

    The newest one before each step in `spikes` is kept too.
    """
    checkpoints = found(run_folder)
    kept = {checkpoint.folder for checkpoint in checkpoints[-keep:]}
    for spike in spikes:
        kept |= {one.folder for one in [one for one in checkpoints if one.step <= spike][-1:]}
    lowest = best(checkpoints)
    if keep_best and lowest is not None:
        kept.add(lowest.folder)
    for checkpoint in checkpoints:
        if checkpoint.folder not in kept:
            remove_folder(checkpoint.folder)


def clean(run_folder: Path) -> None:
    """Remove checkpoints that a killed process left half-written."""
    sweep(run_folder)
    sweep(run_folder / FOLDER)


class Writer:
    """Writes checkpoints one at a time, in the background if `background`."""

    def __init__(self, background: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Do `work` after what is pending; an earlier failure is raised here."""
        self.wait()
        if self._pool is None:
            work()
        else:
            self._pending = self._pool.submit(work)

    def wait(self) -> None:
        """Return when all is on disk; raises what writing raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for what is pending and end the thread."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
