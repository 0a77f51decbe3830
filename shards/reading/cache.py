"""Remote shards on this machine's disk, shared by all its processes, under a size limit.

    FOLDER/.lock            held while room is made, never longer; says how much is taken at most
    FOLDER/<key>/NAME       a whole file, checked on arrival; readers hold a shared lock on it
    FOLDER/<key>/NAME@0012  part 12 of a file; what is read from it is checked by the reader
    FOLDER/<key>/NAME@0012x262144  the same, where parts have another size than 2 MiB
    FOLDER/<key>/.NAME      one that is arriving; its writer holds an exclusive lock on it
    FOLDER/<key>/.NAME.room bytes promised to it and not yet written, as the size of an empty file
                            (a part is written at once: it has its size from before that)

All locks are `flock`s on open files, so the kernel takes them back from a process that is killed.
What such a process had fetched is continued by the next one that wants the file; so an arriving
file has one name for all, unlike those of `pipeline.common.atomic`. The folder is not flushed: a
name that a power cut takes costs one more fetch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.common.atomic import write_at
from pipeline.common.digests import file_sha256
from pipeline.common.locks import file_lock, is_locked, try_lock
from pipeline.common.scratch import cache_folder
from shards.errors import ShardsError, ShardsRuntimeError
from shards.manifest import Manifest
from shards.reading.fetch import PART, Fetcher, Patience

log = logging.getLogger(__name__)

ROOM = ".room"

# Bytes of a part whose name does not give its size.
USUAL = 2 << 20

# Called with a request's bytes, and the time when it began by `time.monotonic`.
Arrived = Callable[[int, float], object]


@dataclass(frozen=True)
class Cache:
    """The cache for remote shards on this machine, and its limit.

    Attributes:
        folder: on a local disk; all processes of a machine should use the same one. None: no disk
            is used, and each process reads into its memory.
        limit: bytes. Files unused for longest are removed first; files being read stay.
        patience: how often and how long a failing request is repeated.
    """

    folder: Path | None = field(default_factory=lambda: cache_folder("shards"))
    limit: int = 64 << 30
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Wanted:
    """A file of a store, or a part of one.

    Attributes:
        name: the file's name.
        bytes: size of the file, or of the part.
        sha256: the file's checksum (hex) where it is known.
        part: the part's number; None: the whole file is wanted.
        start: where the part begins in the file.
        stride: bytes from the beginning of one part to that of the next.
    """

    name: str
    bytes: int
    sha256: str | None = None
    part: int | None = None
    start: int = 0
    stride: int = USUAL

    def cut(self, part: int, size: int) -> Wanted:
        """Return part number `part` of this file, cut every `size` bytes."""
        start = part * size
        return replace(
            self, bytes=min(size, self.bytes - start), part=part, start=start, stride=size
        )


class CacheFolder:
    """The files of one store in a cache. All its state is on the disk."""

    def __init__(self, cache: Cache, fetcher: Fetcher) -> None:
        """Raises ShardsError when the folder can't be made."""
        if cache.folder is None:
            raise ShardsError("this needs a cache on a disk: name a folder for it")
        self.cache, self.fetcher, self.root = cache, fetcher, cache.folder
        self._folder = cache.folder / hashlib.sha256(fetcher.url.encode()).hexdigest()[:16]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardsError(
                f"the cache {cache.folder} cannot be made ({error.strerror}): name another folder"
            ) from error

    def open(self, wanted: Wanted, arrived: Arrived | None = None) -> int:
        """Return a descriptor of the whole file, which is fetched first if it is not here.

        The file stays while the descriptor is open. `arrived` is told of each request.

        Raises:
            ShardsRuntimeError: the store does not give it, or not with its checksum.
        """
        path = self.path(wanted)
        while True:
            with contextlib.suppress(FileNotFoundError):
                return _open_used(path)
            with _writing(path) as partial:
                if partial is not None:
                    self._fetch(wanted, partial, path, arrived)

    def open_present(self, wanted: Wanted) -> int:
        """Return a descriptor of a file that is here; raises FileNotFoundError if it is not."""
        return _open_used(self.path(wanted))

    def has(self, wanted: Wanted) -> bool:
        """Whether the file is here, or on its way by another process."""
        path = self.path(wanted)
        return path.exists() or is_locked(_partial(path))

    def index(self, wanted: Wanted) -> Path:
        """Return where the index of a tar is kept."""
        return self.path(wanted).with_suffix(".index")

    def path(self, wanted: Wanted) -> Path:
        """Return where the file is, once it is here."""
        # Shards made anew under the same name have another checksum.
        tag = wanted.sha256[:12] if wanted.sha256 else str(wanted.bytes)
        part = "" if wanted.part is None else f"@{wanted.part:04d}"
        if wanted.stride != USUAL:
            part += f"x{wanted.stride}"
        return self._folder / f"{tag}-{wanted.name.replace('/', '%')}{part}"

    def drop(self, wanted: Wanted) -> None:
        """Remove a file whose bytes are wrong; readers keep the file that they have open."""
        self.path(wanted).unlink(missing_ok=True)

    def _fetch(self, wanted: Wanted, partial: int, path: Path, arrived: Arrived | None) -> None:
        """Complete the arriving file, check it and give it its name."""
        try:
            if wanted.part is not None:
                self._bring_part(wanted, partial, arrived)
                # The bytes of a part are checked when they are read, so it need not outlast a power
                # cut.
                _partial(path).rename(path)
                return
            for _ in range(self.cache.patience.attempts):
                self._complete(wanted, partial, path, arrived)
                if wanted.sha256 in (None, file_sha256(partial)):
                    os.fsync(partial)
                    _partial(path).rename(path)
                    return
                log.warning("%s arrived damaged", wanted.name)
                os.ftruncate(partial, 0)
        except FileNotFoundError as error:
            raise ShardsRuntimeError(f"{self.fetcher.url}/{wanted.name} is missing") from error
        raise ShardsRuntimeError(
            f"{self.fetcher.url}/{wanted.name} does not have the checksum of the manifest: "
            "run `pipeline verify` there"
        )

    def _complete(self, wanted: Wanted, partial: int, path: Path, arrived: Arrived | None) -> None:
        """Fetch what is missing at the end of the arriving file."""
        have = os.fstat(partial).st_size
        if have > wanted.bytes:
            os.ftruncate(partial, 0)
            have = 0
        while have < wanted.bytes:
            end = min(have + PART, wanted.bytes)
            begun = time.monotonic()
            data = self.fetcher.part(wanted.name, wanted.start + have, wanted.start + end)
            with self.room(len(data), path):
                self._write(partial, data, have)
            have += len(data)
            if arrived is not None:
                arrived(len(data), begun)

    def _bring_part(self, wanted: Wanted, partial: int, arrived: Arrived | None) -> None:
        """Fetch a part; what another process may have left of it is overwritten."""
        begun = time.monotonic()
        data = self.fetcher.part(wanted.name, wanted.start, wanted.start + wanted.bytes)
        self._promise(len(data), partial)
        self._write(partial, data, 0)
        if arrived is not None:
            arrived(len(data), begun)

    def _write(self, partial: int, data: bytes, offset: int) -> None:
        try:
            write_at(partial, data, offset)
        except OSError as error:
            raise ShardsRuntimeError(
                f"the cache {self.root} cannot be written: {error.strerror}"
            ) from error

    @contextlib.contextmanager
    def room(self, needed: int, path: Path) -> Iterator[None]:
        """Hold room for `needed` bytes of a file while they are written.

        The room is an empty file of that size, which whoever makes room meanwhile counts.
        """
        room = path.with_name(f".{path.name}{ROOM}")
        with file_lock(room) as promised:
            self._promise(needed, promised)
            try:
                yield
            finally:
                room.unlink(missing_ok=True)

    def _promise(self, needed: int, promised: int) -> None:
        """Make room for `needed` bytes, and give an open file that size: it counts from then on."""
        with file_lock(self.root / ".lock") as taken:
            total = _number(taken) + needed
            if total > self.cache.limit:
                total = self._make_room(needed)
            os.ftruncate(promised, needed)
            os.ftruncate(taken, 0)
            os.pwrite(taken, str(total).encode(), 0)

    def _make_room(self, needed: int) -> int:
        """Remove the files longest unused until `needed` bytes fit; leave those in use.

        Return how many bytes are taken then.
        """
        files = self._files()
        total = sum(size for _, size, _ in files) + needed
        # Looking at all files takes time: a little more room than needed is made at once.
        enough = self.cache.limit - self.cache.limit // 50
        if total > self.cache.limit:
            for _, size, path in sorted(files):
                if total <= enough:
                    break
                if _remove_unused(path):
                    total -= size
        if total > self.cache.limit:
            log.warning(
                "the cache %s needs %d bytes, more than its limit of %d: all of it is in use",
                self.root,
                total,
                self.cache.limit,
            )
        return total

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return time of use, size and path of each file and of each room that is promised.

        Others write, rename and give up rooms meanwhile. A room is looked at before its file, so
        that its bytes are counted once or twice, never not at all.
        """
        files: dict[tuple[int, int], tuple[int, int, Path]] = {}
        for path in sorted(self.root.glob("*/*"), key=lambda path: path.suffix != ROOM):
            for name in (path, path.with_name(path.name.removeprefix("."))):
                with contextlib.suppress(FileNotFoundError):
                    status = name.stat()
                    entry = (status.st_mtime_ns, status.st_size, name)
                    files[status.st_dev, status.st_ino] = entry
                    break
        return list(files.values())


def check_room(cache: Cache, manifest: Manifest, block: int) -> None:
    """Raise ShardsError when the limit is below what shuffling needs at once."""
    largest = sorted(map(int, manifest.byte_sizes), reverse=True)[: block + 1]
    if sum(largest) > cache.limit:
        raise ShardsError(
            f"the cache's limit is {cache.limit} bytes, a block of {block} shards and the next one "
            f"have {sum(largest)}: raise the limit, or take smaller blocks"
        )


def _number(descriptor: int) -> int:
    """Return the taken bytes that a file states; far too many when it states nothing."""
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else 1 << 62


def _partial(path: Path) -> Path:
    """Return the name of a file while it arrives."""
    return path.with_name(f".{path.name}")


def _open_used(path: Path) -> int:
    """Open a whole file, hold on to it, and have it be the last one to make room.

    Raises:
        FileNotFoundError: it is not there, or was just removed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # Others hold a whole file alone for an instant only: to remove it, or on finding it arrived.
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not os.fstat(descriptor).st_nlink:
        os.close(descriptor)
        raise FileNotFoundError(path)
    with contextlib.suppress(PermissionError):  # another user's file
        os.utime(descriptor)
    return descriptor


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[int | None]:
    """Lock the arriving file; yield None when it arrived while waiting for the lock.

    Whoever waits asks for a shared lock: once the file has its name, readers hold it with such for
    as long as they like, and nobody could have it alone.
    """
    partial = _partial(path)
    while not path.exists():
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not try_lock(descriptor):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                continue
            if not _same_file(descriptor, partial):
                continue
            if not path.exists():
                yield descriptor
                return
            partial.unlink()  # it had arrived: this one was made needlessly
        finally:
            os.close(descriptor)
    yield None


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_unused(path: Path) -> bool:
    """Remove a file that no process holds; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not try_lock(descriptor):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
