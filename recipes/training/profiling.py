"""A profiler's trace of a few training steps: where the time and the memory of a step go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Steps before the recorded ones: the first are slow (memory, compilation, loader processes).
SKIPPED, WARMING, RECORDED = 5, 2, 3
STEPS = SKIPPED + WARMING + RECORDED
ROWS = 30


@contextmanager
def recording(folder: Path, name: str) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; writes `folder`/`name`.json.gz and .txt.

    The trace is for chrome://tracing or ui.perfetto.dev, the text a table of the dearest
    operations. A run that ends within `STEPS` steps leaves none.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU]
    device = "cpu"
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        device = "cuda"

    def write(profiler: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"{name}.json.gz"))
        means = profiler.key_averages()
        table = means.table(sort_by=f"self_{device}_time_total", row_limit=ROWS)
        (folder / f"{name}.txt").write_text(table)

    steps = schedule(wait=SKIPPED, warmup=WARMING, active=RECORDED, repeat=1)
    with profile(
        activities=activities,
        schedule=steps,
        on_trace_ready=write,
        profile_memory=True,
        record_shapes=True,
    ) as profiler:
        yield profiler.step
