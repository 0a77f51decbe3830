"""Picture to latent and back.

To be cheap, no layer works at more than 1/8 of the picture's resolution: the first layer turns
8 x 8 patches into features, the last layer turns features into patches, and the depthwise
convolutions of the blocks in between carry information across the patches' borders.
`start_as_transform` sets the weights for training from scratch.

Shapes: N batch, M latent channels; h = H/16, w = W/16.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.architectures.small.blocks import GatedBlock, Pointwise, spread
from pipeline.codec.architectures.small.config import PATCH, SmallConfig
from pipeline.codec.architectures.small.rates import Rate

# The latent is in units of a tenth of the picture's range; weights are about orthonormal.
UNIT = 10.0


def _blocks(width: int, count: int, inner: int, rates: int) -> nn.ModuleList:
    return nn.ModuleList(GatedBlock(width, inner, rates) for _ in range(count))


class Analysis(nn.Module):
    """g_a: (N, 3, H, W) -> (N, M, h, w), for H and W multiples of 16."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        rates = config.vectors
        self.embed = nn.Conv2d(3, config.width, PATCH, stride=PATCH)
        self.blocks = _blocks(config.width, config.blocks, config.inner_width, rates)
        self.down = nn.Conv2d(config.width, config.latent_channels, 2, stride=2)
        self.latent_blocks = _blocks(
            config.latent_channels, config.latent_blocks, config.latent_inner_width, rates
        )

    def forward(self, x: Tensor, rate: Rate) -> Tensor:
        """Return the latent y of pictures in [0, 1]."""
        x = self.embed((x - 0.5) * UNIT)
        for block in self.blocks:
            x = block(x, rate)
        x = self.down(x)
        for block in self.latent_blocks:
            x = block(x, rate)
        return x


class Synthesis(nn.Module):
    """g_s, the mirror image: (N, M, h, w) -> (N, 3, H, W), not clamped."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        rates = config.vectors
        self.latent_blocks = _blocks(
            config.latent_channels, config.latent_blocks, config.latent_inner_width, rates
        )
        self.up = Pointwise(config.latent_channels, 4 * config.width)
        self.blocks = _blocks(config.width, config.blocks, config.inner_width, rates)
        self.last = Pointwise(config.width, 3 * PATCH**2)

    def forward(self, y_hat: Tensor, rate: Rate) -> Tensor:
        """Return pictures, about [0, 1]."""
        for block in self.latent_blocks:
            y_hat = block(y_hat, rate)
        x = spread(self.up(y_hat), 2)
        for block in self.blocks:
            x = block(x, rate)
        return F.pixel_shuffle(self.last(x), PATCH) / UNIT + 0.5
