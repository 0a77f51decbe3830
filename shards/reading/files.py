"""Files of a shard folder, read in parts: on this machine's disk, or through the cache."""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shards.errors import ShardsRuntimeError
from shards.reading.descriptors import POOL, HeldFiles

if TYPE_CHECKING:
    from shards.reading.cache import CacheFolder, Wanted

# Files fetched side by side ahead of use.
FETCHERS = 2
# The largest size in bytes that is believed of a table from outside: reading takes the memory for
# it, however small the file is.
CHECKED = 1 << 24
# Attributes of `Files` that do not travel to other processes.
OF_PROCESS = ("_held",)


class Files(ABC):
    """Files by name, read in parts. They stay open in the pool of this process."""

    # Files that one object keeps open at most; None: what the pool has room for.
    kept: int | None = None

    def __init__(self) -> None:
        self._held = HeldFiles(self.kept)

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors don't travel to another process.
        return {name: value for name, value in self.__dict__.items() if name not in OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._held = HeldFiles(self.kept)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset` of file `name`: fewer where the file ends.

        Raises:
            ShardsRuntimeError: the file is not there or can't be read.
        """
        try:
            with self._held.using(name, lambda: self._opened(name)) as descriptor:
                if size > CHECKED:
                    size = min(size, max(0, os.fstat(descriptor).st_size - offset))
                return os.pread(descriptor, size, offset)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def open(self, name: str) -> IO[bytes]:
        """Open file `name` from its start. Raises as `read`."""
        try:
            return os.fdopen(POOL.roomy(lambda: self._opened(name)), "rb")
        except OSError as error:
            raise self._unreadable(name, error) from error

    @abstractmethod
    def expect(self, names: Sequence[str]) -> None:
        """Prepare files that will be read soon, in this order. Returns at once."""

    def close(self) -> None:
        """Close all files; reading opens them again."""
        self._held.close()

    @abstractmethod
    def where(self, name: str) -> str:
        """Return the full name of a file, for messages."""

    @abstractmethod
    def _opened(self, name: str) -> int:
        """Return a new descriptor of a file."""

    def _unreadable(self, name: str, error: OSError) -> ShardsRuntimeError:
        why = error.strerror or str(error)
        return ShardsRuntimeError(f"{self.where(name)} cannot be read: {why}")


class LocalFiles(Files):
    """The files of a folder on this machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def where(self, name: str) -> str:
        """Return the file's path."""
        return str(self.folder / name)

    def expect(self, names: Sequence[str]) -> None:
        """Do nothing: the files are here."""

    def _opened(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)


class CachedFiles(Files):
    """The files of a remote store, through this machine's cache.

    Each open file is held against removal, so few are kept open: those of a block.
    """

    def __init__(self, cache: CacheFolder, wanted: dict[str, Wanted], kept: int) -> None:
        """Take what is known of the files by name."""
        self.kept = kept
        super().__init__()
        self.cache, self.wanted = cache, wanted
        self._ahead: tuple[int, _Ahead] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ahead": None}

    def where(self, name: str) -> str:
        """Return the file's URL."""
        return f"{self.cache.fetcher.url}/{name}"

    def index(self, name: str) -> Path:
        """Return where the index of the tar `name` is kept."""
        return self.cache.index(self.wanted[name])

    def expect(self, names: Sequence[str]) -> None:
        """Fetch these files in the background; earlier ones that have not begun are dropped.

        Only as many as the cache holds at once: later ones would push out earlier ones unread.
        """
        room, fitting = self.cache.cache.limit, []
        for wanted in (self.wanted[name] for name in names):
            room -= wanted.bytes
            if room < 0:
                break
            fitting.append(wanted)
        if self._ahead is None or self._ahead[0] != os.getpid():  # threads do not survive a fork
            self._ahead = os.getpid(), _Ahead(self.cache)
        self._ahead[1].set(fitting)

    def close(self) -> None:
        """Close all files, and fetch no more ahead."""
        super().close()
        if self._ahead is not None:
            self._ahead[1].set([])
            self._ahead = None

    def _opened(self, name: str) -> int:
        return self.cache.open(self.wanted[name])


class _Ahead:
    """Threads that fetch files in order until there is none left to fetch."""

    def __init__(self, cache: CacheFolder) -> None:
        self._cache = cache
        self._left: list[Wanted] = []
        self._running = 0
        self._lock = threading.Lock()

    def set(self, wanted: list[Wanted]) -> None:
        """Replace the list of files to fetch."""
        with self._lock:
            self._left = wanted
            missing = min(FETCHERS, len(wanted)) - self._running
            self._running += max(missing, 0)
        for _ in range(missing):
            threading.Thread(target=self._run, daemon=True, name="shards ahead").start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._running -= 1
                    return
                wanted = self._left.pop(0)
            # Whoever reads the file meets the error and reports it.
            with contextlib.suppress(Exception):
                if not self._cache.has(wanted):
                    os.close(self._cache.open(wanted))
