"""Augmentation on the device, every draw a function of (seed, epoch, position).

Legend: B pictures, S' side of the crops that arrive, S side of those that leave, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.common.addresses import hash_words
from shards.errors import ShardsError
from shards.purposes import AUGMENT


@dataclass(frozen=True)
class Augment:
    """Crop, downscale, flip and colour changes, in this order. Each picture has its own draws.

    A picture's result does not depend on the others in its batch, nor on ranks.

    Attributes:
        crop: S, the side of the results in pixels; that of the input, S', must be at least
            S / downscale.
        downscale: the smallest scale; one is drawn uniformly from [downscale, 1] and antialiased.
            It removes the artefacts of earlier compression. A picture with a side below S / scale
            is scaled by less, so that no mirrored edge comes in. 1: no downscaling.
        flip: the probability of mirroring left to right.
        colour: brightness, contrast and saturation are each multiplied by a factor drawn uniformly
            from [1 - colour, 1 + colour], and hue turned by up to colour / 10 of a circle. 0: no
            change.
    """

    crop: int
    downscale: float = 1.0
    flip: float = 0.5
    colour: float = 0.0

    def __post_init__(self) -> None:
        checks = (
            (self.crop >= 1, f"crop is {self.crop}: give 1 or more"),
            (0 < self.downscale <= 1, f"downscale is {self.downscale}: give a scale in (0, 1]"),
            (0 <= self.flip <= 1, f"flip is {self.flip}: give a probability in [0, 1]"),
            (0 <= self.colour < 1, f"colour is {self.colour}: give a strength in [0, 1)"),
        )
        for good, problem in checks:
            if not good:
                raise ShardsError(problem)

    def needed(self) -> int:
        """Return the smallest S', in pixels."""
        return max(self._side(self.downscale), self.crop)

    def __call__(
        self,
        images: Tensor,
        seed: int,
        epoch: int,
        positions: Sequence[int],
        extents: Sequence[tuple[int, int]] = (),
    ) -> Tensor:
        """Return the pictures at `positions` of `epoch` augmented, float32 (B, 3, S, S) in [0, 1].

        Args:
            images: uint8 (B, 3, S', S') on any device.
            seed: the stream's.
            epoch: the epoch that the positions count in.
            positions: B positions.
            extents: height and width of what is not mirrored in each, as `Batch` has them; by
                default all of it.
        """
        keys = [hash_words(seed, epoch, position, AUGMENT) for position in positions]
        extents = extents or [(images.shape[-2], images.shape[-1])] * len(positions)
        cut = [self._cut(*one) for one in zip(images, keys, extents, strict=True)]
        out = torch.stack(cut)
        return self._colours(out, keys) if self.colour else out

    def _cut(self, image: Tensor, key: int, extent: tuple[int, int]) -> Tensor:
        """Return one picture cropped, downscaled and flipped: (3, S', S') to (3, S, S)."""
        side = self._side(self.downscale + _uniform(key, 0) * (1 - self.downscale))
        side = min(side, max(min(extent), self.crop))
        top, left = (
            hash_words(key, draw) % (max(size, side) - side + 1)
            for draw, size in zip((1, 2), extent, strict=True)
        )
        part = image[:, top : top + side, left : left + side].to(torch.float32) / 255
        if side != self.crop:
            size = (self.crop, self.crop)
            # Six times as fast as Kornia's antialiased resize, which blurs first.
            part = interpolate(part[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        return part.flip(-1) if _uniform(key, 3) < self.flip else part

    def _colours(self, images: Tensor, keys: list[int]) -> Tensor:
        from kornia import enhance

        def factors(draw: int, strength: float) -> Tensor:
            drawn = [(2 * _uniform(key, draw) - 1) * strength for key in keys]
            return torch.tensor(drawn, dtype=torch.float32).to(images.device)

        images = enhance.adjust_brightness_accumulative(images, 1 + factors(4, self.colour))
        images = enhance.adjust_contrast_with_mean_subtraction(images, 1 + factors(5, self.colour))
        images = enhance.adjust_saturation(images, 1 + factors(6, self.colour))
        images = enhance.adjust_hue(images, 2 * torch.pi * factors(7, self.colour / 10))
        return images.clamp(0, 1)

    def _side(self, scale: float) -> int:
        """Return the side of the part that becomes the crop at `scale`."""
        return round(self.crop / scale)


def _uniform(key: int, draw: int) -> float:
    """Return a number in [0, 1) for a draw of a key."""
    return (hash_words(key, draw) >> 11) / (1 << 53)
