"""Open files of a process: one pool for all corpora, within the system's limit."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.reading.descriptors import POOL, Descriptors
from shards.reading.files import LocalFiles

MIXTURE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
from shards import Stream
stream = Stream({name: 1 for name in sys.argv[1:]}, batch_size=4, crop=16, epochs=2)
most = 0
for batch in stream:
    most = max(most, len(os.listdir("/proc/self/fd")))
print(most)
"""


def opener(path: Path) -> Callable[[], int]:
    return lambda: os.open(path, os.O_RDONLY)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / str(number) for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    return paths


def test_the_oldest_are_closed_and_opened_again(files: list[Path]) -> None:
    pool = Descriptors(limit=3)
    owner = pool.owner()
    for _ in range(2):
        for number, path in enumerate(files):
            with pool.using((owner, path.name), opener(path)) as descriptor:
                assert os.pread(descriptor, 1, 0) == bytes([number])
            assert len(pool) <= 3
    pool.keep(owner, 1)
    assert len(pool) == 1
    pool.keep(owner, 0)
    assert len(pool) == 0


def test_a_file_that_is_read_stays_open(files: list[Path]) -> None:
    pool = Descriptors(limit=1)
    owner = pool.owner()
    with pool.using((owner, "0"), opener(files[0])) as first:
        with pool.using((owner, "1"), opener(files[1])):
            assert len(pool) == 1
            assert os.pread(first, 1, 0) == b"\0"
        assert os.pread(first, 1, 0) == b"\0"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)
    pool.keep(owner, 0)


def test_threads_read_what_they_asked_for(files: list[Path]) -> None:
    pool = Descriptors(limit=2)
    owner = pool.owner()

    def read(number: int) -> bool:
        path = files[number % len(files)]
        with pool.using((owner, path.name), opener(path), most=2) as descriptor:
            return os.pread(descriptor, 1, 0) == bytes([number % len(files)])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(2000)))
    assert len(pool) <= 2
    pool.keep(owner, 0)


def test_files_close_with_their_owner_and_travel_without_descriptors(files: list[Path]) -> None:
    gc.collect()
    before = len(POOL)
    folder = LocalFiles(files[0].parent)
    assert folder.read("7", 0, 9) == b"\7"
    other = pickle.loads(pickle.dumps(folder))
    assert other.read("7", 0, 9) == b"\7"
    assert len(POOL) == before + 2
    del folder, other
    gc.collect()
    assert len(POOL) == before


@pytest.mark.slow
def test_a_mixture_of_many_shards_under_a_low_limit(tmp_path: Path) -> None:
    from tests.shards.made import numbered, write_split

    for name in "abcd":
        write_split(tmp_path / name, [1] * 60, numbered(60, 16, 16))
    command = [sys.executable, "-c", MIXTURE, *(str(tmp_path / name) for name in "abcd")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 96
