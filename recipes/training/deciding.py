"""Decides what a recipe leaves to the machine: precision, compiling, CUDA graphs (`speed: auto`).

Each falls back, with a sentence, where a machine or a launch can't do it. The precision decides
numbers, so a run keeps to the one it began with, wherever it goes on.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from recipes.config.optimizing import OF_MATRICES
from recipes.config.schema import Run
from recipes.config.settings import AUTO
from recipes.launching import processes as launch

log = logging.getLogger(__name__)

# How much faster bf16 must be on a CPU to be worth what it costs.
WORTH = 1.1
# Times each precision is tried on a CPU, in turns; the first time of each does not count.
_TRIES = 5


def decided(run: Run, accelerator: Any, begun: Mapping[str, Any] | None) -> Run:
    """Return `run` with all of its `speed` decided, and report the choices.

    `begun` is what the checkpoint that it goes on from depends on, if there is one. All processes
    call this together.
    """
    speed = run.speed
    if not speed.undecided:
        return run
    reasons: list[str] = []
    chosen: dict[str, Any] = {}
    if speed.precision == AUTO:
        chosen["precision"], why = _precision(accelerator, begun)
        reasons.append(why)
    if speed.compile == AUTO:
        chosen["compile"] = _allowed("compile", _against_compiling(accelerator.device), reasons)
    if speed.cuda_graphs == AUTO:
        against = _against_graphs(run, accelerator)
        chosen["cuda_graphs"] = _allowed("cuda_graphs", against, reasons)
    if accelerator.is_main_process:
        said = ", ".join(f"{key}={str(value).lower()}" for key, value in chosen.items())
        log.info("%s: speed: %s (%s)", run.id, said, "; ".join(filter(None, reasons)))
    return replace(run, chosen=speed.model_copy(update=chosen))


def _allowed(key: str, against: str | None, reasons: list[str]) -> bool:
    if against is not None:
        reasons.append(f"no {key}: {against}")
    return against is None


def _precision(accelerator: Any, begun: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the precision, and why."""
    before = (begun or {}).get("precision")
    if before in ("fp32", "bf16"):
        return str(before), f"goes on in {before}, as it began"
    if accelerator.device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has bf16"
        return "fp32", "this GPU has no bf16"
    ratio = gain() if accelerator.is_main_process else 0.0
    ratio = launch.from_first(accelerator, ratio)
    return "bf16" if ratio >= WORTH else "fp32", f"bf16 is {ratio:.2f} times as fast here"


def gain() -> float:
    """Return the speed-up of a convolution and its gradients by bf16, on a CPU.

    Both are timed in turns, which takes a moment.
    """
    layer = torch.nn.Conv2d(64, 64, 3, padding=1)
    x = torch.zeros(4, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_TRIES):
        for low, taken in seconds.items():
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                layer(x).float().sum().backward()
            taken.append(time.perf_counter() - start)
    return min(seconds[False][1:]) / min(seconds[True][1:])


def _against_compiling(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it gains little on a CPU"
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton is not there for this GPU"
    compiler = os.environ.get("CC", "cc")
    if not any(shutil.which(name) for name in (compiler, "gcc", "clang")):
        return "Triton needs a C compiler, and there is none"
    return None


def _against_graphs(run: Run, accelerator: Any) -> str | None:
    if accelerator.device.type != "cuda":
        return "there is no GPU"
    if launch.sharded(accelerator):
        return "DeepSpeed moves weights"
    if run.optimizer.name in OF_MATRICES:
        return f"{run.optimizer.name} can't be replayed"
    return None if run.speed.fused else "they need fused"
