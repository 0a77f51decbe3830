"""Records on disk, where the disk is full or their writer was killed."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.common.atomic import NoSpaceError
from pipeline.tracking.records import Record
from pipeline.tracking.spool import Spool


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: what a write has of that is kept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def records(spool: Spool) -> list[Record]:
    return [record for record, _ in spool.read(0, 99)]


def numbered(step: int) -> Record:
    return {"kind": "metrics", "time": 1, "step": step, "values": {"loss": 1.0}}


def test_a_record_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(numbered(1))
    staged = spool.stage(b"text", "note.txt")
    file = {"kind": "file", "time": 1, "staged": staged, "folder": ""}
    with files_of_at_most(spool.size() + 10):
        with pytest.raises(NoSpaceError, match=r"no space left to write .*spool\.jsonl"):
            spool.append(numbered(2))
        with pytest.raises(NoSpaceError):
            spool.append(file)
        with pytest.raises(NoSpaceError, match=r"no space left to write .*picture\.png"):
            spool.stage(bytes(10_000), "picture.png")
    assert list(spool.files.iterdir()) == []
    spool.append(numbered(3))
    assert records(spool) == [numbered(1), numbered(3)]
    spool.close()


def test_staged_files_that_no_record_names_are_swept(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    kept = [spool.stage(b"x", "appended"), spool.stage(b"x", "waiting"), spool.stage(b"x", "sent")]
    appended, waiting, sent = (
        {"kind": "file", "time": 1, "staged": one, "folder": ""} for one in kept
    )
    spool.append(sent)
    delivered = spool.size()
    spool.put_off(waiting, delivered)
    spool.append(appended)
    left = spool.stage(b"x", "killed before its record")
    other = Spool(tmp_path)
    spool.sweep(delivered)  # the other may be about to write a record
    assert spool.staged(left).exists()
    other.close()
    spool.sweep(delivered)
    assert [spool.staged(name).exists() for name in (*kept, left)] == [True, True, False, False]
    spool.close()
