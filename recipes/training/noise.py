"""Random numbers by address: a step's draws depend on the step alone, not on earlier draws.

So a resumed run, and a run on another number of processes, draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.codec import Config, Noise
from pipeline.common.addresses import permutation, text_seed


def draw_noise(config: Config, crop: int, addresses: Sequence[int], device: torch.device) -> Noise:
    """Return the uniform noise in [-1/2, 1/2) of a training pass over square crops.

    `config.noise_shapes` says which arrays there are and the order in which they are drawn. Sample
    n of the batch has the noise of `addresses[n]`, whatever the rest of the batch is.
    """
    shapes = config.noise_shapes(crop)
    sizes = [channels * height * width for channels, height, width in shapes.values()]
    drawn = torch.stack([_uniform(sum(sizes), seed, device) for seed in addresses])
    parts = torch.split(drawn, sizes, dim=1)
    return Noise(
        (name, part.reshape(len(addresses), *shape))
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    )


def draw_rates(config: Config, addresses: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the rates (N,) of a training pass, whole numbers from 0 to K - 1, equally likely.

    Sample n of the batch has the rate of `addresses[n]`. None: the model has a single rate.
    """
    if not config.rate_weights:
        return None
    count = len(config.rate_weights)
    drawn = [float(text_seed(seed, "rate") % count) for seed in addresses]
    return torch.tensor(drawn, device=device)


def spread_rates(
    config: Config,
    step: int,
    batch: int,
    slots: Sequence[int],
    addresses: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Return rates (N,) of a training pass, real numbers in [0, K - 1], spread over the batch.

    The range is cut into as many parts as the global `batch` has pictures, and each has one rate,
    drawn in it. Which picture has which part is drawn by the address `step`: sample n is the
    picture `slots[n]` of the batch, and its rate's place within the part that of `addresses[n]`.
    """
    parts = permutation(step, batch)
    within = [text_seed(address, "rate") / 2**63 for address in addresses]
    shares = [(int(parts[slot]) + place) / batch for slot, place in zip(slots, within, strict=True)]
    return torch.tensor(shares, device=device) * (len(config.rate_weights) - 1)


def _uniform(count: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.rand(count, generator=generator, device=device) - 0.5
