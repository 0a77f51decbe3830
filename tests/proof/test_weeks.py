"""That the proof of weeks sees what grows, and takes noise for none."""

from __future__ import annotations

import random

import pytest

from tests.proof.weeks import Looks, growths


def looks(memory: float, pace: float, noise: float = 0.02) -> Looks:
    """Looks at a process whose memory, and whose seconds a unit, grow by such shares in all."""
    dice, seen, seconds = random.Random(1), Looks(), 0.0
    for place in range(200):
        seconds += 10 * (1 + pace * place / 200) * (1 + noise * dice.gauss(0, 1))
        used = 2e8 * (1 + memory * place / 200 + noise * dice.gauss(0, 1))
        seen.add(10.0 * (place + 1), **{"memory": used, "seconds a unit": seconds})
    return seen


def test_what_is_flat_is_called_flat() -> None:
    assert all(one.flat for one in growths(looks(0.0, 0.0)))


@pytest.mark.parametrize(("memory", "pace"), [(0.3, 0.0), (0.0, 0.3)])
def test_what_grows_is_seen(memory: float, pace: float) -> None:
    grown = {one.name for one in growths(looks(memory, pace)) if not one.flat}
    assert grown == {"memory" if memory else "seconds a unit"}
