"""Fetches bytes from a store that may fail, stall or cut answers: asks until they are whole."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from pipeline.common.retries import Retries
from shards.errors import ShardsError, ShardsRuntimeError
from shards.reading import s3
from shards.reading.s3 import PlainS3

T = TypeVar("T")
log = logging.getLogger(__name__)

# Bytes asked for at once: large enough for a store's best speed, small enough to ask again for.
PART = 8 << 20
# Errors that asking again does not change.
FINAL = (FileNotFoundError, PermissionError, ShardsError)

# Connections to one store at once.
CONNECTIONS = 128


class _Making:
    """Makes other threads wait while one creates the client that all use."""

    lock = threading.Lock()

    @classmethod
    def after_fork(cls) -> None:
        """Take a new lock in a child process: the thread that held the old one is not there."""
        cls.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Making.after_fork)


@dataclass(frozen=True)
class Patience(Retries):
    """For how long, and how often, a store is asked again for a part of a file.

    Attributes:
        stall: seconds after which a part of 8 MiB that has not arrived counts as failed.
    """

    attempts: int = 8
    pause: float = 0.5
    longest_pause: float = 30.0
    stall: float = 60.0


class Fetcher:
    """Reads files under one URL. Copies of it work in other processes, forked ones too."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        self._plain = s3.serves(self.url)
        self._client: tuple[int, PlainS3 | _Fsspec] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def size(self, name: str) -> int:
        """Return the size of file `name` in bytes.

        Raises:
            FileNotFoundError: there is no such file.
            ShardsRuntimeError: the store did not answer in time, again and again.
        """
        return self._again(name, lambda: self._asked(lambda client: client.size(name)))

    def part(self, name: str, start: int, end: int) -> bytes:
        """Return exactly the bytes `start` to `end` of file `name`. Raises as `size`."""

        def ask() -> bytes:
            data = self._asked(lambda client: client.part(name, start, end))
            if len(data) != end - start:
                raise OSError(f"{len(data)} bytes came instead of {end - start}")
            return data

        return self._again(name, ask)

    def whole(self, name: str) -> bytes:
        """Return all bytes of file `name`. Raises as `size`."""
        size = self.size(name)
        return b"".join(
            self.part(name, start, min(start + PART, size)) for start in range(0, size, PART)
        )

    def glob(self, pattern: str) -> list[str]:
        """Return the names of the files that match `pattern`, sorted. Raises as `size`."""

        return self._again(pattern, lambda: _Fsspec(self.url).glob(pattern))

    def _again(self, name: str, ask: Callable[[], T]) -> T:
        patience, file = self.patience, f"{self.url}/{name}"
        try:
            return patience.call(lambda: _in_time(ask, patience.stall), file, FINAL)
        except FINAL:
            raise
        except Exception as error:  # each store has exceptions of its own
            raise ShardsRuntimeError(
                f"{file} could not be read in {patience.attempts} tries: {error}"
            ) from error

    def _asked(self, ask: Callable[[PlainS3 | _Fsspec], T]) -> T:
        """Return the answer of this process's client, or of `s3fs` where the store refuses it."""
        try:
            return ask(self._own_client())
        except s3.NotLetInError as error:
            log.info("%s is read by s3fs: %s", self.url, error)
            self._plain, self._client = False, None
            return ask(self._own_client())

    def _own_client(self) -> PlainS3 | _Fsspec:
        """Return the client of this process: connections do not survive a fork."""
        with _Making.lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = os.getpid(), self._made()
            return self._client[1]

    def _made(self) -> PlainS3 | _Fsspec:
        if self._plain:
            return PlainS3(self.url, self.patience.stall, CONNECTIONS)
        return _Fsspec(self.url)


class _Fsspec:
    """Reads files under one URL, in any store that fsspec opens."""

    def __init__(self, url: str) -> None:
        """Raises ShardsError when it opens none such."""
        import fsspec

        self.url = url
        try:
            self._fs = fsspec.core.url_to_fs(url, **_options(url))[0]
        except (ValueError, ImportError) as error:
            raise ShardsError(f"cannot open {url}: {error}") from error

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return int(self._fs.size(f"{self.url}/{name}"))

    def part(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes `start` to `end` of a file, or fewer."""
        return cast(bytes, self._fs.cat_file(f"{self.url}/{name}", start=start, end=end))

    def glob(self, pattern: str) -> list[str]:
        """Return the names of the files that match `pattern`, sorted."""
        root = self._fs._strip_protocol(self.url)
        found = self._fs.glob(f"{self.url}/{pattern}")
        return sorted(path.removeprefix(root).lstrip("/") for path in found)


def _options(url: str) -> dict[str, Any]:
    """Return the options of a file system: without them, botocore keeps to ten connections."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    from fsspec.config import conf

    given = conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"max_pool_connections": CONNECTIONS, **given}}


def _in_time(ask: Callable[[], T], seconds: float) -> T:
    """Return `ask()`; raise TimeoutError when it takes longer, and drop its later result."""
    answer: _Answers = queue.SimpleQueue()
    _Asking.idle().put((ask, answer))
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(T, value)


_Answers = queue.SimpleQueue[tuple[Any, BaseException | None]]
_Calls = queue.SimpleQueue[tuple[Callable[[], Any], _Answers]]


class _Asking:
    """Threads that make calls for others, kept for the next call: making one costs time."""

    _idle: ClassVar[list[_Calls]] = []

    @classmethod
    def idle(cls) -> _Calls:
        """Return what calls are given through to a thread that has nothing to do."""
        try:
            return cls._idle.pop()
        except IndexError:
            calls: _Calls = queue.SimpleQueue()
            threading.Thread(target=cls._run, args=(calls,), daemon=True, name="fetch").start()
            return calls

    @classmethod
    def after_fork(cls) -> None:
        """Forget the threads in a child process: they are not there."""
        cls._idle = []

    @classmethod
    def _run(cls, calls: _Calls) -> None:
        while True:
            ask, answer = calls.get()
            try:
                told: tuple[Any, BaseException | None] = ask(), None
            except BaseException as error:  # handed to the caller
                told = None, error
            cls._idle.append(calls)
            answer.put(told)
            del ask, answer, told  # nothing is kept of a call while no other comes


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Asking.after_fork)
