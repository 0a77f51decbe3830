"""The densities of the entropy models: Gaussians for y, a learned factorised density for z.

Likelihoods and their bounds are computed in float32, also under autocast.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.hyper_tables import Density

SCALE_BOUND = 0.11
LIKELIHOOD_BOUND = 1e-9
_FILTERS = (1, 3, 3, 3, 3, 1)
_INITIAL_SCALE = 10.0


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x >= bound)
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (above,) = ctx.saved_tensors
        return torch.where(above | (grads[0] < 0), grads[0], 0.0), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """Return max(x, bound); below the bound, only gradients that would raise x pass."""
    # Function.apply has no types.
    bounded: Tensor = _LowerBound.apply(x, bound)  # type: ignore[no-untyped-call]
    return bounded


def round_straight_through(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes as if nothing had happened."""
    return x + (x.round() - x).detach()


def gaussian_likelihood(residual: Tensor, scale: Tensor) -> Tensor:
    """Return the mass that N(0, scale) gives the unit bin around `residual`, from 1e-9 up.

    Any shape; `scale` is bounded below by 0.11.
    """
    scale = lower_bound(scale.float(), SCALE_BOUND)
    distance = residual.float().abs()
    upper = _normal_cdf((0.5 - distance) / scale)
    lower = _normal_cdf((-0.5 - distance) / scale)
    return lower_bound(upper - lower, LIKELIHOOD_BOUND)


def _normal_cdf(x: Tensor) -> Tensor:
    # erfc keeps its relative precision in the tail, where erf has none.
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


class FactorizedDensity(nn.Module):
    """A learned density for each channel (Balle et al. 2018, appendix 6.1).

    `quantiles` (C, 1, 3) follow the density's lower tail, median and upper tail. Only
    `quantile_loss` gives them a gradient, and that loss reaches no other parameter.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        scale = _INITIAL_SCALE ** (1 / (len(_FILTERS) - 1))
        pairs = list(pairwise(_FILTERS))
        self.matrices = nn.ParameterList(
            torch.full((channels, after, before), math.log(math.expm1(1 / scale / after)))
            for before, after in pairs
        )
        # In place: arithmetic on the meta device would load torch's compiler, which takes seconds.
        self.biases = nn.ParameterList(
            torch.empty(channels, after, 1).uniform_(-0.5, 0.5) for _, after in pairs
        )
        self.factors = nn.ParameterList(torch.zeros(channels, after, 1) for _, after in pairs[:-1])
        spread = torch.tensor([-_INITIAL_SCALE, 0.0, _INITIAL_SCALE])
        self.quantiles = nn.Parameter(torch.empty(channels, 1, 3).copy_(spread))

    @property
    def medians(self) -> Tensor:
        """The medians, (1, C, 1, 1), without gradient."""
        return self.quantiles.detach()[:, 0, 1].reshape(1, -1, 1, 1)

    def as_arrays(self) -> Density:
        """Return the weights as float64 arrays of numpy."""

        def arrays(weights: nn.ParameterList) -> list[Any]:
            return [weight.detach().cpu().double().numpy() for weight in weights]

        medians = self.medians.flatten().cpu().double().numpy()
        matrices, biases = arrays(self.matrices), arrays(self.biases)
        return Density(matrices, biases, arrays(self.factors), medians)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mass of the unit bin around each value of x (N, C, H, W), from 1e-9 up."""
        with torch.autocast(x.device.type, enabled=False):
            n, c, h, w = x.shape
            values = x.float().permute(1, 0, 2, 3).reshape(c, 1, -1)
            mass = self.mass(values)
            bounded = lower_bound(mass, LIKELIHOOD_BOUND)
            return bounded.reshape(c, n, h, w).permute(1, 0, 2, 3)

    def mass(self, values: Tensor) -> Tensor:
        """Return the mass of the unit bins around `values` (C, 1, n), unbounded."""
        lower = self.logits(values - 0.5)
        upper = self.logits(values + 0.5)
        # Both on the side where sigmoid is small, so that no digits are lost.
        sign = torch.where(lower + upper > 0, -1.0, 1.0)
        return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()

    def logits(self, values: Tensor, detach: bool = False) -> Tensor:
        """Return the logit of the cumulative distribution at `values` (C, 1, n).

        With `detach`, only `values` get a gradient, not the density's parameters.
        """
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            matrix, bias = (matrix.detach(), bias.detach()) if detach else (matrix, bias)
            values = torch.matmul(F.softplus(matrix), values) + bias
            if i < len(self.factors):
                factor = self.factors[i].detach() if detach else self.factors[i]
                values = values + torch.tanh(factor) * torch.tanh(values)
        return values

    def quantile_loss(self) -> Tensor:
        """Return the sum of |logit(quantile) - t|, t = (-T, 0, T), T = ln(2 / 1e-9 - 1)."""
        tail = math.log(2 / LIKELIHOOD_BOUND - 1)
        with torch.autocast(self.quantiles.device.type, enabled=False):
            # Made on the device: copying a list of numbers there would synchronise.
            target = tail * torch.arange(-1.0, 2.0, device=self.quantiles.device)
            return (self.logits(self.quantiles.float(), detach=True) - target).abs().sum()
