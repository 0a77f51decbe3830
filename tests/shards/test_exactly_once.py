"""Killed at any instant, or out of space, a run goes on and ends with the very same bytes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.inspecting.verify import verify
from tests.patience import patience
from tests.shards.making import checksums, corpus

OPTIONS = ["--shard-size", "30KB", "--min-side", "32", "--workers", "2"]
KILLS = 20


def command(source: Path, dest: Path) -> list[str]:
    module = [sys.executable, "-m", "pipeline.cli.main"]
    return [*module, "shard", str(source), "--out", str(dest), *OPTIONS]


def start(source: Path, dest: Path, **more: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(source, dest), stderr=pipe, stdout=pipe, text=True, **more)  # type: ignore[call-overload]


def finished(source: Path, dest: Path, **more: object) -> tuple[int, str]:
    process = start(source, dest, **more)
    _, error = process.communicate(timeout=patience(300))
    return process.returncode, error


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"), count=150)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    dest = tmp_path_factory.mktemp("undisturbed") / "shards"
    assert finished(source, dest)[0] == 0
    return checksums(dest)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, so that waiting for a disk takes no time."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_killed_at_random_instants(source: Path, memory: Path, root: Path) -> None:
    words = [sys.executable, "-m", "tests.shards.killed", source, memory / "shards", KILLS, 7]
    done = subprocess.run(
        [str(word) for word in words],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=patience(500),
    )
    assert done.returncode == 0, done.stderr
    killed, workers_killed = map(int, done.stdout.split())
    assert killed == KILLS
    assert workers_killed
    assert not verify(memory / "shards").problems


def test_an_interrupted_run_leaves_nothing_half_written(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "shards"
    process = start(source, dest)
    while not list(dest.glob("*.tar")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=patience(300))
    assert process.returncode in (130, 0)
    assert "Traceback" not in error
    assert not list(dest.glob(".*.partial"))


@pytest.mark.slow
def test_a_full_disk_is_told_and_survived(
    source: Path, undisturbed: dict[str, str], small_disk: Path
) -> None:
    dest = small_disk / "shards"
    code, error = finished(source, dest)
    assert code == 1
    assert f"no space left to write {dest}: free some, then run the same command again" in error
    assert "Traceback" not in error
    assert not list(dest.glob(".*.partial"))
    assert finished(source, dest)[0] == 1
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert finished(source, dest)[0] == 0
    assert checksums(dest) == undisturbed


@pytest.mark.slow
def test_a_limit_on_file_sizes_is_told_and_survived(
    source: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    dest = tmp_path / "shards"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, resource.RLIM_INFINITY))

    code, error = finished(source, dest, preexec_fn=limited)
    assert code == 1
    assert "no space left to write" in error
    assert finished(source, dest)[0] == 0
    assert checksums(dest) == undisturbed
