"""Runs the operations of a specification on pictures, batched by size on a device.

Every draw is seeded by (seed, key of the picture, number of the operation), so what becomes of a
picture depends on no other picture, whatever worker or batch it comes in.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import kornia.augmentation
import numpy as np
import torch
from kornia.augmentation import IntensityAugmentationBase2D
from kornia.geometry.transform import resize
from torch import Tensor

from shards.augment.spec import OWN, Operation, Spec
from shards.errors import ShardsError

# Kornia's operations of geometry that are taken: such as keep a picture's size.
GEOMETRIC = ("RandomHorizontalFlip", "RandomVerticalFlip")


@dataclass(frozen=True)
class Picture:
    """A picture on its way: float32 (1, 3, H, W) in [0, 1], and the number of its crop."""

    key: str
    pixels: Tensor
    crop: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[-2]), int(self.pixels.shape[-1])


class Augmenter:
    """Applies a specification to batches of pictures.

    Raises `ShardsError`, naming every operation that there is not or that can't be what was asked.
    """

    def __init__(self, spec: Spec, seed: int, device: str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self._steps = _steps(spec.operations, seed)

    def __call__(
        self, pictures: Iterable[tuple[str, np.ndarray[Any, np.dtype[np.uint8]]]]
    ) -> dict[str, list[np.ndarray[Any, np.dtype[np.uint8]]]]:
        """Return, by key, the results of each picture (uint8 (H, W, 3)); none: it is too small."""
        batch = [Picture(key, self._to_device(pixels)) for key, pixels in pictures]
        results: dict[str, list[np.ndarray[Any, np.dtype[np.uint8]]]] = {
            one.key: [] for one in batch
        }
        with torch.inference_mode():
            for step in self._steps:
                batch = step(batch)
            for one in sorted(batch, key=lambda one: (one.key, one.crop)):
                results[one.key].append(_to_bytes(one.pixels))
        return results

    def _to_device(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
        tensor = torch.from_numpy(np.array(pixels)).to(self.device)
        return tensor.permute(2, 0, 1)[None].float().div(255)


@dataclass(frozen=True)
class _Draws:
    """Seeds of one operation's draws."""

    seed: int
    number: int

    def seed_of(self, one: Picture) -> int:
        text = f"{self.seed} {self.number} {one.crop} {one.key}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def of(self, one: Picture) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(self.seed_of(one)))


Step = Callable[[Sequence[Picture]], list[Picture]]


def _steps(operations: Sequence[Operation], seed: int) -> list[Step]:
    steps, mistakes = [], []
    for number, one in enumerate(operations):
        try:
            steps.append(STEPS.get(one.name, _kornia_step)(one, _Draws(seed, number)))
        except ShardsError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ShardsError("; ".join(mistakes))
    return steps


def _resize_step(operation: Operation, draws: _Draws) -> Step:
    side = operation.parameters["shorter"]
    return lambda batch: _resized(batch, lambda one: _shorter(one.size, side))


def _downscale_step(operation: Operation, draws: _Draws) -> Step:
    low, high = operation.parameters["scale"]
    least = operation.parameters.get("min_side", 1)

    def target(one: Picture) -> tuple[int, int]:
        scale = draws.of(one).uniform(low, high)
        scale = min(max(scale, least / min(one.size)), 1.0)
        return round(one.size[0] * scale), round(one.size[1] * scale)

    return lambda batch: _resized(batch, target)


def _crop_step(operation: Operation, draws: _Draws) -> Step:
    side, count = operation.parameters["size"], operation.parameters.get("count", 1)
    return lambda batch: [cut for one in batch for cut in _cuts(one, side, count, draws)]


# Our own operations, those of `OWN`.
STEPS: dict[str, Callable[[Operation, _Draws], Step]] = {
    "Resize": _resize_step,
    "RandomDownscale": _downscale_step,
    "RandomCrop": _crop_step,
}


def _resized(
    batch: Sequence[Picture], target: Callable[[Picture], tuple[int, int]]
) -> list[Picture]:
    """Return the pictures resized with antialiasing, those of equal sizes together."""
    groups = _grouped(batch, lambda one: (one.size, target(one)))
    done = []
    for (before, after), group in groups.items():
        if before == after:
            done += group
            continue
        pixels = torch.cat([one.pixels for one in group])
        small = resize(pixels, after, interpolation="bilinear", antialias=True)
        done += _apart(group, small.clamp(0, 1))
    return done


def _cuts(one: Picture, side: int, count: int, draws: _Draws) -> list[Picture]:
    """Return `count` squares cut at random places; none where the picture is smaller."""
    height, width = one.size
    if min(height, width) < side:
        return []
    random = draws.of(one)
    cuts = []
    for number in range(count):
        top = int(random.integers(0, height - side + 1))
        left = int(random.integers(0, width - side + 1))
        pixels = one.pixels[:, :, top : top + side, left : left + side].contiguous()
        cuts.append(Picture(one.key, pixels, one.crop * count + number))
    return cuts


def _kornia_step(operation: Operation, draws: _Draws) -> Step:
    """Return one of Kornia's augmentations as a step.

    Raises:
        ShardsError: Kornia has none of that name that keeps sizes, or refuses its parameters.
    """
    kind: Any = getattr(kornia.augmentation, operation.name, None)
    given = dict(operation.parameters)
    chance = given.pop("p", 0.5)
    fits = isinstance(kind, type) and (
        operation.name in GEOMETRIC or issubclass(kind, IntensityAugmentationBase2D)
    )
    if not fits:
        raise ShardsError(
            f"operation {operation.name} is neither {', '.join((*OWN, *GEOMETRIC))}, "
            "nor one of Kornia's augmentations of intensity and colour"
        )
    if not (isinstance(chance, int | float) and 0 <= chance <= 1):
        raise ShardsError(f"operation {operation.name}: p is {chance!r}, no probability in [0, 1]")
    try:
        augmentation: Any = kind(**given, p=1.0)
    except Exception as error:
        raise ShardsError(failed(operation.name, error)) from error
    _tried(augmentation, operation.name, draws)

    def step(batch: Sequence[Picture]) -> list[Picture]:
        return [
            _alone(augmentation, operation.name, one, draws)
            if draws.of(one).random() < chance
            else one
            for one in batch
        ]

    return step


def _alone(augmentation: Any, name: str, one: Picture, draws: _Draws) -> Picture:
    """Return the picture as Kornia's augmentation makes it, in a batch of its own.

    Some augmentations draw for a batch together, some draw while they are applied, and some take
    only one picture. Alone, under a seed of its own, each picture comes out as its key says.

    Raises:
        ShardsError: the augmentation fails.
    """
    try:
        with torch.random.fork_rng(devices=_cuda_of(one.pixels)):
            torch.manual_seed(draws.seed_of(one))
            drawn = augmentation.forward_parameters(one.pixels.shape)
            pixels = augmentation(one.pixels, params=drawn).clamp(0, 1)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ShardsError(failed(name, error)) from error
    if pixels.shape != one.pixels.shape:
        raise ShardsError(f"operation {name}: it changes a picture's size")
    return replace(one, pixels=pixels)


def _tried(augmentation: Any, name: str, draws: _Draws) -> None:
    """Refuse an augmentation that fails, or gives other pixels for the same picture and seed."""
    grey = torch.linspace(0, 1, 3 * 48 * 64).reshape(1, 3, 48, 64)
    one = Picture("tried", grey)
    with torch.inference_mode():
        first, again = (_alone(augmentation, name, one, draws).pixels for _ in range(2))
    if not torch.equal(first, again):
        raise ShardsError(f"operation {name}: it gives other pixels each time")


def _cuda_of(pixels: Tensor) -> list[int]:
    return [pixels.get_device()] if pixels.is_cuda else []


def failed(name: str, error: Exception) -> str:
    """Return the sentence for an operation that fails."""
    words = str(error).partition("\n")[0]
    return f"operation {name}: {words}"


def _grouped(batch: Sequence[Picture], by: Callable[[Picture], Any]) -> dict[Any, list[Picture]]:
    groups: dict[Any, list[Picture]] = defaultdict(list)
    for one in batch:
        groups[by(one)].append(one)
    return groups


def _apart(group: Sequence[Picture], pixels: Tensor) -> list[Picture]:
    return [replace(one, pixels=pixels[n : n + 1]) for n, one in enumerate(group)]


def _shorter(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / min(size)
    return round(size[0] * scale), round(size[1] * scale)


def _to_bytes(pixels: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rounded = pixels[0].mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(1, 2, 0).cpu().numpy())
