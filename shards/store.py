"""A destination: a local folder or any URL that fsspec opens. All in it is written whole."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pipeline.common.atomic import PARTIAL, create_bytes, flush, write_bytes
from pipeline.common.errors import RunError, UsageError
from pipeline.common.pictures.errors import first_line
from pipeline.common.retries import Retries
from pipeline.common.secrets import redacted
from shards.errors import ShardsError, ShardsRuntimeError

T = TypeVar("T")
log = logging.getLogger(__name__)
RETRIES = Retries(attempts=4, pause=1.0)
# Where nothing has answered yet, the address is wrong more often than the line is down; a client
# library tries for some seconds by itself.
AT_FIRST = Retries(attempts=1)
# What asking again does not change.
FINAL = (FileNotFoundError, FileExistsError, PermissionError, UsageError, RunError)

# Names of errors, each client library's own, that say who is asking: asking again is no use.
ACCESS = re.compile("Credential|Auth|Forbidden|AccessDenied|NoSuchBucket|TokenRetrieval")

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
        self._answered = False

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
        names = retried(self._remote_names, self.url, RETRIES if self._answered else AT_FIRST)
        self._answered = True
        return names

    def size(self, name: str) -> int:
        """Return the size of file `name` in bytes; raises FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / name).stat().st_size
        where = self.where(name)
        return retried(lambda: int(self._remote().size(where)), where)

    def read(self, name: str) -> bytes:
        """Return the bytes of file `name`; raises FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / name).read_bytes()
        where = self.where(name)
        return retried(lambda: cast(bytes, self._remote().cat_file(where)), where)

    def open(self, name: str) -> IO[bytes]:
        """Open file `name` for reading; raises FileNotFoundError."""
        if self.folder is not None:
            return (self.folder / name).open("rb")
        where = self.where(name)
        return retried(lambda: cast(IO[bytes], self._remote().open(where, "rb")), where)

    def write(self, name: str, data: bytes) -> None:
        """Write file `name` whole: it is there completely, or not at all."""
        if self.folder is None:
            fs = self._remote()
            send = partial(self._upload, name, lambda target: fs.pipe_file(target, data))
            retried(send, self.where(name))
            return
        write_bytes(self.folder / name, data)

    def create(self, name: str, data: bytes) -> None:
        """Write file `name` whole, unless others have: of several at once, one succeeds.

        That the same bytes are there already counts as success. S3, Google's and Azure's stores
        create a file or refuse to; elsewhere two in the same instant may both believe that they
        did, so look again before anything depends on it.

        Raises:
            FileExistsError: it is there, with other bytes.
        """
        with contextlib.suppress(FileExistsError):
            if self.folder is not None:
                create_bytes(self.folder / name, data)
            else:
                retried(partial(self._create, name, data), self.where(name))
        if self.read(name) != data:
            raise FileExistsError(f"{self.where(name)} is there")

    def settle(self, path: Path, name: str, more_follows: bool = False) -> None:
        """Move the complete, flushed local file `path` to `name`; `path` is gone afterwards.

        Its name lasts through a power cut from the next call on without `more_follows`.
        """
        if self.folder is not None:
            path.replace(self.folder / name)
            if not more_follows:
                flush(self.folder)
            return
        fs = self._remote()
        send = partial(self._upload, name, lambda target: fs.put_file(path, target))
        retried(send, self.where(name))
        path.unlink()

    def remove(self, name: str) -> None:
        """Remove file `name`; it may be absent."""
        if self.folder is not None:
            (self.folder / name).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            where = self.where(name)
            retried(lambda: self._remote().rm_file(where), where)

    def _remote(self) -> Any:
        if self._fs is None:
            self._fs = remote(self.url)
        return self._fs

    def _remote_names(self) -> set[str]:
        fs = self._remote()
        try:
            listing = fs.ls(self.url, detail=True)
        except FileNotFoundError:
            return set()
        return {one["name"].rsplit("/", 1)[-1] for one in listing if one["type"] == "file"}

    def _create(self, name: str, data: bytes) -> None:
        fs, where = self._remote(), self.where(name)
        if fs.exists(where):
            raise FileExistsError(where)
        if not self._uploads_whole:
            self._upload(name, lambda target: fs.pipe_file(target, data))
            return
        try:
            fs.pipe_file(where, data, mode="create")
        except Exception as error:  # each store says in its own way that the file is there
            if fs.exists(where):
                raise FileExistsError(where) from error
            raise

    @property
    def _uploads_whole(self) -> bool:
        return self.url.split("://")[0] in WHOLE_UPLOADS

    def _upload(self, name: str, send: Callable[[str], object]) -> None:
        target = self.where(name)
        if self._uploads_whole:
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


def remote(url: str) -> Any:
    """Return the fsspec file system of a URL, which asks the store about its files each time.

    Raises:
        ShardsError: the protocol is not known, or what it needs is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)[0]
    except (ValueError, ImportError) as error:
        more = ": pip install 'cca-pipeline[s3]'" if url.startswith(("s3://", "s3a://")) else ""
        raise ShardsError(f"cannot open {url}: {error}{more}") from error


def retried(attempt: Callable[[], T], where: str, retries: Retries | None = None) -> T:
    """Return `attempt()`, tried again after pauses when the connection fails.

    Args:
        attempt: asks the store.
        where: the file or folder that it asks for, for messages.
        retries: how often (default: `RETRIES`).

    Raises:
        FileNotFoundError: it is not there.
        ShardsError: the store refuses access, or finds no credentials.
        ShardsRuntimeError: the store did not answer.
    """

    def ask() -> T:
        try:
            return attempt()
        except FINAL:
            raise
        except Exception as error:  # each store has exceptions of its own
            if ACCESS.search(type(error).__name__):
                raise PermissionError(str(error)) from error
            log.warning("%s", redacted(f"{where}: {first_line(error)}"))
            raise

    try:
        return (retries or RETRIES).call(ask, where, FINAL)
    except PermissionError as error:
        raise ShardsError(
            f"the store refuses access to {where} ({first_line(error)}): "
            "check the name, and the credentials that are set for this store"
        ) from error
    except FINAL:
        raise
    except Exception as error:
        raise ShardsRuntimeError(
            f"the store did not answer for {where}: {first_line(error)}"
        ) from error
