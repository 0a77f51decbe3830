"""One count of steps, which reaches its total but once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipeline.evaluation.progress import Meter


def test_steps_of_many_threads_add_up() -> None:
    seen: list[tuple[int, int | None, str]] = []
    meter = Meter(lambda done, total, note: seen.append((done, total, note)))
    meter.expect(1)
    meter.expect(40)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: meter.step(str(i)), range(40)))
    meter.step("last")
    assert [done for done, _, _ in seen] == list(range(1, 42))
    assert seen[-1] == (41, 41, "last")
