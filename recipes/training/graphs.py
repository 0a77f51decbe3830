"""A training step as CUDA graphs: its kernels are launched by the device, not one by one.

An eager step at the published size is some 15,000 kernels; with eight crops, launching them takes
longer than running them. Here two graphs are replayed: a pass (forward, loss and backward; once for
each part of an accumulated batch) and the optimizer's step. What they read and write stays where it
is in memory. Nothing waits for the device before both are launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.codec import Noise
from recipes.training.losses import Weights
from recipes.training.module import METRICS, TrainingModule
from recipes.training.noise import draw_noise, draw_rates
from recipes.training.optim import GuardedAdam
from recipes.training.steps import BeforeChange, Metrics, Piece, Reduce, checked, nothing

# Passes before a capture, which make workspaces and compiled code at their first use.
_WARM_UP = 3


class _Place:
    """Static memory for pieces of one shape; `replays`: the graphs that read it."""

    def __init__(self, module: TrainingModule, like: Piece) -> None:
        run, config, device = module.run, module.model.config, like.x.device
        pictures, crop = len(like.x), like.x.shape[-1]
        layout = torch.channels_last if run.speed.channels_last else torch.contiguous_format
        self.x = torch.zeros(like.x.shape, device=device).contiguous(memory_format=layout)
        self.noise: Noise = draw_noise(config, crop, range(pictures), device)
        self.weights = Weights(*(torch.ones(pictures, device=device) for _ in fields(Weights)))
        self.rates = draw_rates(config, range(pictures), device)
        self.replays: tuple[Callable[[], None], ...] = ()

    def take(self, piece: Piece) -> None:
        """Copy a piece here."""
        self.x.copy_(piece.x)
        for name, tensor in self.noise.items():
            tensor.copy_(piece.noise[name])
        for name, tensor in vars(self.weights).items():
            value = getattr(piece.weights, name)
            tensor.copy_(value) if isinstance(value, Tensor) else tensor.fill_(value)
        if self.rates is not None and piece.rates is not None:
            self.rates.copy_(piece.rates)


class Replayed:
    """The steps of a run as graphs, of `parts` passes a step.

    On a CPU the same work is done without graphs. Every process steps by the mean of their
    gradients. The graphs are recorded at the first step that has crops of a shape: from then on
    the tensors of `module` and `optimizer` may change, but not move.
    """

    def __init__(self, module: TrainingModule, optimizer: GuardedAdam, parts: int) -> None:
        """Give all processes the weights of the first one."""
        self.wrapped, self.optimizer, self.parts = module, optimizer, parts
        self.device = next(module.parameters()).device
        self._places: dict[tuple[int, ...], _Place] = {}
        self._totals = torch.zeros(len(METRICS), device=self.device)
        self._gradient = flat_gradient(module)
        self._unrecorded = False
        if _together() > 1:
            _share(module)

    def step(
        self, pieces: Iterable[Piece], reduce: Reduce, before_change: BeforeChange = nothing
    ) -> Metrics:
        """Do a step over `pieces`; see `recipes.training.steps.Eager.step`."""
        vector = self.launch(pieces, reduce, before_change)
        self.optimizer.check()
        return checked(vector)

    def launch(
        self, pieces: Iterable[Piece], reduce: Reduce, before_change: BeforeChange = nothing
    ) -> Tensor:
        """Launch a step over `pieces` and return what `reduce` made of its metrics.

        Nobody has looked then whether the step was taken: `GuardedAdam.check` does.
        """
        # All of them first: what is copied to the device waits for the work that it has.
        pieces = list(pieces)
        place = self._place(pieces[0])
        if not place.replays:
            before_change()
            place.replays = self._record(place)
        one_pass, step = place.replays
        self._gradient.zero_()
        self._totals.zero_()
        for piece in pieces:
            place.take(piece)
            one_pass()
        vector = reduce(self._totals)
        if _together() > 1:
            dist.all_reduce(self._gradient)
            self._gradient /= _together()
        self.optimizer.loss.copy_(vector[METRICS.index("loss")])
        before_change()
        step()
        return vector

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Do steps without graphs, so that what they do can be seen and counted."""
        kept, self._unrecorded = self._unrecorded, True
        try:
            yield
        finally:
            self._unrecorded = kept

    def _place(self, piece: Piece) -> _Place:
        """Return the memory that pieces of this shape are copied to."""
        if self._unrecorded:
            return _Place(self.wrapped, piece)
        shape = tuple(piece.x.shape)
        if shape not in self._places:
            self._places[shape] = _Place(self.wrapped, piece)
        return self._places[shape]

    def _do_pass(self, place: _Place) -> None:
        loss, metrics = self.wrapped(place.x, place.noise, place.weights, place.rates)
        (loss / self.parts).backward()
        self._totals += metrics / self.parts

    def _record(self, place: _Place) -> tuple[Callable[[], None], ...]:
        """Return the replays of a pass and of a step; recording changes no state."""
        works = (partial(self._do_pass, place), self.optimizer.step)
        if self._unrecorded or self.device.type != "cuda":
            return works
        # One for warming up and recording: workspaces belong to a stream, and none may be shared
        # with graphs that are replayed at the same time. torch has no types for it.
        stream = torch.cuda.Stream()
        with self.optimizer.closed():
            _warm_up(works, stream)
            pool = torch.cuda.graph_pool_handle()
            replays = tuple(_capture(work, pool, stream) for work in works)
        torch.cuda.empty_cache()
        return replays


def flat_gradient(module: torch.nn.Module) -> Tensor:
    """Give all trained parameters of `module` gradients that lie in one tensor; return it."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    flat = trained[0].new_zeros(sum(parameter.numel() for parameter in trained))
    start = 0
    for parameter in trained:
        # In the parameter's layout, which a fused step takes for granted.
        parameter.grad = flat.as_strided(parameter.shape, parameter.stride(), start)
        start += parameter.numel()
    return flat


def _together() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def _share(module: torch.nn.Module) -> None:
    """Give all processes the parameters of the first one."""
    parameters = list(module.parameters())
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
    dist.broadcast(flat, 0)
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view(parameter.shape))


def _warm_up(works: Iterable[Callable[[], None]], stream: Any) -> None:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            for work in works:
                work()
    torch.cuda.current_stream().wait_stream(stream)


def _capture(work: Callable[[], None], pool: Any, stream: Any) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    # Other threads, which load the next batch, may go on using the device.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph.replay
