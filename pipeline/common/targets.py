"""One rule for every file that a user names for a command to write.

| what is at the target | what happens |
|---|---|
| nothing | it is written, where its folder exists |
| an empty file | it is replaced: nothing is lost |
| a file that the command itself writes there | it is replaced |
| any other file | refused, unless `--force` |
| what the command reads, under whatever name | refused, with `--force` too |
| a folder | refused |
| a file in a folder that can't be written to | refused: a new file is made beside it first |
| a link | what it leads to counts, and the link stays |
| a pipe, a device, a terminal's `/dev/stdout` | it is written to as what it is |

`check_target` says so before the work. A folder that a command writes as a whole has rules of its
own; `check_writable` says whether its place can be written to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.common.errors import UsageError
from pipeline.common.special import descriptor_of

# Tells whether an existing file is of the kind that the command itself writes.
Own = Callable[[Path], bool]


class TargetError(UsageError):
    """A file may not be written where the user wants it."""


def check_target(
    path: Path,
    command: str,
    own: Own,
    *,
    sources: Iterable[Path] = (),
    force: bool = False,
    make_folder: bool = False,
) -> None:
    """Raise `TargetError` unless `command` may write the file `path`.

    Args:
        path: what the user named; links are followed.
        command: who asks, for the sentence.
        own: whether an existing, regular file is one that the command writes.
        sources: what the command reads, which it never replaces.
        force: replace any other file.
        make_folder: folders above that are missing will be made.
    """
    status = _status(path)
    if status is None and descriptor_of(path) is not None:
        raise TargetError(f"{path} is closed: open it, or name a file to write")
    if status is None:
        _check_free(path, make_folder)
        return
    if stat.S_ISDIR(status.st_mode):
        raise TargetError(f"{path} is a folder: name the file to write")
    if not stat.S_ISREG(status.st_mode) or descriptor_of(path) is not None:
        return
    check_writable(path)
    for source in sources:
        if _is_same(source, status):
            raise TargetError(f"{path} is what {command} reads: name another file to write")
    if not (force or status.st_size == 0 or own(path)):
        raise TargetError(
            f"{path} is there already, and {command} did not write it: name another file, or "
            "replace it with --force"
        )


def check_writable(path: Path) -> None:
    """Raise `TargetError` if this process may not create `path`; links are followed.

    It needs the right to make files in the folder above, or in the nearest one that exists.
    """
    folder = _first_above(path)
    if not folder.is_dir():
        raise TargetError(f"{path} can't be written: {folder} is a file")
    if os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return
    raise TargetError(
        f"{path} can't be written: no files can be made in the folder {folder}, which is read-only "
        "or another user's"
    )


def _first_above(path: Path) -> Path:
    folder = Path(os.path.realpath(path)).parent
    while not folder.exists():
        folder = folder.parent
    return folder


def _status(path: Path) -> os.stat_result | None:
    """Return what is at `path`, links followed; None where nothing is."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) in {errno.ENAMETOOLONG, errno.ELOOP, None}:
            raise TargetError(f"{path} can't be written: {reason}") from error
        raise


def _check_free(path: Path, make_folder: bool) -> None:
    """Raise `TargetError` unless a file can be made at `path`, or where the link there leads."""
    folder = _first_above(path) if make_folder else Path(os.path.realpath(path)).parent
    if folder.is_dir():
        check_writable(path)
        return
    if path.is_symlink():
        raise TargetError(f"{path} is a link to {path.readlink()}, whose folder does not exist")
    what = "is a file" if folder.exists() else "does not exist"
    raise TargetError(f"there is no folder {path.parent} to write {path.name} into: it {what}")


def _is_same(source: Path, target: os.stat_result) -> bool:
    try:
        return os.path.samestat(source.stat(), target)
    except OSError:
        return False
