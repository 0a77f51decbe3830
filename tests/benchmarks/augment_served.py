"""Measures `pipeline shard --augment` with devices that augment for all workers.

Called by `tests.benchmarks.augment --device`. Each repeat makes all shards anew; the table shows
pictures and crops a second, and how workers and devices spent the time: where devices are busy for
a small share, decoding and encoding limit, and more cores would help.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from shards.options import Options, augment_options, devices_for, parse_devices
from shards.run import shard

SHARD_SIZE = 8_000_000  # so that every worker has some


def measure(listed: Path, dest: Path, spec: Path, device: str, workers: int, repeats: int) -> None:
    """Print a row for each repeat.

    Args:
        listed: a file of paths.
        dest: a folder that does not exist; it is gone afterwards.
        spec: what is done to the pictures.
        device: as for `pipeline shard --device`; "cpu" starts one process that works on the CPU,
            to try this where there is no GPU.
        workers: processes that decode and encode.
        repeats: how often; the first one starts the devices.
    """
    augment = augment_options(str(spec), device)
    devices = parse_devices(device) or devices_for(augment) or ["cpu"]
    options = Options(shard_size=SHARD_SIZE, labels=False, augment=augment)
    print("| devices | workers | pictures/s | crops/s | the time |\n|---|---|---|---|---|")
    for _ in range(repeats):
        notes = [""]

        def report(done: int, total: int | None, note: str, notes: list[str] = notes) -> None:
            notes.append(note)

        start = time.monotonic()
        try:
            (made,) = shard(
                [str(listed)], dest, options, workers=workers, devices=devices, progress=report
            )
        finally:
            shutil.rmtree(dest, ignore_errors=True)
        seconds = time.monotonic() - start
        stages = notes[-1].partition("; ")[2]
        rates = f"{made.listed / seconds:.1f} | {made.samples / seconds:.1f}"
        print(f"| {', '.join(devices)} | {workers} | {rates} | {stages} |", flush=True)
