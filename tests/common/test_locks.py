"""Locks between processes, and what the refused are told."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.common.locks import FolderInUseError, Owner, file_lock, folder_lock, is_locked

HOLD = """
import sys
from pathlib import Path
from pipeline.common.locks import {kind}
with {kind}(Path(sys.argv[1]){more}):
    print("here", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(root: Path, path: Path, kind: str, more: str = "") -> Iterator[int]:
    words = [sys.executable, "-c", HOLD.format(kind=kind, more=more), str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=root, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process.pid
        process.kill()


def test_a_held_folder_is_refused_with_its_owner_until_that_dies(
    tmp_path: Path, root: Path
) -> None:
    folder = tmp_path / "run"
    with other_process(root, folder, "folder_lock", ", job='mse of run 7'") as pid:
        with pytest.raises(
            FolderInUseError, match=rf"process {pid} on .* \(mse of run 7\)"
        ) as told:
            folder_lock(folder).__enter__()
        assert told.value.owner == Owner(os.uname().nodename, pid, "mse of run 7")
    with folder_lock(folder, patience=5) as owner:
        assert owner.pid == os.getpid()


def test_one_process_does_not_hold_a_folder_twice(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(FolderInUseError):
        folder_lock(tmp_path / "." / "").__enter__()
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "process 12 on node", "[]", "null", '{"pid": 1}', "\0\xff"])
def test_an_owner_that_cannot_be_read_is_another_process(tmp_path: Path, text: str) -> None:
    assert Owner.read(text) is None
    assert "another process" in str(FolderInUseError(tmp_path, Owner.read(text)))


def test_the_error_travels_between_processes(tmp_path: Path) -> None:
    error = FolderInUseError(tmp_path, Owner("node", 3, "job"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.owner) == (str(error), error.owner)


def test_a_file_system_without_locks_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with folder_lock(tmp_path):
        pass
    assert "can't be locked" in caplog.text
    assert not (tmp_path / ".lease").exists()


def test_a_file_lock_is_seen_while_its_holder_lives(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with other_process(root, path, "file_lock"):
        assert is_locked(path)
    assert not is_locked(path)
    with file_lock(path):
        assert is_locked(path)
