"""Sets the scales of the entropy model's layers from pictures (format version 2 of models).

The inputs of each layer are observed while pictures are coded at all of a model's rates. The
layer's scale covers twice the largest of them. Larger inputs are clipped, in the encoder as in the
decoder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec.coding import pad
from pipeline.codec.errors import CodecError
from pipeline.codec.exact import layers_seen
from pipeline.codec.layers import ChannelNorm
from pipeline.codec.model import Model
from pipeline.codec.scales import LARGEST_SUM, Scale

# (inputs of a sum at most, bits of each input with its sign): more bits would make the weights
# coarser. Measured in docs/codec.md.
_BITS = ((32, 13), (128, 12), (1 << 30, 11))
# Bits that a norm's inputs may have. Where float32 would leave fewer, the norm sums in float64.
_NORM_BITS = range(8, 14)
# An input may be this many times as large as the largest one seen.
_ROOM = 2.0
_FINEST, _COARSEST = 30, -30

# Called after each picture with the number of pictures that are done.
Done = Callable[[int], None]


@dataclass(frozen=True)
class Comparison:
    """Bytes of the same latents without and with scales, and the coder's CPU seconds."""

    bytes_before: int
    bytes_after: int
    seconds_before: float
    seconds_after: float

    @property
    def percent(self) -> float:
        """The bytes that the scales cost, in percent; negative if they save bytes."""
        return 100 * (self.bytes_after / self.bytes_before - 1)

    @property
    def times(self) -> float:
        """The coder's speed with scales, as a multiple of its speed without."""
        return self.seconds_before / max(self.seconds_after, 1e-9)


@torch.no_grad()
def calibrate(model: Model, pictures: Sequence[Tensor], done: Done | None = None) -> None:
    """Set the scales of the entropy model's layers from `pictures` (1, 3, H, W).

    The model's fingerprint changes, so it no longer decodes its earlier files. Raises `CodecError`
    when there are no pictures, when none reaches a layer, and when an input is not finite.
    """
    if not pictures:
        raise CodecError("there are no pictures to calibrate the model on")
    model.set_scales({})
    with layers_seen() as layers:
        model.make_coder()
    names = {layer: name for name, layer in model.named_modules() if layer in layers}
    with _largest_inputs(list(names)) as largest:
        for number, picture in enumerate(pictures, 1):
            for rate in _rates(model):
                model(picture, rate=rate)
            if done is not None:
                done(number)
    unused = [name for layer, name in names.items() if layer not in largest]
    if unused:
        raise CodecError(f"no picture reaches the layer {unused[0]}, so it can't be calibrated")
    model.set_scales({name: _scale(layer, largest[layer]) for layer, name in names.items()})


@torch.no_grad()
def compare(
    before: Model, after: Model, pictures: Iterable[Tensor], done: Done | None = None
) -> Comparison:
    """Code the latents of `pictures` (1, 3, H, W) with two models that differ only in scales.

    Models with several rates are compared at the lowest, the middle and the highest rate.
    """
    coders = before.coder(), after.coder()
    sizes, seconds = [0, 0], [0.0, 0.0]
    ends = before.config.rates
    rates = [None] if ends is None else [ends[0], sum(ends) / 2, ends[1]]
    for number, picture in enumerate(pictures, 1):
        for rate in rates:
            y = before.analyse(pad(picture, before.config.unit), rate)
            for i, coder in enumerate(coders):
                start = time.process_time()
                sizes[i] += coder.encode(y, 0, rate).words.nbytes
                seconds[i] += time.process_time() - start
        if done is not None:
            done(number)
    return Comparison(*sizes, *seconds)


def _rates(model: Model) -> list[float | None]:
    ends = model.config.rates
    return [None] if ends is None else [float(i) for i in range(int(ends[1]) + 1)]


def _scale(layer: Any, largest: float) -> Scale:
    norm = isinstance(layer, ChannelNorm)
    bits = _norm_bits(len(layer.weight)) if norm else _bits_of(_inputs(layer))
    whole = Scale(0, bits).largest
    exponent = math.floor(math.log2(whole / (_ROOM * largest))) if largest > 0 else 0
    return Scale(min(max(exponent, _COARSEST), _FINEST), bits)


def _bits_of(inputs: int) -> int:
    return next(bits for most, bits in _BITS if inputs <= most)


def _norm_bits(channels: int) -> int:
    """Return the most bits with which float32 adds up the squares of so many inputs exactly."""
    fit = [bits for bits in _NORM_BITS if channels * Scale(0, bits).largest ** 2 <= LARGEST_SUM]
    return fit[-1] if fit else _NORM_BITS[-1]


def _inputs(layer: Any) -> int:
    """Return the number of inputs of a sum; in a dense convolution, those of one tap."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return int(math.prod(layer.kernel_size) if layer.groups > 1 else layer.in_channels)


@contextmanager
def _largest_inputs(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, float]]:
    """Record the largest absolute input of each of `layers` inside the block."""
    largest: dict[nn.Module, float] = {}

    def see(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        peak = float(inputs[0].abs().max())
        if not math.isfinite(peak):
            raise CodecError("the model computes numbers that are not finite for a picture")
        largest[layer] = max(largest.get(layer, 0.0), peak)

    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
