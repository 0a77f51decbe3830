"""A pool of open files for all corpora of a process, as large as the system's limit allows."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

# Open files that the pool never exceeds, and its share of those that the process may open.
MOST, SHARE = 512, 4
LEAST = 4
FULL = (errno.EMFILE, errno.ENFILE)

Key = tuple[int, Hashable]  # the owner's number, and the file's name


@dataclass
class _Held:
    """A descriptor, and how many threads read through it now."""

    descriptor: int
    readers: int = 0


class Descriptors:
    """Descriptors by owner and name; those that were used longest ago are closed first.

    One that a thread reads through stays open until it is done. Threads may share the pool.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Keep `limit` files open (default: a quarter of what the process may open)."""
        self.limit = _allowed() if limit is None else limit
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._counts: Counter[int] = Counter()  # by owner
        self._lock = threading.RLock()  # a collected owner may come in between
        self._owners = itertools.count()

    def __len__(self) -> int:
        return len(self._held)

    def owner(self) -> int:
        """Return the number of a new owner of files."""
        return next(self._owners)

    @contextlib.contextmanager
    def using(self, key: Key, opened: Callable[[], int], most: int | None = None) -> Iterator[int]:
        """Yield the descriptor of file `key`, which `opened` opens; raises its OSError.

        Its owner then keeps at most `most` files open (None: as many as there is room for).
        """
        held = self._taken(key) or self._added(key, opened, most)
        try:
            yield held.descriptor
        finally:
            with self._lock:
                held.readers -= 1
                if self._held.get(key) is not held and not held.readers:
                    os.close(held.descriptor)

    def roomy(self, opened: Callable[[], int]) -> int:
        """Return what `opened` opens; at the limit of the process, close some and retry."""
        try:
            return opened()
        except OSError as error:
            if error.errno not in FULL:
                raise
        with self._lock:
            self._close(list(self._held))
        return opened()

    def keep(self, owner: int, most: int) -> None:
        """Close the oldest files of one owner beyond `most`."""
        with self._lock:
            if self._counts[owner] > most:
                own = (key for key in list(self._held) if key[0] == owner)
                self._close(islice(own, self._counts[owner] - most))

    def after_fork(self) -> None:
        """Take a new lock in a child process: the thread that held the old one is not there."""
        self._lock = threading.RLock()
        for held in self._held.values():
            held.readers = 0

    def _taken(self, key: Key) -> _Held | None:
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._held.move_to_end(key)
                held.readers += 1
            return held

    def _added(self, key: Key, opened: Callable[[], int], most: int | None) -> _Held:
        """Open a file without the lock, which may take long, and keep it."""
        if most is not None:
            self.keep(key[0], most - 1)
        descriptor = self.roomy(opened)
        with self._lock:
            held = self._taken(key)
            if held is not None:  # another thread was quicker
                os.close(descriptor)
                return held
            self._close(list(self._held)[: max(len(self._held) - self.limit + 1, 0)])
            held = self._held[key] = _Held(descriptor, readers=1)
            self._counts[key[0]] += 1
            return held

    def _close(self, keys: Iterable[Key]) -> None:
        """Close files; readers go on with theirs."""
        for key in keys:
            held = self._held.pop(key, None)
            if held is None:  # closed in between, for an owner that is gone
                continue
            self._counts[key[0]] -= 1
            if not self._counts[key[0]]:
                del self._counts[key[0]]
            if not held.readers:
                os.close(held.descriptor)


def _allowed() -> int:
    try:
        import resource
    except ImportError:  # no such limit on Windows
        return MOST
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MOST
    return max(min(MOST, soft // SHARE), LEAST)


POOL = Descriptors()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.after_fork)


class HeldFiles:
    """Files of one owner in the pool of this process, closed when it is gone."""

    def __init__(self, most: int | None = None) -> None:
        """Keep `most` files open at most (None: what the pool has room for)."""
        self.most = most
        self._owner = POOL.owner()
        self._closing = weakref.finalize(self, POOL.keep, self._owner, 0)

    def using(
        self, name: Hashable, opened: Callable[[], int]
    ) -> contextlib.AbstractContextManager[int]:
        """Hold the descriptor of file `name`, which `opened` opens; raises its OSError."""
        return POOL.using((self._owner, name), opened, self.most)

    def close(self) -> None:
        """Close all files; using them opens them again."""
        POOL.keep(self._owner, 0)
