"""Evaluation on held-out pictures while training, shared out over the processes.

Metrics are those of the field: on 8-bit pictures, per picture and then the mean over the set.
Rates are the likelihoods' here; `pipeline evaluate` counts real files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.codec import CCAModel
from pipeline.evaluation.learned import to_picture, to_tensor
from pipeline.evaluation.metrics import Picture, ms_ssim, psnr
from pipeline.evaluation.pictures import read_picture
from recipes.losses import bits_per_pixel
from recipes.schema import Run

NAMES = ("cost", "bpp", "psnr", "ms_ssim")


def evaluate(
    model: CCAModel, run: Run, pictures: Sequence[Path], accelerator: Any
) -> dict[str, float]:
    """Return the mean over `pictures` of `NAMES`, the same on all processes.

    Process r takes every world_size-th picture from r on. All do as many passes, because a
    sharded model needs all of them for each: a process without a picture left repeats its last.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    totals = torch.zeros(len(NAMES) + 2, dtype=torch.float64, device=accelerator.device)
    training = model.training
    model.eval()
    for first in range(0, len(pictures), world):
        number = first + rank
        counts = number < len(pictures)
        found = measure(model, run, read_picture(pictures[min(number, len(pictures) - 1)]))
        if counts:
            totals += torch.tensor(found, dtype=torch.float64, device=totals.device)
    model.train(training)
    sums: list[float] = accelerator.reduce(totals, reduction="sum").tolist()
    cost, bpp, decibels, similarity, similar, count = sums
    means = {"cost": cost / count, "bpp": bpp / count, "psnr": decibels / count}
    return means | ({"ms_ssim": similarity / similar} if similar else {})


@torch.no_grad()
def measure(model: CCAModel, run: Run, picture: Picture) -> list[float]:
    """Return cost, bpp, PSNR, MS-SSIM (0 where undefined), whether that is defined, and 1."""
    decoded, bpp = reconstruct(model, picture)
    decibels, similarity = psnr(picture, decoded), ms_ssim(picture, decoded)
    if run.stage.distortion == "mse":
        error = np.square(picture.astype(np.float64) - decoded).mean()
        distorted = run.recipe.loss.mse_weight * float(error)
    else:
        distorted = run.recipe.loss.ms_ssim_weight * (1 - (similarity or 0.0))
    cost = distorted + run.rate_weight * bpp
    return [cost, bpp, decibels, similarity or 0.0, float(similarity is not None), 1.0]


def reconstruct(model: CCAModel, picture: Picture) -> tuple[Picture, float]:
    """Return what the model makes of a picture, (H, W, 3) uint8, and its estimated bpp."""
    x = to_tensor(picture, next(model.parameters()).device)
    with torch.no_grad():
        output = model(x)
    pixels = x.shape[2] * x.shape[3]
    bpp = sum(float(bits_per_pixel(part, pixels)) for part in output.likelihoods.values())
    return to_picture(output.x_hat), bpp
