"""Evaluates on held-out pictures during training, shared out over the processes.

Metrics are those of the field: on 8-bit pictures, per picture and then the mean over the set.
Rates are the likelihoods' here; `pipeline evaluate` counts real files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codec import Model
from pipeline.evaluation.learned import to_picture, to_tensor
from pipeline.evaluation.metrics import Picture, ms_ssim, psnr
from recipes.config.schema import Run
from recipes.launching import processes as launch
from recipes.training.held_out import HeldOut
from recipes.training.losses import bits_per_pixel, distortion
from recipes.training.speed import uncompiled

NAMES = ("cost", "bpp", "psnr", "ms_ssim")
# A picture of more pixels is coded in tiles of this side, each apart, as large files are: memory
# then does not grow with the picture.
LARGEST, TILE = 4 << 20, 1024


def evaluate(
    model: Model,
    run: Run,
    pictures: Sequence[HeldOut],
    accelerator: Any,
    asked: Callable[[], bool],
) -> dict[str, float] | None:
    """Return the mean over `pictures` of `NAMES`, the same on all processes.

    None: it was `asked` to stop, which all processes are together, before each picture.

    Of a model for several rates it is the mean over these too, with `rate_K/bpp` and so on for
    each. Process r takes every world_size-th picture from r on. All do as many passes, because a
    sharded model needs all of them for each: a process without a picture left repeats its last.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    points = rate_points(run)
    totals = torch.zeros(
        len(points), len(NAMES) + 2, dtype=torch.float64, device=accelerator.device
    )
    # Pictures of one round may differ in tiles, and all processes must do as many passes.
    whole = launch.zero_stage(accelerator) == 3
    training = model.training
    model.eval()
    for first in range(0, len(pictures), world):
        if asked():
            model.train(training)
            return None
        number = first + rank
        picture = pictures[min(number, len(pictures) - 1)].read()
        found = [measure(model, run, picture, *point, whole=whole) for point in points]
        if number < len(pictures):
            totals += torch.tensor(found, dtype=torch.float64, device=totals.device)
    model.train(training)
    sums = accelerator.reduce(totals, reduction="sum").cpu()
    means = _means(sums.sum(0).tolist())
    for rate, of_rate in enumerate(sums.tolist() if len(points) > 1 else []):
        means |= {f"rate_{rate}/{name}": mean for name, mean in _means(of_rate).items()}
    return means


def rate_points(run: Run) -> list[tuple[float | None, float]]:
    """Return the rates that a run is evaluated at (None: its single one), and their weights."""
    if run.rate_weight is not None:
        return [(None, run.rate_weight)]
    return [(float(rate), weight) for rate, weight in enumerate(run.variable_rate)]


def _means(sums: Sequence[float]) -> dict[str, float]:
    cost, bpp, decibels, similarity, similar, count = sums
    means = {"cost": cost / count, "bpp": bpp / count, "psnr": decibels / count}
    return means | ({"ms_ssim": similarity / similar} if similar else {})


@torch.no_grad()
def measure(
    model: Model,
    run: Run,
    picture: Picture,
    rate: float | None,
    rate_weight: float,
    *,
    whole: bool = False,
) -> list[float]:
    """Return cost, bpp, PSNR, MS-SSIM (0 where undefined), whether that is defined, and 1."""
    decoded, bpp = reconstruct(model, picture, rate, whole=whole)
    decibels, similarity = psnr(picture, decoded), ms_ssim(picture, decoded)
    # On the CPU: a GPU may convolve with less than float32, which is too coarse for a metric.
    x, x_hat = (to_tensor(one, torch.device("cpu")) for one in (picture, decoded))
    distorted = float(distortion(x, x_hat, run.stage.distortion, run.loss))
    cost = (distorted + rate_weight * bpp) / rate_weight**run.loss.balance
    return [cost, bpp, decibels, similarity or 0.0, float(similarity is not None), 1.0]


def look(model: Model, picture: Picture) -> Picture:
    """Return a picture, its reconstruction, and the map of y's bits, side by side (H, 3 W, 3).

    In the map white is the position of the latent that costs most, black costs nothing. Of a
    picture of more than `LARGEST` pixels its upper left is shown.
    """
    if _pixels(picture) > LARGEST:
        picture = np.ascontiguousarray(picture[:TILE, :TILE])
    training = model.training
    model.eval()
    x_hat, likelihoods = _code(model, picture)
    model.train(training)
    bits = -likelihoods["y"][0].log2().sum(0)
    levels = (bits / bits.max().clamp(min=1e-9) * 255).round().to(torch.uint8).cpu().numpy()
    height, width = picture.shape[:2]
    stride = model.config.latent_stride
    large = levels.repeat(stride, 0).repeat(stride, 1)[:height, :width]
    return np.concatenate([picture, to_picture(x_hat), np.stack([large] * 3, axis=2)], axis=1)


def reconstruct(
    model: Model, picture: Picture, rate: float | None = None, *, whole: bool = False
) -> tuple[Picture, float]:
    """Return the reconstruction of a picture, (H, W, 3) uint8, and its estimated bpp.

    A large one goes through in tiles, unless it is to go as a `whole`.
    """
    decoded, bits = np.empty_like(picture), 0.0
    side = max(picture.shape) if whole or _pixels(picture) <= LARGEST else TILE
    for top in range(0, picture.shape[0], side):
        for left in range(0, picture.shape[1], side):
            box = slice(top, top + side), slice(left, left + side)
            x_hat, likelihoods = _code(model, np.ascontiguousarray(picture[box]), rate)
            decoded[box] = to_picture(x_hat)
            bits += sum(float(bits_per_pixel(part, 1)) for part in likelihoods.values())
    return decoded, bits / _pixels(picture)


def _pixels(picture: Picture) -> int:
    return int(picture.shape[0] * picture.shape[1])


@torch.no_grad()
def _code(
    model: Model, picture: Picture, rate: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    with uncompiled():
        output = model(to_tensor(picture, next(model.parameters()).device), rate=rate)
    return output.x_hat, output.likelihoods
