"""Gain vectors: one model for a range of rates.

At the rate R, the latent is multiplied by a gain for each channel before it is coded, and by an
inverse gain after it is decoded; likewise the hyper-latent:

    x -> analysis -> * gain y(R) -> y -> entropy coder -> y_hat -> * inverse y(R) -> synthesis
                                    |
             hyper-analysis -> * gain z(R) -> z -> entropy coder -> z_hat -> * inverse z(R)

A large gain means small quantisation steps. Gains are learned for K rates, numbered from 0; between
two neighbours they are interpolated geometrically, gain(k + l) = gain(k)^(1-l) gain(k+1)^l, so R is
any real number from 0 to K - 1. The inverse gains are learned separately.

Source: Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation",
CVPR 2021 (arXiv 2003.02012). The parameters here are logarithms: gains stay positive, and the
interpolation is linear.

Shapes: N batch, K rates, M latent channels, Z hyper-latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

import torch
from torch import Tensor, nn

from pipeline.codec.errors import CodecError

# Logarithms of gains beyond this leave float32's range.
_LARGEST_LOG = 80.0
_DIGITS = 40


@dataclass(frozen=True)
class Gained:
    """The gains at a rate: (N, C, 1, 1) each, or (1, 1, 1, 1) for a single-rate model."""

    y: Tensor
    z: Tensor
    y_inverse: Tensor
    z_inverse: Tensor

    @classmethod
    def none(cls, device: torch.device | None = None) -> Gained:
        """Return the gains of a model with a single rate: ones, which change no bit."""
        ones = torch.ones(1, 1, 1, 1, device=device)
        return cls(ones, ones, ones, ones)


class Gains(nn.Module):
    """The logarithms of the gains of K `rate_weights`: (K, M) for y, (K, Z) for z."""

    def __init__(
        self, rate_weights: Sequence[float], latent_channels: int, hyper_latent_channels: int
    ) -> None:
        super().__init__()
        m, z = latent_channels, hyper_latent_channels
        logs = _start(rate_weights)
        # From lists: arithmetic on the meta device would load torch's compiler, taking seconds.
        self.y = nn.Parameter(torch.tensor([[log] * m for log in logs]))
        self.z = nn.Parameter(torch.zeros(len(logs), z))
        self.y_inverse = nn.Parameter(torch.tensor([[-log] * m for log in logs]))
        self.z_inverse = nn.Parameter(torch.zeros(len(logs), z))

    @torch.no_grad()
    def start(self, weights: Sequence[float], reference: float | None = None) -> None:
        """Set the gains that high-rate theory gives for the K rate weights `weights`.

        In this theory distortion grows with the square of the step and the rate falls with its
        logarithm, so the best step is proportional to the root of the rate weight. y's gain is 1 at
        the weight `reference` (by default the geometric mean); z's gains are 1 at all rates.
        """
        logs = torch.tensor(_start(weights, reference)).view(-1, 1)
        self.y.copy_(logs.expand_as(self.y))
        self.y_inverse.copy_(-logs.expand_as(self.y))
        self.z.zero_()
        self.z_inverse.zero_()

    def forward(self, rate: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gains of y, z and their inverses, (N, C, 1, 1), at the rates `rate` (N,).

        A gradient reaches the vectors of the two rates that each entry lies between.
        """
        numbers = torch.arange(self.y.shape[0], device=rate.device, dtype=torch.float32)
        # 1 - l and l at the two neighbours, 0 elsewhere: a learned rate gives its own gains.
        shares = (1 - (rate.float()[:, None] - numbers).abs()).clamp(min=0)[:, :, None]
        y, z, y_inverse, z_inverse = (
            (shares * logs).sum(1).exp()[:, :, None, None]
            for logs in (self.y, self.z, self.y_inverse, self.z_inverse)
        )
        return y, z, y_inverse, z_inverse

    def exact(self, rate: float) -> Gained:
        """Return the gains at one rate, float32, the same on every machine.

        The exponentials are correctly rounded, unlike those of `math.exp` and torch, because the
        entropy decoder depends on z's inverse gain. Raises `CodecError` when a gain is not finite.
        """
        vectors = (self.y, self.z, self.y_inverse, self.z_inverse)
        return Gained(*(_exact(logs, rate) for logs in vectors))


def _start(weights: Sequence[float], reference: float | None = None) -> list[float]:
    logs = [math.log(weight) for weight in weights]
    centre = sum(logs) / len(logs) if reference is None else math.log(reference)
    return [0.5 * (centre - log) for log in logs]


def _exact(logs: Tensor, rate: float) -> Tensor:
    lower = min(int(rate), logs.shape[0] - 2)
    if not bool((logs.abs() <= _LARGEST_LOG).all()):
        raise CodecError("the model has gains that are not finite numbers; it can't be used")
    with localcontext(Context(prec=_DIGITS)):
        share = Decimal(rate) - lower
        gains = [
            float((Decimal(below) * (1 - share) + Decimal(above) * share).exp())
            for below, above in zip(*logs[lower : lower + 2].tolist(), strict=True)
        ]
    return torch.tensor(gains, dtype=torch.float32, device=logs.device).view(1, -1, 1, 1)
