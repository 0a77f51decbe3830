"""The window of requests, against stores that are arithmetic: no clock, no threads."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from shards.reading.window import FIRST, LEAST, MOST, Window

PART, STEP = 2 << 20, 0.01


@dataclass(frozen=True)
class Line:
    """A store: bytes a second over a connection and in all, seconds to an answer, its failures."""

    connection: float
    total: float
    latency: float
    retried: float = 0.001


@dataclass
class Asked:
    begun: float
    wait: float
    left: float


def sizes_and_bytes(
    window: Window, lines: list[Line], seconds: float, seed: int
) -> tuple[list[int], list[float]]:
    """Keep the window full behind each line in turn; return sizes and bytes of each step."""
    dice = random.Random(seed)
    under_way: list[Asked] = []
    sizes, came = [], []
    for step in range(round(seconds / STEP) * len(lines)):
        line = lines[step * len(lines) // (round(seconds / STEP) * len(lines))]
        now = step * STEP
        while len(under_way) < window.size:
            wait = line.latency * dice.uniform(0.8, 1.6) + (dice.random() < line.retried)
            under_way.append(Asked(now, wait, PART * dice.uniform(0.9, 1.1)))
        sending = [one for one in under_way if one.wait <= 0]
        rate = min(line.connection, line.total / max(len(sending), 1))
        for one in under_way:
            one.wait -= STEP
        for one in sending:
            one.left -= rate * STEP
        for one in [one for one in under_way if one.left <= 0]:
            under_way.remove(one)
            window.arrived(one.begun, now, full=True)
        sizes.append(window.size)
        came.append(rate * STEP * len(sending))
    return sizes, came


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "line",
    [
        Line(50e6, 1e9, 0.03),
        Line(5e6, 100e6, 0.03),
        Line(5e6, 70e6, 0.2),
        Line(20e6, 30e6, 0.05),
    ],
)
def test_nine_tenths_of_a_line_are_taken(line: Line, seed: int) -> None:
    _, came = sizes_and_bytes(Window(_since=0.0), [line], 24.0, seed)
    later = came[len(came) // 3 :]
    assert sum(later) >= 0.9 * line.total * STEP * len(later)


def test_many_requests_are_under_way_only_where_that_brings_more() -> None:
    narrow, wide = Line(50e6, 50e6, 0.03), Line(5e6, 1e9, 0.03)
    sizes, _ = sizes_and_bytes(Window(_since=0.0), [narrow, wide, narrow], 90.0, seed=0)
    ends = [sizes[len(sizes) * turn // 3 - 1] for turn in (1, 2, 3)]
    assert ends[0] <= 2 * FIRST
    assert ends[1] >= MOST // 2
    assert ends[2] <= MOST // 2


def test_a_failure_halves_the_window() -> None:
    window = Window(size=32, _since=0.0)
    window.failed(1.0)
    assert window.size == 16
    for _ in range(9):
        window.failed(1.0)
    assert window.size == LEAST


def test_requests_that_do_not_fill_the_window_say_nothing_of_it() -> None:
    window = Window(_since=0.0)
    for number in range(1000):
        window.arrived(number, number + 1.0, full=False)
    assert window.size == FIRST
