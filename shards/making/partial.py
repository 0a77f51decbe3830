"""Files that are being written: locked while their writer lives, so that others can tell.

A killed process leaves its partial file behind, but not the lock on it: `sweep` removes such files
and never one that somebody is writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from shards.errors import ShardsError, ShardsRuntimeError
from shards.store import PARTIAL, Store, open_partial

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def folder_for(store: Store) -> Path:
    """Return the folder where files for `store` are written first: itself, if it is local."""
    folder = store.folder
    if folder is None:
        folder = Path(tempfile.gettempdir()) / f"pipeline-shards-{os.getuid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        why = error.strerror or str(error)
        raise ShardsError(f"{folder} cannot be made ({why}): name another --out") from error
    return folder


@contextlib.contextmanager
def partial_file(store: Store, name: str) -> Iterator[tuple[IO[bytes], Path]]:
    """Yield a new locked file that will become `name` in `store`; it is removed if it is left."""
    folder = folder_for(store)
    file, path = open_partial(folder, name)
    try:
        yield file, path
    finally:
        # What a full disk could not take must not be flushed again when the file is closed.
        with contextlib.suppress(OSError):
            file.close()
        path.unlink(missing_ok=True)


def start_writing(file: IO[bytes], start: int, end: int) -> None:
    """Have the disk begin with bytes `start` to `end` of `file`, so that its flush waits less."""
    file.flush()
    if hasattr(os, "posix_fadvise"):  # Linux writes first what it is told to forget
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def settle(
    store: Store, file: IO[bytes], path: Path, name: str, more_follows: bool = False
) -> None:
    """Flush the partial file to the disk and move it to its name, as `Store.settle` does."""
    file.flush()
    os.fsync(file.fileno())
    store.settle(path, name, more_follows)


def sweep(store: Store, split: str) -> None:
    """Remove the partial files of `split` that no living process writes."""
    folder = folder_for(store)
    for path in folder.glob(f".*{PARTIAL}"):
        if not path.name.lstrip(".").startswith(split):
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    if store.folder is None:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def space_needed(store: Store) -> Iterator[None]:
    """Turn the system's error for a full disk inside into a sentence.

    Raises:
        ShardsRuntimeError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ShardsRuntimeError(
            f"no space left to write {store}: free some, "
            "then run the same command again; it goes on where it stopped"
        ) from error
