"""Files and folders put in place whole: killed anywhere, full disks, long names, other writers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.common.atomic import (
    NoSpaceError,
    PartialFile,
    remove_folder,
    sweep,
    write_at,
    write_bytes,
    write_json,
    write_text,
    writing,
    writing_folder,
)
from pipeline.common.errors import RunError

# Replaces a file or a folder in child processes; child N is killed at its N-th system call that
# changes a name or opens a file. Prints a line for each child: what is there, and what is beside.
KILLED_ANYWHERE = """
import os, signal, sys
from pathlib import Path
from pipeline.common import atomic

kind, place, exchange = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "exchange"
if not exchange:
    atomic._exchange = lambda one, other: False  # as on a file system that can't

def write(path, text):
    if kind == "file":
        atomic.write_text(path, text * 100_000)
    else:
        with atomic.writing_folder(path) as folder:
            (folder / "one.txt").write_text(text)
            (folder / "two.txt").write_text(text)

def content(path):
    files = [path] if kind == "file" else sorted(path.iterdir())
    return "+".join(sorted({file.read_text()[:3] for file in files})), len(files)

for last in range(1, 60):
    path = place / f"{last}" / "thing"
    write(path, "old")
    pid = os.fork()
    if pid == 0:
        seen = 0
        def hook(event, arguments):
            global seen
            if event in ("os.rename", "open", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
                seen += 1
                if seen == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write(path, "new")
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
    missing = not path.exists()
    atomic.sweep(path.parent, path.name)
    print(killed, missing, *content(path), len(list(path.parent.iterdir())))
    if not killed:
        break
"""


def kinds() -> list[tuple[str, str]]:
    return [("file", "exchange"), ("folder", "exchange"), ("folder", "no-exchange")]


@pytest.mark.parametrize(("kind", "exchange"), kinds())
def test_killed_anywhere_leaves_the_old_or_the_new_whole(
    tmp_path: Path, root: Path, kind: str, exchange: str
) -> None:
    words = [sys.executable, "-c", KILLED_ANYWHERE, kind, str(tmp_path), exchange]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 3
    assert lines[-1][0] == "False"  # every place to die was tried
    files = "1" if kind == "file" else "2"
    for killed, missing, content, count, beside in lines:
        assert (content, count, beside) in {("old", files, "1"), ("new", files, "1")}
        assert killed == "True" or content == "new"
        assert missing == "False" or exchange == "no-exchange"


def test_a_failed_block_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def fail() -> None:
        with writing(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "." + "x" * 254, "日" * 85])
def test_a_name_may_be_as_long_as_the_system_takes(tmp_path: Path, name: str) -> None:
    for text in ("first", "second"):
        write_text(tmp_path / name, text)
    assert (tmp_path / name).read_text() == "second"
    with writing_folder(tmp_path / "folder" / name) as folder:
        (folder / "inside").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [name]


def test_many_writers_of_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [str(number) * 50_000 for number in range(8)]

    def write(text: str) -> None:
        for _ in range(5):
            write_text(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_links_permissions_and_devices_are_treated_as_open_does(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    path.touch(0o600)
    link.symlink_to(path)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert path.stat().st_mode & 0o777 == 0o600
    write_bytes(Path(os.devnull), b"gone")
    assert Path(os.devnull).is_char_device()


def test_a_pipe_gets_the_bytes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[bytes] = []
    thread = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    thread.start()
    write_bytes(pipe, b"through")
    thread.join()
    assert heard == [b"through"]
    assert pipe.is_fifo()


def test_a_full_disk_is_a_failure_at_run_time_that_names_the_file(small_disk: Path) -> None:
    path = small_disk / "large.bin"
    write_bytes(path, b"small")
    for write in (lambda: write_bytes(path, bytes(10**6)), lambda: _fill(small_disk / "folder")):
        with pytest.raises(NoSpaceError, match=r"no space left to write .*(large.bin|folder)"):
            write()
    assert path.read_bytes() == b"small"
    assert list(small_disk.iterdir()) == [path]


def _fill(path: Path) -> None:
    with writing_folder(path) as folder:
        (folder / "file").write_bytes(bytes(10**6))


def test_the_error_for_a_full_disk_is_of_both_kinds_and_travels() -> None:
    error = pickle.loads(pickle.dumps(NoSpaceError("no space left")))
    assert isinstance(error, RunError)
    assert isinstance(error, OSError)
    assert str(error) == "no space left"


def test_a_folder_that_nobody_may_write_to_is_named_as_the_user_named_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        write_text(tmp_path / "file" / "inside", "")
    with pytest.raises(NotADirectoryError), writing_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").is_file()
    with pytest.raises(FileNotFoundError) as failed, writing_folder(Path("/proc/none")):
        pass
    assert failed.value.filename == "/proc/none"


def test_sweep_leaves_the_living_and_what_is_not_ours(tmp_path: Path) -> None:
    living = PartialFile(tmp_path, "train-0.tar")
    not_ours = tmp_path / ".train.partial"
    not_ours.touch()
    other_prefix = tmp_path / f".val-0.tar.{'0' * 6}-1-00000000.partial"
    other_prefix.touch()
    sweep(tmp_path, "train")
    assert {living.path, not_ours, other_prefix} == set(tmp_path.iterdir())
    living.discard()
    sweep(tmp_path)
    assert not_ours.exists()


def test_sweep_trusts_another_machine_for_an_hour(tmp_path: Path) -> None:
    path = tmp_path / ".train-0.tar.abcdef-1-00000000.partial"
    path.touch()
    sweep(tmp_path)
    assert path.exists()
    os.utime(path, (0, 0))
    sweep(tmp_path)
    assert not path.exists()
    (path / "streams").mkdir(parents=True)
    (path / "streams" / "new.cca").touch()
    for old in (path / "streams", path):
        os.utime(old, (0, 0))
    sweep(tmp_path)
    assert (path / "streams" / "new.cca").exists()
    os.utime(path / "streams" / "new.cca", (0, 0))
    sweep(tmp_path)
    assert not path.exists()


def test_a_removed_folder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    remove_folder(folder)
    assert not list(tmp_path.iterdir())


def test_bytes_are_written_whole_although_the_system_takes_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, data, offset: take(descriptor, data[:7], offset)
    )
    data = os.urandom(100)
    with (tmp_path / "file").open("wb") as file:
        write_at(file.fileno(), data, 3)
    assert (tmp_path / "file").read_bytes() == bytes(3) + data
