"""Files and folders that are put in place whole, or not at all.

What is written goes to a temporary name in the same folder, is flushed to the disk, and is renamed;
then the folder is flushed, so that the new name outlasts a power cut. The temporary name is

    .NAME.HOST-PID-RANDOM.partial

and the file stays locked while it is written. `sweep` removes those whose writer is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.common.errors import RunError
from pipeline.common.locks import try_lock
from pipeline.common.special import is_special, mode_of, writing_through

PARTIAL = ".partial"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Errors of file systems that can't flush a folder: there, the flush is skipped.
CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
# Errors of file systems without hard links.
CANNOT_LINK = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
LONGEST_NAME = 255
BUFFER = 1 << 20
# Seconds for which a file of another machine is left alone: its locks may not be seen here.
SECONDS_OF_TRUST = 3600.0
_OLD = ".old"
_OURS = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}(?P<kind>\.partial|\.old)"
)
# Names that version 0.1 gave.
_FORMER = re.compile(r"\..+\.(?:[0-9a-f]{12}|\d+)\.partial")
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


class NoSpaceError(RunError, OSError):
    """The disk, or the user's share of it, is full."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.errno = errno.ENOSPC

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def space_for(name: object) -> Iterator[None]:
    """Turn the system's error for a full disk into a sentence about `name`.

    Raises:
        NoSpaceError: the disk is full.
    """
    try:
        yield
    except NoSpaceError:
        raise
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise NoSpaceError(
            f"no space left to write {name}: free some, then run the same command again"
        ) from error


class PartialFile:
    """A new, locked file with a temporary name, until it is put in place."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open the file in `folder`, which is there; `name` is what it will be called."""
        while True:
            self.path = folder / _temporary_name(name)
            try:
                self.file: IO[bytes] = self.path.open("xb", buffering=BUFFER)
            except OSError as error:
                error.filename = str(folder / name)  # the name that the user knows
                raise
            with contextlib.suppress(OSError):  # without locks, its name says whose it is
                try_lock(self.file.fileno())
            if self.path.exists():  # else a sweep came between opening and locking
                return
            self.file.close()

    def flush(self) -> None:
        """Wait until everything written is on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def put(self, target: Path, flush_folder: bool = True) -> None:
        """Flush the file and rename it to `target`, which it replaces."""
        self.flush()
        try:
            self.path.replace(target)
        except OSError as error:
            error.filename, error.filename2 = str(target), None  # the name that the user knows
            raise
        if flush_folder:
            flush(target.parent)

    def discard(self) -> None:
        """Close the file, and remove it unless it was put in place."""
        # What a full disk did not take must not be flushed again by closing.
        with contextlib.suppress(OSError):
            self.file.close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file, open for writing bytes, that becomes `path` when the block ends without error.

    Folders above it are made. A file that was there hands on its permissions. A symbolic link is
    followed, and a device or a pipe is written to directly, as `open` does.

    Raises:
        NoSpaceError: the disk is full.
    """
    with space_for(path):
        if is_special(path):
            with writing_through(path) as file:
                yield file
            return
        path = Path(os.path.realpath(path))
        mode = mode_of(path)
        _make_folder(path.parent)
        partial = PartialFile(path.parent, path.name)
        try:
            yield partial.file
            if stat.S_ISREG(mode):
                os.fchmod(partial.file.fileno(), stat.S_IMODE(mode))
            partial.put(path)
        finally:
            partial.discard()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`. Raises as `writing`."""
    with writing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8. Raises as `writing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` as JSON. Raises as `writing`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def create_bytes(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path`, whole; if several processes do so at once, one succeeds.

    Raises:
        FileExistsError: the file is there.
        NoSpaceError: the disk is full.
    """
    with space_for(path):
        _make_folder(path.parent)
        partial = PartialFile(path.parent, path.name)
        try:
            partial.file.write(data)
            partial.flush()
            try:
                os.link(partial.path, path)
            except OSError as error:
                if error.errno not in CANNOT_LINK:
                    raise
                with path.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            flush(path.parent)
        finally:
            partial.discard()


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at byte `offset` of an open file: a system may take less at once."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def flush(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path` when the block ends without error.

    At every instant `path` is the old folder or the new one, where the system can exchange two
    names (Linux, on a local disk). Elsewhere there is an instant without either, and the next call
    mends what a kill in that instant left.

    Raises:
        NoSpaceError: the disk is full.
        NotADirectoryError: `path` is a file.
    """
    with space_for(path):
        path = Path(os.path.realpath(path))
        _make_folder(path.parent)
        sweep(path.parent, path.name)
        partial = path.with_name(_temporary_name(path.name))
        try:
            partial.mkdir()
        except OSError as error:
            error.filename = str(path)  # the name that the user knows
            raise
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                try_lock(descriptor)
            yield partial
            _flush_tree(partial)
            _put_folder(partial, path)
            flush(path.parent)
        finally:
            os.close(descriptor)
            shutil.rmtree(partial, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove the folder `path`: at no instant is there a half-empty one of that name."""
    doomed = path.with_name(_temporary_name(path.name))
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path, prefix: str = "") -> None:
    """Remove temporary files in `folder` for names that begin with `prefix`, of dead writers.

    A folder that was on its way out when its writer died is put back if nothing took its place.
    """
    start = f".{_short(prefix.lstrip('.'))}"
    for path in list(folder.glob(".*")) if folder.is_dir() else []:
        ours = _OURS.fullmatch(path.name)
        if path.name.startswith(start) and (ours or _FORMER.fullmatch(path.name)):
            _remove_if_left(path, ours)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def _temporary_name(name: str, kind: str = PARTIAL) -> str:
    return f".{_short(name.lstrip('.'))}.{_host()}-{os.getpid()}-{os.urandom(4).hex()}{kind}"


def _short(name: str) -> str:
    """Return the beginning of `name`, short enough for a temporary name that starts with it."""
    room = LONGEST_NAME - len(f"..000000-{2**32}-00000000{PARTIAL}")
    return name.encode(errors="surrogateescape")[:room].decode(errors="ignore")


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _flush_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            flush(Path(root, name))
        flush(Path(root))


def _put_folder(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`; a folder that was there is now called `partial`, or is gone."""
    if not path.exists():
        partial.rename(path)
    elif not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    elif not _exchange(partial, path):
        old = path.with_name(_temporary_name(path.name, _OLD))
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Give each path the other's name in one step; return False where the system can't."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    return bool(function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _remove_if_left(path: Path, ours: re.Match[str] | None) -> None:
    """Remove `path`, or put it back, if its writer is gone; `ours` are the parts of its name."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_CLOEXEC)
        try:
            if not _writer_is_gone(path, descriptor, ours):
                return
            if ours and ours["kind"] == _OLD and not path.with_name(ours["name"]).exists():
                path.rename(path.with_name(ours["name"]))
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _last_written(path: Path, descriptor: int) -> float:
    """Return when a file, or anything in a folder, was last written to, in seconds."""
    last = os.fstat(descriptor).st_mtime
    for root, _, files in os.walk(path):
        for name in ("", *files):
            with contextlib.suppress(OSError):
                last = max(last, Path(root, name).lstat().st_mtime)
    return last


def _writer_is_gone(path: Path, descriptor: int, ours: re.Match[str] | None) -> bool:
    try:
        free, known = try_lock(descriptor), True
    except OSError:  # no locks here
        free, known = True, False
    if not free or ours is None:
        return free and known
    if ours["host"] != _host():
        return time.time() - _last_written(path, descriptor) > SECONDS_OF_TRUST
    # What is on its way out has no lock.
    return (known and ours["kind"] == PARTIAL) or not _is_alive(int(ours["pid"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
