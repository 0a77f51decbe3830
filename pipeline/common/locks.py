"""Locks between processes: on a file, or on a folder with its owner's name in it.

The kernel takes them back from a process that ends, however it ends. Two kinds are used:

- A *file lock* is a `flock`. It belongs to the open file, so children that inherit the descriptor
  share it. Caches, partial files and the local engine use it.
- A *folder lock* is a record lock (`lockf`) on `FOLDER/.lock`. It belongs to the process alone, so
  a data-loading child that outlives a killed job does not keep the next one waiting. The file says
  who the owner is.

Some network file systems have no locks, or pretend to: between machines a folder is held by a
lease as well (`pipeline.common.leases`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from pipeline.common.errors import RunError
from pipeline.common.leases import TERM, Lease, Observed, Owner, Signs

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
SECONDS_BETWEEN_TRIES = 10.0
# Another process has the lock; the second is what System V says for the first.
TAKEN = {errno.EAGAIN, errno.EACCES}
# What this process holds: a lease each, or None while it is being asked for.
_held: dict[Path, Lease | None] = {}
_guard = threading.Lock()


class FolderInUseError(RunError):
    """Another process holds a folder; `owner` is None where the lock file does not name it."""

    def __init__(self, folder: Path, owner: Owner | None) -> None:
        super().__init__(self.sentence(folder, owner or "another process"))
        self.folder, self.owner = folder, owner

    @staticmethod
    def sentence(folder: Path, owner: Owner | str) -> str:
        """Return what a user is told."""
        return f"{folder} is being written by {owner}"

    def __reduce__(self) -> tuple[type[FolderInUseError], tuple[Path, Owner | None]]:
        return type(self), (self.folder, self.owner)


class FolderLostError(FolderInUseError):
    """Another process has taken over a folder that this one held."""

    @staticmethod
    def sentence(folder: Path, owner: Owner | str) -> str:
        """Return what a user is told."""
        return (
            f"{folder} was taken over by {owner}, since this process gave no sign of life: it ends"
            " here, and writes nothing more"
        )


@contextlib.contextmanager
def folder_lock(
    folder: Path,
    patience: float = 0.0,
    job: str = "",
    lost: Callable[[FolderLostError], None] | None = None,
) -> Iterator[Owner]:
    """Hold `folder` against other processes, of any machine, until the block ends or this one dies.

    The folder is made where it is missing.

    Args:
        folder: what to hold.
        patience: seconds to wait for another owner to leave. One on another machine that died
            without a word is known to be dead after `pipeline.common.leases.TERM` seconds.
        job: what others are told about the owner, beside its process and host.
        lost: called, from a thread, when another process has taken the folder over, because this
            one gave no sign of life for so long: it must write nothing more.

    Raises:
        FolderInUseError: another owner still holds it after `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = Owner.this_process(job)

    def taken_over(by: Owner | None) -> None:
        if lost is not None:
            lost(FolderLostError(folder, by))

    with _once_in_this_process(folder) as place, (folder / LOCK_FILE).open("a+") as file:
        lease = _wait_for(
            file, folder, patience, lambda signs: Lease(folder, owner, signs, taken_over)
        )
        _held[place] = lease
        try:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(asdict(owner)) + "\n")
            file.flush()
            yield owner
        finally:
            lease.give_back()


def check_held(folder: Path) -> None:
    """Raise `FolderLostError` if another has taken over a `folder` that this process held.

    Whoever writes to a folder asks this first: a machine that slept wakes up in the middle.
    """
    lease = _held.get(folder.resolve())
    if lease is not None and lease.is_lost:
        raise FolderLostError(folder, Signs.of(folder).owner)


def _wait_for(
    file: TextIO, folder: Path, patience: float, claim: Callable[[Signs], Lease]
) -> Lease:
    """Wait until the holder is gone; return the lease that `claim` makes of the folder's signs."""
    end = time.monotonic() + patience
    seen = Observed(folder)
    while True:
        held = _held_by(file, folder, seen)
        if held is None:
            try:
                return claim(seen.signs)
            except FileExistsError:
                held = FolderInUseError(folder, Signs.of(folder).owner)
        left = end - time.monotonic()
        if left <= 0:
            raise held
        log.warning("%s: waiting for it to end, %.0f s more", held, left)
        time.sleep(min(SECONDS_BETWEEN_TRIES, patience))


def _held_by(file: TextIO, folder: Path, seen: Observed) -> FolderInUseError | None:
    """Return an error that names the folder's holder, or None if its lock is ours now.

    A lease of this machine whose holder's lock could be taken is a dead process's.
    """
    locked = _take_record_lock(file, folder)
    if locked is False:
        file.seek(0)
        return FolderInUseError(folder, Owner.read(file.read()))
    signs = seen.look()
    if not signs or (locked and signs.are_of_this_machine) or seen.seconds >= TERM:
        return None
    return FolderInUseError(folder, signs.owner)


def _take_record_lock(file: TextIO, folder: Path) -> bool | None:
    """Return whether the lock is ours now; None, with a warning, where there are no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        log.warning("%s can't be locked (%s): held by a lease alone", folder, error)
        return None
    return True


@contextlib.contextmanager
def _once_in_this_process(folder: Path) -> Iterator[Path]:
    """Refuse a folder that this process holds already: record locks would let it in twice."""
    place = folder.resolve()
    with _guard:
        if place in _held:
            raise FolderInUseError(folder, Owner.this_process())
        _held[place] = None
    try:
        yield place
    finally:
        with _guard:
            del _held[place]


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[int]:
    """Hold the file `path`, made where it is missing, for this process alone; wait for others.

    Yields the descriptor that the lock is on.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Lock an open file or folder if nobody else has; return whether it is locked now.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    return True


def is_locked(path: Path) -> bool:
    """Return whether a living process holds `path`; False where there is no file, or no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at the same moment do not take each other for the owner.
        return not try_lock(descriptor, shared=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
