"""Picks torch's device by name, and tells one that is not here from one whose memory is full."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import RunError, UsageError

if TYPE_CHECKING:
    import torch

FULL = ("out of memory", "can't allocate memory", "not enough memory")


def pick_device(name: str) -> torch.device:
    """Return the device called `name`: auto (the GPU where there is one), cpu, cuda, cuda:1, ...

    Raises:
        UsageError: there is no such device here.
        RunError: it is here, and its memory is full.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise UsageError("device 'meta' computes nothing: give auto, cpu, cuda or cuda:N")
        if device.type == "cpu" and device.index:
            # torch takes any number, and computes on the one processor that there is.
            raise UsageError(f"no device {name!r} here: all cores together are cpu")
        with memory_needed(name):
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if isinstance(error, RunError):
            raise
        words = str(error).splitlines()[0]
        raise UsageError(f"no device {name!r} here: {words}") from error
    return device


def kind_of(name: str) -> str:
    """Return the type of the device called `name`, "cpu" or "cuda", without torch where it can.

    Raises:
        UsageError: there is no such device here.
        RunError: it is here, and its memory is full.
    """
    if name == "cpu" or (name == "auto" and _has_no_gpu()):
        return "cpu"
    return pick_device(name).type


def _has_no_gpu() -> bool:
    """Return whether Linux shows no device of a GPU's driver: NVIDIA's, AMD's, or Windows'."""
    names = ("nvidiactl", "nvhost-gpu", "nvgpu", "nvmap", "kfd", "dxg")
    return sys.platform == "linux" and not any(Path("/dev", one).exists() for one in names)


@contextmanager
def memory_needed(device: object) -> Iterator[None]:
    """Turn an out-of-memory error of torch inside the block into a sentence about `device`.

    Raises:
        RunError: the memory of `device` is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"the memory of device {str(device)!r} is full: end what else uses it, or take "
            "another device"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that a device, or this machine, has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)
