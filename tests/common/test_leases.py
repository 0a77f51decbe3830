"""Two machines and one folder, on a file system whose locks do nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
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
from pipeline.common.leases import Lease, Observed, Owner, Signs, read_lease
from pipeline.common.locks import FolderInUseError, FolderLostError, check_held, folder_lock

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
        with pytest.raises(FolderLostError, match="process 5 on node-b"):
            check_held(tmp_path)
    assert "taken over by process 5 on node-b (again)" in str(told[0])
    # What is another's stays.
    assert read_lease(tmp_path) == theirs


# What a host does with the folder: it asks for it, says what came of that, and writes when told to.
HOST = """
import sys
from pathlib import Path
from pipeline.common import leases, locks
leases.RENEWAL = leases.FIRST_LOOK = locks.SECONDS_BETWEEN_TRIES = 0.05
locks.TERM = 0.5
folder, patience, job = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
try:
    with locks.folder_lock(folder, patience, job):
        print("here", flush=True)
        for name in sys.stdin:
            locks.check_held(folder)
            (folder / name.strip()).touch()
            print("written", flush=True)
except locks.FolderInUseError as error:
    print(error, flush=True)
"""


@pytest.fixture(scope="module")
def no_locks_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes the locks of a process do nothing, when it is preloaded."""
    library = tmp_path_factory.mktemp("no-locks") / "no_locks.so"
    source = Path(__file__).with_name("no_locks.c")
    build = ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    if shutil.which("cc") is None or subprocess.run(build, capture_output=True).returncode:
        pytest.skip("needs a C compiler")
    if subprocess.run(["unshare", "-n", "-u", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces")
    return library


def host(library: Path, root: Path, name: str, *words: str) -> subprocess.Popen[str]:
    """Start `HOST` under another host's name, in a network of its own."""
    apart = ["unshare", "-n", "-u", "sh", "-c", 'hostname "$0" && exec "$@"', name]
    return subprocess.Popen(
        [*apart, sys.executable, "-c", HOST, *words],
        cwd=root,
        env={**os.environ, "LD_PRELOAD": str(library)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def ask(process: subprocess.Popen[str], name: str = "") -> str:
    """Let a host write the file `name`, if one is given; return what it says next."""
    assert process.stdin is not None
    assert process.stdout is not None
    if name:
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
    return process.stdout.readline()


def test_two_hosts_whose_locks_do_nothing_never_write_to_one_folder(
    no_locks_library: Path, tmp_path: Path, root: Path
) -> None:
    folder = str(tmp_path)
    with host(no_locks_library, root, "node-a", folder, "0", "Slurm job 7") as first:
        assert ask(first) == "here\n"
        with host(no_locks_library, root, "node-b", folder, "0.2", "") as refused:
            assert "is being written by process" in (said := ask(refused))
            assert "on node-a (Slurm job 7)" in said
        assert ask(first, "by-a") == "written\n"
        # A machine that sleeps, or whose disk is gone for a while, is dead to the others.
        first.send_signal(signal.SIGSTOP)
        with host(no_locks_library, root, "node-b", folder, "60", "Slurm job 8") as second:
            assert ask(second) == "here\n"
            first.send_signal(signal.SIGCONT)
            said = ask(first, "by-a-again")
            assert "was taken over by process" in said
            assert "on node-b (Slurm job 8)" in said
            assert ask(second, "by-b") == "written\n"
            second.communicate()
        first.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "by-a", "by-b"]


@pytest.mark.parametrize("left", [[], [".lease"], [".lease.claim-0"], [".lease", ".lease.claim-0"]])
def test_of_many_that_claim_a_folder_in_one_moment_one_gets_it(
    tmp_path: Path, left: list[str]
) -> None:
    def claim(folder: Path, seen: Signs, together: threading.Barrier, got: list[Lease]) -> None:
        together.wait()
        with contextlib.suppress(FileExistsError):
            got.append(Lease(folder, Owner("node", 1), seen))

    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in left:
            (folder / name).write_text("of a dead machine")
        got: list[Lease] = []
        given = (folder, Signs.of(folder), threading.Barrier(4), got)
        threads = [threading.Thread(target=claim, args=given) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].give_back()
        assert list(folder.iterdir()) == []


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
