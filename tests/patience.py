"""Time limits of tests: they end what hangs, and never fail what is only slow.

A limit is written as it suits an idle machine with two cores of 2020. `patience` stretches it by
one factor, measured when the tests start: how long a fixed computation takes here and now, and how
many processes compete for a core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache

# Seconds that the computation takes on the machine for which the limits are written.
REFERENCE_SECONDS = 0.05
ROUNDS = 1_000_000
# Other work may begin after the measurement, so a limit is never as tight as it was written.
LEAST_FACTOR = 2.0


@cache
def slowness() -> float:
    """Return the factor by which this machine's time limits are stretched, 2 or more."""
    start = time.perf_counter()
    sum(range(ROUNDS))
    sum(number * number for number in range(ROUNDS // 2))
    measured = (time.perf_counter() - start) / REFERENCE_SECONDS
    competitors = os.getloadavg()[0] / (os.cpu_count() or 1)
    return LEAST_FACTOR * max(1.0, measured) * max(1.0, competitors)


def patience(seconds: float) -> float:
    """Return how many seconds to wait here for what takes far less than `seconds` elsewhere."""
    return seconds * slowness()


def wait_for(
    reached: Callable[[], bool], what: str, seconds: float = 300, pause: float = 0.05
) -> None:
    """Ask `reached()` every `pause` seconds; fail with `what` after `patience(seconds)`."""
    limit = patience(seconds)
    end = time.monotonic() + limit
    while not reached():
        assert time.monotonic() < end, f"{what}: not within {limit:.0f} s"
        time.sleep(pause)
