"""What the codec costs: `python -m tests.benchmarks.codec [PICTURE] [--size tiny] [--compile]`.

Prints CPU time of one thread (it hardly depends on what else runs), median and spread over the
runs: entropy coding alone, a process's start with and without torch, a checkpoint's writing, and a
whole picture split into networks and entropy coding, with the share of the exact ones. "Plain" are
the same networks as torch runs them by itself: float32, channels first, sums in any order; without
entropy coding, so a codec that does not care for exactness takes longer than that.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.codec import CCAConfig, CCAModel, start_as_pyramid
from pipeline.codec.architectures.cca.coder import CCACoder
from pipeline.codec.calibrating import calibrate
from pipeline.codec.coding import pad
from pipeline.codec.picture import read_picture
from pipeline.codec.symbols import (
    SCALE_STEPS,
    SymbolDecoder,
    SymbolEncoder,
    gaussian_tables,
    scale_index,
)
from pipeline.common.digests import file_sha256
from recipes.training.tensor_file import write_tensors

PICTURE = Path(__file__).parents[2] / "recipes" / "demo" / "pictures" / "kodak"


def measure(work: Callable[[], object], runs: int) -> list[float]:
    """Return the CPU seconds of each of `runs` runs, after one to warm up."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return times


def row(name: str, times: list[float], scale: float = 1e3, unit: str = "ms") -> None:
    """Print median and range."""
    low, middle, high = min(times), statistics.median(times), max(times)
    print(f"| {name} | {scale * middle:.1f} | {scale * low:.1f} to {scale * high:.1f} | {unit} |")


def entropy_coding(runs: int, count: int = 500_000) -> None:
    """Symbols per second, scale quantisation, sorting and copies included."""
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(-0.5, 1.2, count)).clip(0.11, 200)
    symbols = np.rint(rng.normal(0, scales)).astype(np.int32)
    tables, levels = gaussian_tables(), torch.from_numpy(scale_index())
    steps = torch.from_numpy(scales)

    def index() -> np.ndarray:
        scaled = (steps * SCALE_STEPS).clamp_(0, len(levels) - 1)
        return levels[scaled.to(torch.int32)].numpy()

    def encode() -> np.ndarray:
        encoder = SymbolEncoder()
        encoder.encode(symbols, index(), tables)
        return encoder.words

    words = encode()
    for name, work in (
        ("encode", encode),
        ("decode", lambda: SymbolDecoder(words).decode(index(), tables)),
    ):
        rates = [count / seconds / 1e6 for seconds in measure(work, runs)]
        row(f"entropy coding, {name}", rates, 1, "million symbols/s")


class _Timed:
    """Adds up the CPU time inside the coder's calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, owner: type, name: str) -> None:
        method = getattr(owner, name)

        def timed(*arguments: object) -> object:
            start = time.process_time()
            try:
                return method(*arguments)
            finally:
                self.seconds += time.process_time() - start

        setattr(owner, name, timed)


def networks(
    config: CCAConfig, picture: Path, runs: int, compiled: bool, crop: int | None = None
) -> None:
    """One picture, or `crop` pixels of its sides, through each part of the codec."""
    torch.manual_seed(0)
    model = CCAModel(config).eval()
    start_as_pyramid(model)
    x = pad(read_picture(picture).x[:, :, :crop, :crop], 64)
    print(f"| picture {picture.name}, {x.shape[3]} x {x.shape[2]} | | | |")
    with torch.no_grad():
        # Without instructions for it, bfloat16 takes many times as long.
        quick = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        for dtype in (torch.float32, torch.bfloat16) if quick else (torch.float32,):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                label = str(dtype).removeprefix("torch.")
                analysis = measure(lambda: model.analysis(x), runs)
                row(f"analysis, {label}", analysis)
                y = model.analysis(x).float()
                synthesis = measure(partial(model.synthesis, y), runs)
                row(f"synthesis, {label}", synthesis)
                if dtype == torch.float32:
                    transforms = {"encode": analysis, "decode": synthesis}
        if compiled:
            for name, part, given in (
                ("analysis", model.analysis, x),
                ("synthesis", model.synthesis, y),
            ):
                fast = torch.compile(part, dynamic=False)
                row(f"{name}, float32, compiled", measure(partial(fast, given), runs))
        z = model.hyper_analysis(y)
        symbols, hyper = _Timed(), _Timed()
        symbols.wrap(SymbolEncoder, "encode")
        symbols.wrap(SymbolDecoder, "decode")
        hyper.wrap(CCACoder, "analyse_y")
        timers = symbols, hyper
        _coders(model, "float64", y, z.shape[2:], transforms, timers, runs)
        calibrate(model, [x[:, :, :256, :256]])
        ours = _coders(model, "float32", y, z.shape[2:], transforms, timers, runs)
        for name, work in _plain(model, x.contiguous(), y.contiguous()).items():
            times = measure(work, runs)
            row(f"plain networks, {name}", times)
            ratios = [a / b for a, b in zip(times, ours[name], strict=True)]
            row(f"plain / exact in float32, whole {name}", ratios, 1, "times")


def _plain(model: CCAModel, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], object]]:
    """All networks of encoding the picture x, and of decoding its latent y."""
    parts = torch.split(y, list(model.context.sizes), dim=1)
    z = model.hyper_analysis(y).contiguous()

    def predict() -> None:
        model.context(model.hyper(z.round()), lambda i, mean, _: (parts[i] - mean).round() + mean)

    def encode() -> None:
        model.hyper_analysis(model.analysis(x))
        predict()

    def decode() -> None:
        predict()
        model.synthesis(y)

    return {"encode": encode, "decode": decode}


def _coders(
    model: CCAModel,
    label: str,
    y: torch.Tensor,
    size: torch.Size,
    transforms: dict[str, list[float]],
    timers: tuple[_Timed, _Timed],
    runs: int,
) -> dict[str, list[float]]:
    """The exact networks and entropy coding, and their share of encoding and of decoding.

    `timers` are those of entropy coding and of the hyper-analysis, which only the encoder runs: it
    is no exact network. Returns the seconds of the whole.
    """
    coder, whole = model.make_coder(), {}
    words = coder.encode(y).words
    for name, work in (
        ("encode", lambda: coder.encode(y)),
        ("decode", lambda: coder.decode(words, *size)),
    ):
        inside: list[tuple[float, ...]] = []

        def both(
            work: Callable[[], object] = work, inside: list[tuple[float, ...]] = inside
        ) -> None:
            for timer in timers:
                timer.seconds = 0.0
            work()
            inside.append(tuple(timer.seconds for timer in timers))

        all_of_it = measure(both, runs)
        symbols, hyper = zip(*inside[1:], strict=True)
        coding = [a - h for a, h in zip(all_of_it, hyper, strict=True)]
        row(f"exact networks in {label} and entropy coding, {name}", coding)
        whole[name] = [a + t for a, t in zip(all_of_it, transforms[name], strict=True)]
        share = [c / total for c, total in zip(coding, whole[name], strict=True)]
        row(f"their share, {name}", share, 100, "%")
        row(f"of it entropy coding, {name}", list(symbols))
    return whole


def starts(runs: int) -> None:
    """CPU time of a process that decodes nothing: its imports and the shipped model."""
    light = "from pipeline.codec.light import model_for; assert model_for(box_model())"
    whole = "from pipeline.codec import load_model; load_model(box_model()).coder()"
    times: dict[str, list[float]] = {"without torch": [], "with torch": []}
    for _ in range(runs):
        for name, program in zip(times, (light, whole), strict=True):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            program = f"from pipeline.codec.box import box_model; {program}"
            subprocess.run([sys.executable, "-c", program], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    for name, seconds in times.items():
        row(f"start with the shipped model, {name}", seconds)
    pairs = zip(times["with torch"], times["without torch"], strict=True)
    row("start, with torch / without", [slow / quick for slow, quick in pairs], 1, "times")


def checkpoints(runs: int, megabytes: int = 256) -> None:
    """Wall-clock time of writing tensors and their digest, against reading them again for it."""
    tensors = {f"w{i}": torch.randn(1024, 1024) for i in range(megabytes // 4)}
    ratios = []
    with TemporaryDirectory() as folder:
        for number in range(runs):
            start = time.perf_counter()
            save_file(tensors, Path(folder) / f"again-{number}")
            file_sha256(Path(folder) / f"again-{number}")
            middle = time.perf_counter()
            write_tensors(Path(folder) / f"once-{number}", tensors)
            ratios.append((middle - start) / (time.perf_counter() - middle))
    row("checkpoint, hashed afterwards / meanwhile", ratios, 1, "times")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path)
    parser.add_argument("--size", choices=["paper", "tiny"], default="paper")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--crop", type=int, help="only so many pixels of the picture's sides")
    parser.add_argument("--only-networks", action="store_true", help="no starts, no checkpoints")
    parser.add_argument("--compile", action="store_true", help="transforms compiled too (minutes)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    picture = options.picture or sorted(PICTURE.iterdir())[0]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, "
          f"{options.runs} runs, size {options.size}")  # fmt: skip
    print("| what | median | range | unit |\n| --- | --- | --- | --- |")
    print(f"| load of the last minute | {os.getloadavg()[0]:.1f} | | |")
    if not options.only_networks:
        entropy_coding(options.runs)
        starts(options.runs)
        checkpoints(options.runs)
    config = CCAConfig() if options.size == "paper" else CCAConfig.tiny()
    networks(config, picture, options.runs, options.compile, options.crop)


if __name__ == "__main__":
    main()
