"""Partial files: locked while their writer lives, so that others can tell.

A killed process leaves its partial file behind, but not the lock on it: `sweep` removes such files
and never one that somebody is writing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.common import atomic
from pipeline.common.atomic import NO_SPACE, PartialFile
from pipeline.common.errors import RunError
from pipeline.common.scratch import private_folder
from shards.errors import ShardsError, ShardsRuntimeError
from shards.store import Store


def folder_for(store: Store) -> Path:
    """Return the folder where files for `store` are written first: itself, if it is local."""
    if store.folder is None:
        return private_folder("pipeline-shards")
    folder = store.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        why = error.strerror or str(error)
        raise ShardsError(f"{folder} cannot be made ({why}): name another --out") from error
    return folder


@contextlib.contextmanager
def partial_file(store: Store, name: str) -> Iterator[PartialFile]:
    """Yield a new locked file that will become `name` in `store`; it is removed if it does not."""
    while True:
        folder = folder_for(store)
        try:
            partial = PartialFile(folder, name)
        except FileNotFoundError:
            if folder.is_dir() or store.folder is not None:
                raise
            continue  # another run has just ended, and removed the shared folder
        break
    try:
        yield partial
    finally:
        partial.discard()


def start_writing(file: IO[bytes], start: int, end: int) -> None:
    """Have the disk begin with bytes `start` to `end` of `file`, so that its flush waits less."""
    file.flush()
    if hasattr(os, "posix_fadvise"):  # Linux writes pages before it drops them
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def settle(store: Store, partial: PartialFile, name: str, more_follows: bool = False) -> None:
    """Flush the partial file to the disk and move it to its name, as `Store.settle` does."""
    partial.flush()
    store.settle(partial.path, name, more_follows)


def sweep(store: Store, split: str) -> None:
    """Remove the partial files of `split` that no living process writes."""
    folder = folder_for(store)
    atomic.sweep(folder, split)
    if store.folder is None:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def failures_named(store: Store) -> Iterator[None]:
    """Turn a full disk and a killed worker inside the block into `ShardsRuntimeError`.

    Raises:
        ShardsRuntimeError: the disk is full, or a worker was killed.
    """
    try:
        yield
    except ShardsRuntimeError:
        raise
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise ShardsRuntimeError(
            f"no space left to write {store}: free some, "
            "then run the same command again; it goes on where it stopped"
        ) from error
    except RunError as error:
        raise ShardsRuntimeError(str(error)) from error
