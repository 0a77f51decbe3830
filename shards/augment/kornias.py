"""Kornia's augmentations, each picture alone and under a seed of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import kornia.augmentation
import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from pipeline.common.devices import is_out_of_memory
from shards.augment.parameters import OWN
from shards.augment.spec import Operation
from shards.errors import ShardsError

# Kornia's operations of geometry that are accepted: those that keep a picture's size.
GEOMETRIC = ("RandomHorizontalFlip", "RandomVerticalFlip")
# torch's seeds are the whole process's, which may have several threads.
_seeded = threading.Lock()
# Takes float32 (1, 3, H, W) in [0, 1] and a seed, gives the same kind.
Changed = Callable[[Tensor, int], Tensor]


def kornia_operation(operation: Operation) -> Changed:
    """Return one of Kornia's augmentations; it raises `ShardsError` where it fails on a picture.

    Raises:
        ShardsError: Kornia has none of that name that keeps sizes, or refuses its parameters.
    """
    kind: Any = getattr(kornia.augmentation, operation.name, None)
    given = {name: value for name, value in operation.parameters.items() if name != "p"}
    fits = isinstance(kind, type) and (
        operation.name in GEOMETRIC or issubclass(kind, IntensityAugmentationBase2D)
    )
    if not fits:
        raise ShardsError(
            f"operation {operation.name} is neither {', '.join((*OWN, *GEOMETRIC))}, "
            "nor one of Kornia's augmentations of intensity and colour"
        )
    try:
        augmentation: Any = kind(**given, p=1.0)
    except Exception as error:
        raise ShardsError(_failed(operation.name, error)) from error

    def changed(pixels: Tensor, seed: int) -> Tensor:
        return _alone(augmentation, operation.name, pixels, seed)

    _try(changed, operation.name)
    return changed


def _alone(augmentation: Any, name: str, pixels: Tensor, seed: int) -> Tensor:
    """Return the picture as Kornia's augmentation makes it, in a batch of its own.

    Some augmentations draw for a batch together, some draw while they are applied, and some take
    only one picture. Alone, under a seed of its own, each picture comes out as its key says.

    Raises:
        ShardsError: the augmentation fails.
    """
    cards = [pixels.get_device()] if pixels.is_cuda else []
    try:
        with _seeded, torch.inference_mode(), torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed)
            drawn = augmentation.forward_parameters(pixels.shape)
            changed: Tensor = augmentation(pixels, params=drawn).clamp(0, 1)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ShardsError(_failed(name, error)) from error
    if changed.shape != pixels.shape:
        raise ShardsError(f"operation {name}: it changes a picture's size")
    return changed


def _try(changed: Changed, name: str) -> None:
    """Refuse an augmentation that fails, or gives other pixels for the same picture and seed."""
    grey = torch.linspace(0, 1, 3 * 48 * 64).reshape(1, 3, 48, 64)
    first, again = changed(grey, 1), changed(grey, 1)
    if not torch.equal(first, again):
        raise ShardsError(f"operation {name}: it gives other pixels each time")


def _failed(name: str, error: Exception) -> str:
    """Return the sentence for an operation that fails."""
    words = str(error).partition("\n")[0]
    return f"operation {name}: {words}"
