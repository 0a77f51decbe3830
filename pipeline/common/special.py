"""Pipes, devices and open files: read and written as what they are, never replaced."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MOST_LINKS = 40  # in a chain, as Linux has it
# Errors for a file that is not there, or a name that no file can have.
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
STANDARD = "-"  # stands for standard input or output on a command line


def is_special(path: Path) -> bool:
    """Whether `path` is a pipe, a device or an open file of this process, `/dev/stdout` say."""
    mode = mode_of(path)
    if not mode or stat.S_ISDIR(mode):
        return False
    return not stat.S_ISREG(mode) or descriptor_of(path) is not None


def mode_of(path: Path) -> int:
    """Return the type and the permissions of what is at `path`, links followed; 0: nothing is."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # too long a name, a loop of links, a zero byte
        return 0


def descriptor_of(path: Path) -> int | None:
    """Return the open file of this process that `path` stands for: `/dev/stdout`, `/dev/fd/3`."""
    ours = {"/dev/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in ours:
            return int(path.name) if path.name.isdigit() else None
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


@contextmanager
def writing_through(path: Path) -> Iterator[IO[bytes]]:
    """Yield the pipe, device or open file `path`, open for writing; an error names it."""
    descriptor = descriptor_of(path)
    try:
        if descriptor is None:
            with path.open("wb") as file:
                yield file
        else:
            sys.stdout.flush()  # what was printed before comes before
            with os.fdopen(os.dup(descriptor), "wb") as file:
                yield file
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def read_all(path: Path, limit: int) -> bytes:
    """Return what a pipe, a device or an open file gives until its end, at most `limit` bytes."""
    descriptor = descriptor_of(path)
    with path.open("rb") if descriptor is None else os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read(limit)
