"""The context model: each slice's means and scales from the hyper-latent and earlier slices.

Shapes: N batch, M latent channels, C_i channels of slice i; h = H/16, w = W/16.

    hyper mean ---+-> mean support --+-> mean head -> mean_i --.
    hyper scale --|-> scale support -|-> scale head -> scale_i |
    decoded 0..i-1'                  |                         v
                                     +-> residual head <- round(y_i - mean_i) + mean_i
                                                       -> decoded slice i
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.codec.layers import NAFBlock, conv, head
from pipeline.codec.model import HyperOutput

# Given (slice, mean, scale), both (N, C_i, h, w), return the quantised slice: symbols + mean.
Quantise = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ContextOutput:
    """The results of a pass, one per slice: decoded slices, means and raw scales."""

    decoded: list[Tensor]
    means: list[Tensor]
    scales: list[Tensor]


class Support(nn.Module):
    """NAF blocks at the context's width between two 1x1 convolutions; keeps the shape."""

    def __init__(self, inputs: int, config: CCAConfig) -> None:
        super().__init__()
        width = config.context_channels
        self.enter = conv(inputs, width, 1)
        self.blocks = nn.Sequential(*(NAFBlock(width) for _ in range(config.context_blocks)))
        self.leave = conv(width, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to the same shape."""
        h = self.enter(x)
        out: Tensor = self.leave(self.blocks(h) + h)
        return out


class ResidualHead(nn.Module):
    """Latent residual prediction: 0.5 * tanh(head), which estimates the rounding error."""

    def __init__(self, inputs: int, outputs: int, config: CCAConfig) -> None:
        super().__init__()
        self.head = head(inputs, config.head_channels, outputs)
        self.tanh = nn.Tanh()

    def forward(self, support: Tensor, quantised: Tensor) -> Tensor:
        """Return the correction to add to `quantised` (N, C_i, h, w), in (-1/2, 1/2)."""
        out: Tensor = 0.5 * self.tanh(self.head(torch.cat([support, quantised], dim=1)))
        return out


class ContextModel(nn.Module):
    """Supports, heads and residual heads of all slices.

    With `withheld` = 0, slice i sees the decoded slices 0 to i-1. With 1 (the auxiliary model)
    it sees 0 to i-2, and slices that nothing sees have no residual head.
    """

    def __init__(self, config: CCAConfig, withheld: int = 0) -> None:
        super().__init__()
        sizes = config.slice_sizes
        self.sizes, self.withheld = sizes, withheld
        inputs = [config.latent_channels + sum(sizes[: self._seen(i)]) for i in range(len(sizes))]
        refined = len(sizes) if withheld == 0 else len(sizes) - 1 - withheld
        widths = config.head_channels
        self.mean_supports = nn.ModuleList(Support(n, config) for n in inputs)
        self.scale_supports = nn.ModuleList(Support(n, config) for n in inputs)
        self.mean_heads = nn.ModuleList(
            head(n, widths, size) for n, size in zip(inputs, sizes, strict=True)
        )
        self.scale_heads = nn.ModuleList(
            head(n, widths, size) for n, size in zip(inputs, sizes, strict=True)
        )
        self.residual_heads = nn.ModuleList(
            ResidualHead(inputs[i] + sizes[i], sizes[i], config) for i in range(refined)
        )
        # For each slice, the supports of mean and scale as one module, and the heads; see `pair`.
        self.pairs: list[tuple[nn.Module, nn.Module]] | None = None

    def pair(self, make: Callable[[nn.Module, nn.Module], nn.Module | None]) -> None:
        """Run the networks of means and of scales together, if `make` can pair all of them.

        `make` takes two modules and returns one that maps a batch of two, or None.
        """
        supports = map(make, self.mean_supports, self.scale_supports)
        heads = map(make, self.mean_heads, self.scale_heads)
        pairs = [(s, h) for s, h in zip(supports, heads, strict=True) if s and h]
        self.pairs = pairs if len(pairs) == len(self.sizes) else None

    def _seen(self, slice_index: int) -> int:
        return max(0, slice_index - self.withheld)

    def costly_parts(self) -> Iterator[nn.Module]:
        """Yield the supports and heads."""
        yield from (*self.mean_supports, *self.scale_supports)
        yield from (*self.mean_heads, *self.scale_heads, *self.residual_heads)

    def stacks(self) -> Iterator[nn.Module]:
        """Yield the supports' blocks."""
        for support in (*self.mean_supports, *self.scale_supports):
            assert isinstance(support, Support)
            yield support.blocks

    def forward(self, hyper: HyperOutput, quantise: Quantise) -> ContextOutput:
        """Predict the slices in order; `quantise` supplies each slice once it is predicted.

        Training, compression and decompression differ only in `quantise`, so they cannot drift
        apart.
        """
        output = ContextOutput([], [], [])
        for i in range(len(self.sizes)):
            seen = output.decoded[: self._seen(i)]
            mean_support, mean, scale = self._predict(
                i, _join(hyper.mean, seen), _join(hyper.scale, seen)
            )
            quantised = quantise(i, mean, scale)
            output.means.append(mean)
            output.scales.append(scale)
            if i < len(self.residual_heads):
                correction = self.residual_heads[i](mean_support, quantised)
                output.decoded.append(quantised + correction)
        return output

    def _predict(self, i: int, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean's support, the mean and the scale of slice i."""
        if self.pairs is not None and len(means) == 1:
            support, head_ = self.pairs[i]
            both = support(torch.cat([means, scales]))
            mean, scale = head_(both).chunk(2)
            return both[:1], mean, scale
        mean_support = self.mean_supports[i](means)
        scale_support = self.scale_supports[i](scales)
        return mean_support, self.mean_heads[i](mean_support), self.scale_heads[i](scale_support)


def _join(first: Tensor, others: Sequence[Tensor]) -> Tensor:
    return torch.cat([first, *others], dim=1) if others else first
