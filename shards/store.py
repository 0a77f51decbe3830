"""A destination: a local folder or any URL that fsspec opens. All in it is written whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pipeline.common.atomic import PARTIAL, flush, write_bytes
from pipeline.common.errors import RunError, UsageError
from pipeline.common.retries import Retries
from shards.errors import ShardsError, ShardsRuntimeError

T = TypeVar("T")
RETRIES = Retries(attempts=4, pause=1.0)
# What asking again does not change.
FINAL = (FileNotFoundError, PermissionError, UsageError, RunError)

# Protocols whose uploads appear at once and whole; elsewhere a temporary name is renamed.
WHOLE_UPLOADS = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oss", "memory", "oci", "r2"}


class Store:
    """Named files under one root. Knows nothing of shards."""

    def __init__(self, root: str | Path) -> None:
        url = str(root)
        if url.startswith(("file://", "local://")):
            url = url.split("://", 1)[1]
        self.url = url.rstrip("/") or "/"
        self.folder = None if "://" in url else Path(url)
        self._fs: Any = None

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.url,)

    @property
    def shared_between_processes(self) -> bool:
        """Whether another process of this machine sees the same files."""
        return not self.url.startswith("memory://")

    def where(self, name: str) -> str:
        """Return the full name of file `name`, for messages and for opening it elsewhere."""
        return f"{self.url}/{name}"

    def names(self) -> set[str]:
        """Return the names of the files directly under the root (none when it is not there)."""
        if self.folder is not None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return {entry.name for entry in os.scandir(self.folder) if entry.is_file()}
            return set()
        return _retried(self._remote_names)

    def size(self, name: str) -> int:
        """Return the size of file `name` in bytes; raises FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / name).stat().st_size
        return _retried(lambda: int(self._remote().size(self.where(name))))

    def read(self, name: str) -> bytes:
        """Return the bytes of file `name`; raises FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / name).read_bytes()
        return _retried(lambda: cast(bytes, self._remote().cat_file(self.where(name))))

    def open(self, name: str) -> IO[bytes]:
        """Open file `name` for reading; raises FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / name).open("rb")
        return _retried(lambda: cast(IO[bytes], self._remote().open(self.where(name), "rb")))

    def write(self, name: str, data: bytes) -> None:
        """Write file `name` whole: it is there completely, or not at all."""
        if self.folder is None:
            _retried(lambda: self._upload(name, lambda path: self._remote().pipe_file(path, data)))
            return
        write_bytes(self.folder / name, data)

    def settle(self, path: Path, name: str, more_follows: bool = False) -> None:
        """Move the complete, flushed local file `path` to `name`; `path` is gone afterwards.

        Its name lasts through a power cut from the next call on without `more_follows`.
        """
        if self.folder is not None:
            path.replace(self.folder / name)
            if not more_follows:
                flush(self.folder)
            return
        _retried(lambda: self._upload(name, lambda target: self._remote().put_file(path, target)))
        path.unlink()

    def remove(self, name: str) -> None:
        """Remove file `name`; it may be absent."""
        if self.folder is not None:
            (self.folder / name).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            _retried(lambda: self._remote().rm_file(self.where(name)))

    def _remote(self) -> Any:
        if self._fs is None:
            import fsspec

            try:
                self._fs = fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]
            except (ValueError, ImportError) as error:
                raise ShardsError(f"cannot open {self.url}: {error}") from error
        return self._fs

    def _remote_names(self) -> set[str]:
        fs = self._remote()
        try:
            listing = fs.ls(self.url, detail=True)
        except FileNotFoundError:
            return set()
        return {one["name"].rsplit("/", 1)[-1] for one in listing if one["type"] == "file"}

    def _upload(self, name: str, send: Callable[[str], object]) -> None:
        target = self.where(name)
        if self.url.split("://")[0] in WHOLE_UPLOADS:
            send(target)
            return
        self._remote().makedirs(self.url, exist_ok=True)
        # Two that write the same name at once each have a file of their own.
        partial = self.where(f".{name}.{os.urandom(6).hex()}{PARTIAL}")
        try:
            send(partial)
            self._remote().mv(partial, target)
        except BaseException:
            with contextlib.suppress(Exception):
                self._remote().rm_file(partial)
            raise


def _retried(attempt: Callable[[], T]) -> T:
    """Return `attempt()`, tried again after pauses when the connection fails."""
    try:
        return RETRIES.call(attempt, "the store", FINAL)
    except FINAL:
        raise
    except Exception as error:  # each store has exceptions of its own
        raise ShardsRuntimeError(f"the store did not answer: {error}") from error
