"""Random numbers by address: what a step draws depends on where it is, not on what came before.

So a resumed run, and a run on another number of processes, draw the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.codec import CCAConfig, Noise
from pipeline.codec.architectures.cca.config import HYPER_STRIDE, LATENT_STRIDE


def address(*words: object) -> int:
    """Return a seed in [0, 2^63) that is a function of `words`, which are written as text."""
    text = "\0".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draw_noise(
    config: CCAConfig, crop: int, addresses: Sequence[int], device: torch.device
) -> Noise:
    """Return the uniform noise in [-1/2, 1/2) of a training pass over square crops.

    Sample n of the batch has the noise of `addresses[n]`, whatever the rest of the batch is.
    """
    latent = (config.latent_channels, crop // LATENT_STRIDE, crop // LATENT_STRIDE)
    hyper = (config.hyper_latent_channels, crop // HYPER_STRIDE, crop // HYPER_STRIDE)
    shapes = (latent, hyper, latent, latent)
    sizes = [channels * height * width for channels, height, width in shapes]
    drawn = torch.stack([_uniform(sum(sizes), seed, device) for seed in addresses])
    parts: list[Tensor] = [
        part.reshape(len(addresses), *shape)
        for part, shape in zip(torch.split(drawn, sizes, dim=1), shapes, strict=True)
    ]
    return Noise(y=parts[0], z=parts[1], aux_y=parts[2], aux_factorized=parts[3])


def draw_rates(config: CCAConfig, addresses: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the rates (N,) of a training pass, whole numbers from 0 to K - 1, equally likely.

    Sample n of the batch has the rate of `addresses[n]`. None: the model has a single rate.
    """
    if not config.rate_weights:
        return None
    count = len(config.rate_weights)
    drawn = [float(address(seed, "rate") % count) for seed in addresses]
    return torch.tensor(drawn, device=device)


def _uniform(count: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.rand(count, generator=generator, device=device) - 0.5
