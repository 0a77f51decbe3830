"""Two machines and one folder, on a file system whose locks do nothing."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common import leases, locks
from pipeline.common.leases import Observed, read_lease
from pipeline.common.locks import FolderInUseError, folder_lock

# Another machine: another name, and locks that say yes and hold nothing.
ELSEWHERE = """
import fcntl, socket, sys
from pathlib import Path
from pipeline.common import leases, locks
fcntl.lockf = lambda *_: None
socket.gethostname = lambda: "node-b"
leases.RENEWAL = leases.FIRST_LOOK = 0.05
with locks.folder_lock(Path(sys.argv[1]), job="Slurm job 7"):
    print("here", flush=True)
    sys.stdin.read()
"""


@contextmanager
def elsewhere(root: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", ELSEWHERE, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=root, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
        process.kill()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "lockf", lambda *_: None)


@pytest.mark.usefixtures("no_locks")
def test_a_folder_of_another_machine_is_refused_by_its_lease_until_that_machine_is_gone(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_TRIES", 0.05)
    with elsewhere(root, tmp_path) as other:
        # Whatever the clocks say.
        for now in (0.0, time.time() + 1e9):
            os.utime(tmp_path, (now, now))
            monkeypatch.setattr(time, "time", lambda now=now: now)
            with pytest.raises(FolderInUseError, match=r"on node-b \(Slurm job 7\)"):
                folder_lock(tmp_path, patience=0.2).__enter__()
        monkeypatch.undo()
        monkeypatch.setattr(fcntl, "lockf", lambda *_: None)
        other.kill()
        other.wait()
        # Killed, it left its lease, which is watched before it is taken for dead.
        with pytest.raises(FolderInUseError, match="on node-b"):
            folder_lock(tmp_path).__enter__()
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_TRIES", 0.05)
    monkeypatch.setattr(locks, "TERM", 0.2)
    with folder_lock(tmp_path, patience=60):
        assert json.loads(read_lease(tmp_path) or "")["pid"] == os.getpid()
    assert read_lease(tmp_path) is None


@pytest.mark.usefixtures("no_locks")
def test_a_machine_that_ends_in_order_leaves_the_folder_at_once(tmp_path: Path, root: Path) -> None:
    with elsewhere(root, tmp_path) as other:
        other.communicate()
        with folder_lock(tmp_path):
            pass


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        left = read_lease(tmp_path)
    (tmp_path / ".lease").write_text(left or "")
    with folder_lock(tmp_path):
        assert read_lease(tmp_path) != left


def test_a_holder_that_was_taken_for_dead_is_told_who_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "FIRST_LOOK", 0.01)
    told: list[FolderInUseError] = []
    known = threading.Event()

    def lost(by: FolderInUseError) -> None:
        told.append(by)
        known.set()

    theirs = json.dumps({"host": "node-b", "pid": 5, "job": "again", "token": "theirs"})
    with folder_lock(tmp_path, lost=lost):
        (tmp_path / ".lease.new").write_text(theirs)
        (tmp_path / ".lease.new").replace(tmp_path / ".lease")
        assert known.wait(60)
    assert str(told[0]).endswith("by process 5 on node-b (again)")
    # What is another's stays.
    assert read_lease(tmp_path) == theirs


@given(st.lists(st.floats(0.01, leases.TERM - 1), min_size=1, max_size=12), st.floats(-1e9, 1e9))
def test_who_gives_signs_of_life_is_never_taken_for_dead(gaps: list[float], jump: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        now, lease = [1000.0], [0]
        patch.setattr(time, "monotonic", lambda: now[0])
        patch.setattr(time, "time", lambda: now[0] + jump)
        patch.setattr(leases, "read_lease", lambda _: f"renewal {lease[0]}")
        seen = Observed(Path())
        for gap in gaps:
            now[0] += gap
            lease[0] += 1
            seen.look()
            assert seen.seconds < leases.TERM
        now[0] += leases.TERM + 1
        seen.look()
        assert seen.seconds >= leases.TERM
