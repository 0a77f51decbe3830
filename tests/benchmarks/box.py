"""What the model in the package costs on one picture: `python -m tests.benchmarks.box [PICTURE]`.

Prints wall and CPU time of a picture's samples to a stream and back, without a process's start and
without picture files, and how much of it each part takes: first in the form without torch, which
single pictures go through, then with torch. Each takes the threads that numpy and torch take by
themselves, or `OMP_NUM_THREADS`. On a machine that is busy with other work wall times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.codec.bitstream import read_stream
from pipeline.codec.box import box_model
from pipeline.codec.light.codec import light_model
from pipeline.codec.picture import Picture, read_picture
from pipeline.codec.symbols import SymbolDecoder, SymbolEncoder
from pipeline.common.machine import usable_cores

PICTURE = Path(__file__).parents[2] / "recipes" / "demo" / "pictures" / "kodak" / "kodim01.webp"
Times = list[tuple[float, float]]


class Part:
    """Adds up wall and CPU seconds inside the method `name` of `owner`."""

    def __init__(self, owner: Any, name: str) -> None:
        self.spent = (0.0, 0.0)
        method = getattr(owner, name)

        def timed(*arguments: object) -> object:
            start = time.perf_counter(), time.process_time()
            try:
                return method(*arguments)
            finally:
                wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
                self.spent = self.spent[0] + wall, self.spent[1] + cpu

        setattr(owner, name, timed)


def show(name: str, work: Callable[[], object], runs: int, parts: dict[str, Part]) -> None:
    """Print a row for `work`, after one run to warm up, and one for each of its parts."""
    work()
    whole: Times = []
    inside: dict[str, Times] = {part: [] for part in parts}
    for _ in range(runs):
        for part in parts.values():
            part.spent = (0.0, 0.0)
        start = time.perf_counter(), time.process_time()
        work()
        whole.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        for label, part in parts.items():
            inside[label].append(part.spent)
    _row(name, whole)
    for label, times in inside.items():
        _row(f"of it {label}", times)


def _row(name: str, times: Times) -> None:
    cells = []
    for values in zip(*times, strict=True):
        low, middle, high = (1e3 * f(values) for f in (min, statistics.median, max))
        cells.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
    print(f"| {name} | {' | '.join(cells)} |")


def without_torch(picture: Picture, runs: int) -> bytes:
    """Measure the form without torch; return the stream."""
    model = light_model(box_model())
    if model is None:
        raise SystemExit("the model in the package has no form without torch")
    x, header, side = picture.array(), picture.header(), picture.side()
    networks: Any = model.networks
    coding = {"encode": Part(SymbolEncoder, "encode"), "decode": Part(SymbolDecoder, "decode")}
    exact = {name: Part(networks.coder, name) for name in coding}
    data = model.compress(x, header, side)
    for name, work in (
        ("encode", lambda: model.compress(x, header, side)),
        ("decode", lambda: model.decompress(read_stream(data))),
    ):
        parts = {"exact networks and entropy coding": exact[name], "coding alone": coding[name]}
        show(f"{name}, without torch", work, runs, parts)
    return data


def with_torch(picture: Picture, data: bytes, runs: int) -> None:
    """Measure the form with torch, which decodes the stream of the other form, too."""
    import torch

    from pipeline.codec import load_model

    model, x = load_model(box_model()), picture.x
    print(f"| torch {torch.__version__}, {torch.get_num_threads()} threads | | |")
    show("encode, with torch", lambda: model.compress(x), runs, {})
    show("decode, with torch", lambda: model.decompress(data), runs, {})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    picture = read_picture(options.picture)
    height, width = picture.size
    print(
        f"{platform.processor() or platform.machine()}, {usable_cores()} cores, load of the last "
        f"minute {os.getloadavg()[0]:.1f}; {options.picture.name}, {width} x {height}, "
        f"median (range) of {options.runs} runs\n"
    )
    print("| what | wall, ms | CPU, ms |\n| --- | --- | --- |")
    with_torch(picture, without_torch(picture, options.runs), options.runs)


if __name__ == "__main__":
    main()
