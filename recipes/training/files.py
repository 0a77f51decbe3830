"""Files that are whole or not there: written under another name, flushed, renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

log = logging.getLogger(__name__)

# Seconds between two looks at a folder that another process holds.
_PAUSE = 10.0


class HeldError(RuntimeError):
    """A folder is another process's; the message says whose."""


@contextmanager
def held(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold `folder`, which is made, against other processes, until this one lets go or dies.

    Raises `HeldError` when another still has it after `patience` seconds. Where the file system has
    no locks it only warns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with (folder / ".lock").open("a+") as file:
        while not _locked(file, folder):
            file.seek(0)
            holder = f"{folder} is being written by {file.read() or 'another process'}"
            if time.monotonic() >= end:
                raise HeldError(holder)
            log.warning("%s: waiting for it to end, %.0f s more", holder, end - time.monotonic())
            time.sleep(min(_PAUSE, patience))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _locked(file: TextIO, folder: Path) -> bool:
    """Take the lock and return True; False when another process has it."""
    try:
        # Unlike flock's, such a lock is no child's: it goes with this process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning("%s can't be locked (%s): see that no other job uses it", folder, error)
    return True


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by `content` as JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
