"""Copies batches to a device ahead of use, while it computes, and augments them there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from shards.streaming.source import Batch

# Batches on the device beside the one in use.
AHEAD = 1


def on_device(
    batches: Iterator[Batch], device: torch.device, change: Callable[[Batch], Tensor] | None = None
) -> Iterator[Batch]:
    """Yield `batches` with their images on `device`, as `change` makes them there.

    On a CUDA device, copying and `change` run on a stream of their own, a batch ahead of use, from
    pinned memory. Elsewhere the same is done in turn.
    """
    side: torch.cuda.Stream | None = None
    if device.type == "cuda":
        # torch gives Stream no types.
        side = torch.cuda.Stream(device)
    sent: deque[tuple[Batch, torch.cuda.Event | None]] = deque()
    for batch in batches:
        sent.append(_send(batch, device, side, change))
        if len(sent) > (AHEAD if side is not None else 0):
            yield _ready(*sent.popleft())
    while sent:
        yield _ready(*sent.popleft())


def _send(
    batch: Batch,
    device: torch.device,
    side: torch.cuda.Stream | None,
    change: Callable[[Batch], Tensor] | None,
) -> tuple[Batch, torch.cuda.Event | None]:
    """Begin a batch's way; the event comes when it has arrived."""
    if side is not None and not batch.images.is_pinned():
        batch = batch.pin_memory()
    with torch.cuda.stream(side) if side is not None else nullcontext():
        batch = replace(batch, images=batch.images.to(device, non_blocking=True))
        if change is not None:
            batch = replace(batch, images=change(batch))
        return batch, side.record_event() if side is not None else None


def _ready(batch: Batch, arrived: torch.cuda.Event | None) -> Batch:
    """Make the current CUDA stream wait for the batch, and own its memory."""
    if arrived is not None:
        here = torch.cuda.current_stream(batch.images.device)
        here.wait_event(arrived)
        batch.images.record_stream(here)
    return batch
