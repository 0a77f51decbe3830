"""Checkpoints: the whole state of a run at a step, in a folder that is there or is not.

`checkpoints/step-00000200/` holds `state.safetensors`, tensors by the names of parameters
(`weights.`, `exp_avg.`, `exp_avg_sq.`, `ema.` and then the parameter), and `checkpoint.json`:
the step, what the run's numbers depend on, and the SHA-256 of the tensors. It is the same for any
number of processes and any sharding, so a run can go on with another. There is no state of random
numbers, of the schedule or of the data in it: all three are functions of the step.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.common.atomic import remove_folder, sweep, write_json, writing_folder
from pipeline.common.digests import file_sha256
from pipeline.common.errors import RunError

FORMAT = 1
FOLDER = "checkpoints"
STATE, ABOUT = "state.safetensors", "checkpoint.json"
_NEEDED = {"step", "sha256", "decisive", "data_digest", "memory"}
log = logging.getLogger(__name__)


class CheckpointError(RunError):
    """A checkpoint can't be written or used."""


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
    def judged_by(self) -> str:
        """The digest of the held-out pictures that costs are of; "" if there are none."""
        return str(self.about["memory"].get("judged_by", ""))

    def tensors(self) -> dict[str, Tensor]:
        """Read the state; raises `CheckpointError` when it is not what was written."""
        path = self.folder / STATE
        if file_sha256(path) != self.about["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum differs from {ABOUT}")
        state: dict[str, Tensor] = load_file(path)
        return state


def found(run_folder: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a run, the newest last."""
    checkpoints = []
    for folder in sorted((run_folder / FOLDER).glob("step-*")):
        try:
            about = json.loads((folder / ABOUT).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(about, dict) and about.get("format") == FORMAT and about.keys() >= _NEEDED:
            checkpoints.append(Checkpoint(folder, about))
    return checkpoints


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return that with the lowest held-out cost, on the pictures that the newest cost is of."""
    judged = [checkpoint for checkpoint in checkpoints if checkpoint.cost is not None]
    alike = [one for one in judged if one.judged_by == judged[-1].judged_by]
    return min(alike, key=lambda one: one.cost or 0.0, default=None)


def read_newest(run_folder: Path) -> tuple[Checkpoint, dict[str, Tensor]] | None:
    """Return the newest checkpoint that is undamaged, with its tensors; None if there is none."""
    for checkpoint in reversed(found(run_folder)):
        try:
            return checkpoint, checkpoint.tensors()
        except (CheckpointError, OSError) as error:
            log.warning("%s; taking the one before it", error)
    return None


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
    """Write a checkpoint of step `about["step"]`; it is there once it has its final name."""
    folder = run_folder / FOLDER / f"step-{about['step']:08d}"
    try:
        with writing_folder(folder) as partial:
            _fill(partial, tensors, about)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"can't write {folder}: {error}") from error
    return folder


def _fill(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    save_file(dict(tensors), folder / STATE)
    write_json(folder / ABOUT, {"format": FORMAT, "sha256": file_sha256(folder / STATE), **about})
    # The tensors' file would be its owner's alone.
    shutil.copymode(folder / ABOUT, folder / STATE)


def set_aside(run_folder: Path, step: int) -> None:
    """Take what claims to be newer than `step`, which a run goes on from, out of the way.

    It is damaged, or would have been chosen. Left there, it would count as the newest.
    """
    for folder in (run_folder / FOLDER).glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            log.warning("%s can't be used: it is %s now", folder, aside.name)


def prune(run_folder: Path, keep: int, keep_best: bool) -> None:
    """Remove all checkpoints but the newest `keep`, and the best if that is wanted."""
    checkpoints = found(run_folder)
    kept = {checkpoint.folder for checkpoint in checkpoints[-keep:]}
    lowest = best(checkpoints)
    if keep_best and lowest is not None:
        kept.add(lowest.folder)
    for checkpoint in checkpoints:
        if checkpoint.folder not in kept:
            remove_folder(checkpoint.folder)


def clean(run_folder: Path) -> None:
    """Remove what a killed process left half-written."""
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
