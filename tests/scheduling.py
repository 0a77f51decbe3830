"""Which of several test processes runs what, and in which order.

A file's tests stay together, so that what they share (a trained model, a server) is made once, and
the tests of the Slurm cluster do, because they break it for each other. What takes longest comes
first: the processes then end at about the same time.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/cluster",)
# From the longest to the shortest, all of half a minute or more; nothing depends on it but the
# time of a whole run. Anew: add up `pytest --durations=0` by file.
LONGEST = (
    *("tests/recipes/test_processes.py", "tests/cluster/test_slurm.py"),
    *("tests/cluster/test_training.py", "tests/cluster/test_faults.py"),
    *("tests/recipes/test_training.py", "tests/tracking/test_server.py"),
    *("tests/docs/test_readme.py", "tests/cli/test_wheel.py"),
    *("tests/recipes/test_faults.py", "tests/tracking/test_promotion.py"),
    *("tests/tracking/test_served.py", "tests/tracking/test_tracker.py"),
    *("tests/shards/test_stream_exact.py", "tests/recipes/test_watchdog.py"),
    *("tests/recipes/test_stops.py", "tests/recipes/test_graphs.py"),
    *("tests/codec/test_cli.py", "tests/cli/test_bad_input.py"),
    *("tests/recipes/test_health.py", "tests/shards/test_reading_ranges.py"),
    *("tests/codec/test_tiles.py", "tests/architectures/test_second.py"),
    *("tests/recipes/test_resume.py",),
)


class TogetherByFile(LoadScopeScheduling):
    """Hands out files in the order of the tests, whatever the number of tests in each."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return next((folder for folder in TOGETHER if file.startswith(f"{folder}/")), file)


def longest_first(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, the others behind them as they were."""
    places = {name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        return places.get(item.nodeid.split("::", 1)[0], len(places))

    items.sort(key=place)


def scheduler(config: pytest.Config, log: object) -> TogetherByFile | None:
    """Return the scheduler for `--dist loadfile`, and None, which is xdist's own, for others."""
    if config.option.dist != "loadfile":
        return None
    config.option.loadscopereorder = False
    return TogetherByFile(config, log)
