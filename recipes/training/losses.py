"""The loss of a training pass: rate, distortion and the causal context adjustment term.

With bits counted per pixel of the batch, D the weighted distortion, w_R the rate weight, w_M and
w_A the weights of the two halves of the CCA term:

    off:          D + w_R (R_y + R_z)
    adversarial:  D + w_R (R_y + R_z) + w_M R_y + R_aux, in which the gradient of R_aux is
                  multiplied by -w_A where it leaves the auxiliary model
    published:    D + w_R (R_y + R_z) + w_M (R_y - R_aux) + L_aux, L_aux the cross-entropy of the
                  auxiliary likelihoods against the factorised density; nothing is detached

With `early_share` s, in any mode: + w_E R_y (R_early / R_y - s)^2, the factor R_y without gradient,
R_early the rate of the first half of the groups that y is coded in (CCA's slices).

Each is the mean over the batch's samples, whose weights may differ (one model for several rates);
with `balance` b, each sample's is divided by its w_R^b before.
Source: Han et al., arXiv 2410.04847; the gradient reversal is Ganin and Lempitsky's (2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.codec import AuxiliaryModel, CodecOutput, HyperOutput, Noise
from pipeline.codec.densities import LIKELIHOOD_BOUND
from pipeline.evaluation.metrics import MS_SSIM_SIDE
from recipes.config.schema import Run
from recipes.config.settings import Cca, Loss
from recipes.training.msssim import ms_ssim

# One number for all samples of a batch, or a tensor (N,) with one for each.
Weight = float | Tensor


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * -ctx.weight, None


def reverse_gradient(x: Tensor, weight: Weight) -> Tensor:
    """Return x; in the backward pass its gradient is multiplied by -`weight`."""
    if isinstance(weight, Tensor):
        weight = weight.view(-1, *[1] * (x.ndim - 1))
    # Function.apply has no types.
    # torch gives apply no types.
    reversed_: Tensor = _Reverse.apply(x, weight)  # type: ignore[no-untyped-call]
    return reversed_


@dataclass(frozen=True)
class Weights:
    """The loss weights at a step: those of the rate and of the two halves of the CCA term.

    Of `rate`, which is what it is at the end of a warm-up, the share `grown` is in force.
    """

    rate: Weight
    main: Weight
    auxiliary: Weight
    grown: Weight = 1.0

    @classmethod
    def at(cls, step: int, rate_weight: Weight, cca: Cca, rate_warmup: int = 0) -> Weights:
        """Return the weights of step `step`, the first being 0."""
        scale = _grown(step, cca.warmup) * (rate_weight if cca.proportional else 1.0)
        grown = _grown(step, rate_warmup)
        return cls(rate_weight, cca.weight * scale, cca.half * scale, grown)


def _grown(step: int, steps: int) -> float:
    """Return the share of a weight that is in force at `step` of a warm-up of `steps`."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def weights_at(step: int, run: Run, rates: Tensor | None) -> Weights:
    """Return the weights of step `step` for samples at `rates`, (N,) numbers of a run's weights.

    None: the run has a single rate weight.
    """
    if rates is None:
        assert run.rate_weight is not None
        return Weights.at(step, run.rate_weight, run.cca, run.stage.rate_warmup)
    known = torch.tensor(run.variable_rate, device=rates.device)
    each = run.stage.rates == "each"
    weights = known[rates.long()] if each else between(known, rates)
    return Weights.at(step, weights, run.cca, run.stage.rate_warmup)


def between(known: Tensor, rates: Tensor) -> Tensor:
    """Return the weights (N,) at real `rates`, interpolated geometrically, as gains are."""
    low = rates.floor().clamp(max=len(known) - 2)
    share = rates - low
    below, above = known[low.long()].log(), known[low.long() + 1].log()
    return (below * (1 - share) + above * share).exp()


def balanced(cost: Tensor, weights: Weights, loss: Loss) -> Tensor:
    """Return the samples' costs (N,) over their rate weights to the power `loss.balance`."""
    return cost / weights.rate**loss.balance if loss.balance else cost


def final_weight(run: Run, rate_weight: float) -> float:
    """Return the weight of y's rate at the end of a run, the CCA term's half included."""
    final = Weights.at(run.stage.steps, rate_weight, run.cca)
    return float(final.rate + (0.0 if run.cca.mode == "off" else final.main))


def sample_bits(likelihoods: Tensor) -> Tensor:
    """Return the bits of each sample, (N,), of `likelihoods` (N, C, h, w)."""
    return -likelihoods.log2().sum((1, 2, 3))


def early_share(groups: Mapping[str, Tensor], early: int) -> Tensor:
    """Return the share (N,) of bits in the first `early` of `groups`: the bits (N,) of each."""
    bits = torch.stack(list(groups.values()))
    return bits[:early].sum(0) / bits.sum(0)


def early_term(share: Tensor, rate: Tensor, cca: Cca) -> Tensor | float:
    """Return the cost (N,) of a `share` that differs from the wanted one, at y's `rate`."""
    if cca.early_share is None:
        return 0.0
    return cca.early_weight * rate.detach() * (share - cca.early_share).square()


def bits_per_pixel(likelihoods: Tensor, pixels: int) -> Tensor:
    """Return -sum log2 of `likelihoods`, divided by `pixels`."""
    return -likelihoods.log2().sum() / pixels


def clamp_share(likelihoods: Tensor) -> Tensor:
    """Return the share of `likelihoods` that lie at their lower bound."""
    return (likelihoods <= LIKELIHOOD_BOUND).float().mean()


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return the mean squared error of each sample, (N,), of (N, 3, H, W)."""
    return (x - x_hat).square().mean((1, 2, 3))


def _mse(x: Tensor, x_hat: Tensor, loss: Loss) -> Tensor:
    return loss.mse_weight * 255**2 * squared_error(x, x_hat)


def _ms_ssim(x: Tensor, x_hat: Tensor, loss: Loss) -> Tensor:
    if min(x.shape[2:]) < MS_SSIM_SIDE:
        # Of a held-out picture; crops are never so small. It then tells one model from no other.
        return x.new_full((len(x),), loss.ms_ssim_weight)
    return loss.ms_ssim_weight * (1 - ms_ssim(x_hat, x))


def _mixed(x: Tensor, x_hat: Tensor, loss: Loss) -> Tensor:
    return _mse(x, x_hat, loss) + _ms_ssim(x, x_hat, loss)


# What a stage's `distortion` may be: of pictures (N, 3, H, W) in [0, 1] and weights to (N,).
DISTORTIONS: dict[str, Callable[[Tensor, Tensor, Loss], Tensor]] = {
    "mse": _mse,
    "ms-ssim": _ms_ssim,
    "mixed": _mixed,
}


def distortion(x: Tensor, x_hat: Tensor, kind: str, loss: Loss) -> Tensor:
    """Return the weighted distortion of each sample, (N,), of (N, 3, H, W) in [0, 1]."""
    return DISTORTIONS[kind](x, x_hat, loss)


def auxiliary_terms(
    auxiliary: AuxiliaryModel, output: CodecOutput, noise: Noise, cca: Cca, weights: Weights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the CCA term's part of the loss beyond the rate of y, (N,), and its metrics."""
    pixels = output.x_hat.shape[2] * output.x_hat.shape[3]
    published = cca.mode == "published"
    y, hyper = output.y, output.hyper
    if not published:
        y, hyper = _turned(y, hyper, cca, weights.auxiliary)
    result = auxiliary(y, hyper, noise, factorized=published)
    rate = sample_bits(result.likelihoods_y) / pixels
    metrics = {"r_aux": rate, "clamp_share": clamp_share(result.likelihoods_y)}
    if not published:
        return rate, metrics
    weighted = result.likelihoods_y * result.likelihoods_factorized.log2()
    cross = -weighted.sum((1, 2, 3)) / pixels
    return cross - weights.main * rate, metrics | {"l_aux": cross}


def _turned(y: Tensor, hyper: HyperOutput, cca: Cca, weight: Weight) -> tuple[Tensor, HyperOutput]:
    """Return the input of the auxiliary model, whose gradient is reversed when it leaves it."""
    y = reverse_gradient(y, weight)
    if cca.hyper == "detached":
        return y, HyperOutput(hyper.mean.detach(), hyper.scale.detach())
    mean, scale = (reverse_gradient(part, weight) for part in (hyper.mean, hyper.scale))
    return y, HyperOutput(mean, scale)
