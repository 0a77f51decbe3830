"""Workers do every task once, and nothing waits for one that is gone."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.common.errors import RunError
from pipeline.common.workers import Tell, work_in_processes


def squarer(tell: Tell) -> Callable[[int], int]:
    def work(number: int) -> int:
        tell(number)
        return number * number

    return work


def fussy(tell: Tell) -> Callable[[int], int]:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three is too many")
        return number

    return work


def sleeper(tell: Tell) -> Callable[[Path], None]:
    def work(place: Path) -> None:
        try:
            place.write_text(str(os.getpid()))
            time.sleep(600)
        finally:
            place.unlink()

    return work


def one_that_can_not_start(tell: Tell) -> Callable[[int], int]:
    raise ValueError("no such device")


def suicide(tell: Tell) -> Callable[[int], int]:
    def work(number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    return work


@pytest.mark.parametrize("processes", [1, 3])
def test_every_task_is_done_once(processes: int) -> None:
    notes: list[int] = []
    done = dict(work_in_processes(squarer, range(20), processes, notes.append))
    assert done == {number: number * number for number in range(20)}
    assert sorted(notes) == list(range(20))


def test_no_task_is_nothing_to_do() -> None:
    assert list(work_in_processes(squarer, [], 2)) == []


def test_what_a_task_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="three is too many") as caught:
        list(work_in_processes(fussy, range(5), 2))
    assert "in work" in "".join(caught.value.__notes__)
    with pytest.raises(ValueError, match="no such device"):
        list(work_in_processes(one_that_can_not_start, range(5), 2))


def test_a_worker_that_dies_at_work_is_told() -> None:
    with pytest.raises(RunError, match="a worker process was killed"):
        list(work_in_processes(suicide, range(5), 2))


@pytest.mark.slow
def test_a_worker_killed_at_any_instant_is_told() -> None:
    chance = random.Random(0)
    for _ in range(12):
        over = threading.Event()
        killer = threading.Thread(target=kill_a_child, args=(over, chance.random() / 20))
        killer.start()
        try:
            with pytest.raises(RunError, match="a worker process was killed"):
                for _ in work_in_processes(squarer, iter(int, 1), 2):  # zeros without an end
                    pass
        finally:
            over.set()
            killer.join()


def test_leaving_early_ends_what_is_under_way(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]

    def leave_once_both_work() -> None:
        while not all(place.exists() and place.read_text() for place in places):
            time.sleep(0.01)
        raise KeyboardInterrupt

    def tasks() -> Iterator[Path]:
        yield from places
        leave_once_both_work()

    with pytest.raises(KeyboardInterrupt):
        for _ in work_in_processes(sleeper, tasks(), 3):
            pass
    assert list(tmp_path.iterdir()) == []  # they cleaned up behind them
    assert not workers()


def kill_a_child(over: threading.Event, delay: float) -> None:
    """Kill a worker of this process `delay` seconds after there is one."""
    while not over.is_set():
        if found := workers():
            time.sleep(delay)
            os.kill(found[0], signal.SIGKILL)
            return


def workers() -> list[int]:
    """Return the workers of this process that are alive."""
    found = []
    for child in psutil.Process().children():
        try:
            if any("pipeline.common.workers" in word for word in child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found
