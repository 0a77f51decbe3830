"""A run's records on disk, between the training loop, which writes, and the delivering threads.

    RUN/tracking/spool.jsonl    one record per line, only ever appended
    RUN/tracking/state.json     which MLflow run they belong to, and how many bytes were delivered
    RUN/tracking/waiting/       a record for each file or picture that is not stored yet
    RUN/tracking/files/         those files and pictures themselves

Appending is one `write` to a file opened with O_APPEND, so a record is there whole once `append`
returns, whatever kills the process afterwards; `sync` makes it safe against a power cut too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.common.atomic import space_for, write_json
from pipeline.common.documents import DocumentError, parse_object
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.records import DAMAGED, FILES, Record, read_record

BLOCK = 1 << 16


@dataclass(frozen=True)
class State:
    """The run that the records belong to, and how many of them were delivered.

    `key` identifies the run before MLflow has given it an id; a tag of the run holds it, so that a
    run is found again if the answer to its creation was lost. `delivered` counts bytes of the
    spool.
    """

    key: str
    experiment: str
    run_name: str
    uri: str
    run_id: str = ""
    delivered: int = 0


class Spool:
    """The records of one run folder; safe to append to from several threads."""

    def __init__(self, folder: Path) -> None:
        """Open the spool in `folder/tracking`, which is created if it is missing."""
        self.folder = folder / "tracking"
        self.files = self.folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._waiting = self.folder / "waiting"
        self._waiting.mkdir(exist_ok=True)
        self._path = self.folder / "spool.jsonl"
        _cut_torn_line(self._path)
        self._file = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        _share(self._file)
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add `record`; returns once the operating system has it.

        Raises NoSpaceError where the disk is full: then nothing is left of it.
        """
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock, space_for(self._path):
            size = os.fstat(self._file).st_size
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except OSError:
                # A half of it would spoil the record that comes next.
                os.ftruncate(self._file, size)
                if "staged" in record:
                    self.unstage(record["staged"])
                raise

    def sync(self) -> None:
        """Wait until all appended records are on the disk itself."""
        os.fsync(self._file)

    def read(self, start: int, limit: int) -> Iterator[tuple[Record, int]]:
        """Yield up to `limit` records from byte `start` on, each with the byte where it ends.

        A line that is not a record gives one of the kind `DAMAGED`.
        """
        with self._path.open("rb") as file:
            file.seek(start)
            for _ in range(limit):
                line = file.readline()
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield read_record(line), start

    def size(self) -> int:
        """Return the number of bytes appended so far."""
        return self._path.stat().st_size

    def stage(self, source: Path | bytes, name: str) -> str:
        """Keep a file's content (or these bytes) until it is delivered; return its staged name.

        The content is kept as a hard link if the file system allows it, else as a copy. So a logged
        file may be removed or replaced by renaming afterwards, but not changed in place. Raises
        NoSpaceError when the disk is full.
        """
        staged = f"{uuid.uuid4().hex}/{name}"
        target = self.files / staged
        with space_for(target):
            target.parent.mkdir()
            try:
                _put(source, target)
            except OSError:
                self.unstage(staged)
                raise
        return staged

    def staged(self, name: str) -> Path:
        """Return where the staged file `name` lies."""
        return self.files / name

    def unstage(self, name: str) -> None:
        """Remove a staged file that was delivered."""
        shutil.rmtree(self.staged(name).parent, ignore_errors=True)

    def sweep(self, delivered: int) -> None:
        """Remove staged files that no record names: their writer was killed before it wrote one.

        While another process has the spool open nothing is removed: it may be between a file and
        its record. `delivered` is the byte up to which records were sent.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process, or a file system without locks
            return
        try:
            named = self._named(delivered)
            for folder in self.files.iterdir():
                if named is not None and folder.name not in named:
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            _share(self._file)

    def _named(self, delivered: int) -> set[str] | None:
        """Return the folders of staged files that records name, or None if one is damaged."""
        named = set()
        for record in self._unsent(delivered):
            if record["kind"] == DAMAGED:
                return None
            if record["kind"] in FILES:
                named.add(Path(record["staged"]).parts[0])
        return named

    def _unsent(self, delivered: int) -> Iterator[Record]:
        for path in self.waiting():
            with contextlib.suppress(FileNotFoundError):  # it was stored meanwhile
                yield read_record(path.read_bytes())
        for record, _ in self.read(delivered, limit=2**62):
            yield record

    def put_off(self, record: Mapping[str, Any], end: int) -> None:
        """Keep the record of a file or picture for later; `end` is the byte where it ends.

        Doing so twice, after a kill, has the same result as once.
        """
        write_json(self._waiting / f"{end:020d}.json", dict(record))

    def waiting(self) -> list[Path]:
        """Return the kept records of files and pictures, oldest first."""
        return sorted(self._waiting.glob("[0-9]*.json"))

    def stored(self, path: Path, record: Mapping[str, Any]) -> None:
        """Remove the kept record `path` and its file, which are stored now."""
        path.unlink(missing_ok=True)
        self.unstage(record["staged"])

    def set_aside(self, record: Mapping[str, Any], why: str) -> None:
        """Keep a record that the store rejects in `rejected.jsonl`, with the reason."""
        with (self.folder / "rejected.jsonl").open("a") as file:
            file.write(json.dumps({**record, "why": why}) + "\n")

    def load_state(self) -> State | None:
        """Return the state of a run that began here earlier, or None."""
        path = self.folder / "state.json"
        try:
            return _state(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise TrackingError(
                f"{path} is damaged: it doesn't say which MLflow run its records belong to. Remove"
                f" {self.folder}, without the records that were not sent yet, to begin a new run"
            ) from error

    def save_state(self, state: State, **changes: Any) -> State:
        """Write `state` with `changes`, whole, and return it."""
        state = replace(state, **changes)
        write_json(self.folder / "state.json", asdict(state))
        return state

    def close(self) -> None:
        """Close the file; nothing can be appended afterwards."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            # Never closed twice: the number may be another file's by then.
            self._file = -1


def _state(data: bytes) -> State:
    """Parse a state; raises ValueError when `data` holds no state."""
    content = parse_object(data)
    known = {f.name: f.type for f in fields(State)}
    named = {name: value for name, value in content.items() if name in known}
    if any(type(value).__name__ != known[name] for name, value in named.items()):
        raise DocumentError("a value is of the wrong type")
    try:
        state = State(**named)
    except TypeError as error:
        raise DocumentError(str(error)) from error
    if not 0 <= state.delivered < 2**63:
        raise DocumentError("delivered is out of range")
    return state


def _share(file: int) -> None:
    """Let other processes know that this one has the spool open."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _put(source: Path | bytes, target: Path) -> None:
    """Link or copy a file to `target`, or write these bytes there."""
    if isinstance(source, bytes):
        target.write_bytes(source)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def last_steps(spool: Spool) -> dict[tuple[str, str], int]:
    """Return the highest step logged for every ("metrics", name) and ("image", name)."""
    steps: dict[tuple[str, str], int] = {}
    for record, _ in spool.read(0, limit=2**62):
        if "step" in record:
            for name in record.get("values", [record.get("name")]):
                key = (record["kind"], name)
                steps[key] = max(steps.get(key, record["step"]), record["step"])
    return steps


def _cut_torn_line(path: Path) -> None:
    """Cut off a part of a record that a power cut left at the end."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = whole = file.seek(0, os.SEEK_END)
        while whole:  # block by block from the end: a spool of weeks is large
            start = max(0, whole - BLOCK)
            file.seek(start)
            newline = file.read(whole - start).rfind(b"\n")
            if newline >= 0:
                whole = start + newline + 1
                break
            whole = start
        if whole != size:
            os.truncate(path, whole)
