"""The forms of pictures during operations: numpy arrays on a CPU, or tensors on a device.

Version 2 keeps 8-bit samples: an array (H, W, 3) here, a tensor (1, 3, H, W) on a device. One of
Kornia's operations makes a float32 tensor (1, 3, H, W) in [0, 1] of them, which stays one until the
samples must be whole numbers again. Version 1 has such floats from the start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.augment.resampling import Pixels, Scaling, resized, resized_together

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Device:
    """Tensors on one of torch's devices."""

    cuts_first = True  # a crop of a resized picture is made of the samples that it needs
    device: torch.device | None  # None: torch may not be needed at all

    def __init__(self, device: str) -> None:
        import torch

        self.device = torch.device(device)

    def load(self, pixels: Pixels) -> Any:
        """Return a picture's pixels, uint8 (H, W, 3), as they are worked on."""
        import torch

        tensor = torch.from_numpy(np.array(pixels))
        if self.device is not None and self.device.type == "cuda":
            tensor = tensor.pin_memory()  # so that the copy goes on beside the work before
        return tensor.to(self.device, non_blocking=True).permute(2, 0, 1)[None]

    def resized(self, pictures: Sequence[Any], scalings: Sequence[Scaling]) -> list[Any]:
        """Return the pictures resized, each as its `Scaling` says."""
        return list(resized_together([self.whole(one) for one in pictures], scalings))

    def cut(self, pixels: Any, top: int, left: int, side: int) -> Any:
        """Return a square of a picture."""
        return pixels[:, :, top : top + side, left : left + side].contiguous()

    def flipped(self, pixels: Any, across: bool) -> Any:
        """Return a picture with left and right exchanged, or top and bottom."""
        return pixels.flip(-1 if across else -2)

    def green(self, pixels: Any) -> Any:
        """Return the green channel as signed whole numbers (H, W)."""
        return self.whole(pixels)[0, 1].int()

    def floats(self, pixels: Any) -> Tensor:
        """Return a picture as float32 (1, 3, H, W) in [0, 1]."""
        tensor: Tensor = pixels
        return tensor if tensor.is_floating_point() else tensor.float().div(255)

    def whole(self, pixels: Any) -> Tensor:
        """Return a picture as uint8 (1, 3, H, W)."""
        import torch

        tensor: Tensor = pixels
        if not tensor.is_floating_point():
            return tensor
        return tensor.mul(255).round().clamp(0, 255).to(torch.uint8)

    def to_bytes(self, pixels: Any) -> Pixels:
        """Return a picture as it is written: an array, uint8 (H, W, 3)."""
        array = self.whole(pixels)[0].permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(array)


class Floats(Device):
    """Version 1: floats from the start, resized by Kornia's blur and bilinear interpolation."""

    cuts_first = False

    def load(self, pixels: Pixels) -> Any:
        """Return a picture as float32 (1, 3, H, W) in [0, 1]."""
        return super().load(pixels).float().div(255)

    def resized(self, pictures: Sequence[Any], scalings: Sequence[Scaling]) -> list[Any]:
        """Return the pictures resized, those of equal sizes together."""
        import torch
        from kornia.geometry.transform import resize

        groups: dict[Any, list[int]] = defaultdict(list)
        for number, one in enumerate(scalings):
            groups[one.before, one.after].append(number)
        done: dict[int, Any] = {}
        for (_, after), group in groups.items():
            together = torch.cat([pictures[number] for number in group])
            small = resize(together, after, interpolation="bilinear", antialias=True).clamp(0, 1)
            done |= {number: small[n : n + 1] for n, number in enumerate(group)}
        return [done[number] for number in range(len(pictures))]


class Host(Device):
    """Arrays on this processor, where Kornia has not made tensors of them. Imports no torch."""

    def __init__(self) -> None:
        self.device = None

    def load(self, pixels: Pixels) -> Any:
        """Return the array itself."""
        return pixels

    def resized(self, pictures: Sequence[Any], scalings: Sequence[Scaling]) -> list[Any]:
        """Return the pictures resized by Pillow."""
        arrays = [self.to_bytes(one) for one in pictures]
        return [resized(one, how) for one, how in zip(arrays, scalings, strict=True)]

    def cut(self, pixels: Any, top: int, left: int, side: int) -> Any:
        """Return a square of a picture."""
        if isinstance(pixels, np.ndarray):
            return pixels[top : top + side, left : left + side]
        return super().cut(pixels, top, left, side)

    def flipped(self, pixels: Any, across: bool) -> Any:
        """Return a picture with left and right exchanged, or top and bottom."""
        if isinstance(pixels, np.ndarray):
            if not across:
                return pixels[::-1]
            turned = np.empty_like(pixels)
            for channel in range(pixels.shape[2]):  # five times as fast as all at once
                turned[:, :, channel] = pixels[:, ::-1, channel]
            return turned
        return super().flipped(pixels, across)

    def green(self, pixels: Any) -> Any:
        """Return the green channel as signed whole numbers (H, W)."""
        return self.to_bytes(pixels)[:, :, 1].astype(np.int32)

    def floats(self, pixels: Any) -> Tensor:
        """Return a picture as float32 (1, 3, H, W) in [0, 1]."""
        if isinstance(pixels, np.ndarray):
            import torch

            pixels = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
        return super().floats(pixels)

    def to_bytes(self, pixels: Any) -> Pixels:
        """Return a picture as it is written: an array, uint8 (H, W, 3)."""
        return pixels if isinstance(pixels, np.ndarray) else super().to_bytes(pixels)


def surface_for(version: int, device: str) -> Device:
    """Return where pictures are worked on by a version's definitions on torch's `device`."""
    if version == 1:
        return Floats(device)
    return Host() if device == "cpu" else Device(device)
