"""Scratch folders: the user's cache, and a private one in the system's temporary folder."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from pipeline.common.errors import UsageError

OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(*names: str) -> Path:
    """Return this project's folder for `names` in the user's cache, which `XDG_CACHE_HOME` moves.

    It need not be there yet.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root.joinpath("cca-pipeline", *names)


def private_folder(name: str) -> Path:
    """Return a folder of this user's in the system's temporary folder, made where it is missing.

    All processes of the user share it, and nobody else can look into it.

    Raises:
        UsageError: another user's folder has that name, or others may write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not ours or found.st_mode & OTHERS_WRITE:
        raise UsageError(
            f"{folder} is not a folder of yours alone: remove it, or set TMPDIR to another folder"
        )
    if found.st_mode & OTHERS:
        folder.chmod(0o700)
    return folder
