"""The entropy coder of CCA's latents: slice after slice, with exact networks."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.cca.context import ContextModel
from pipeline.codec.densities import FactorizedDensity
from pipeline.codec.exact import exact_copy, exact_dtype
from pipeline.codec.gains import Gained, Gains
from pipeline.codec.latents import Code, HyperpriorCoder
from pipeline.codec.model import HyperOutput
from pipeline.codec.paired_layers import paired


class CCACoder(HyperpriorCoder):
    """Codes the slices of y in order, each conditioned on the slices before it."""

    def __init__(
        self,
        hyper_analysis: nn.Module,
        density: FactorizedDensity,
        gains: Gains | None,
        hyper: tuple[nn.Module, nn.Module],
        context: ContextModel,
    ) -> None:
        """`hyper` has the hyper-decoders of mean and scale."""
        super().__init__(density, exact_dtype(context))
        self._hyper_analysis = hyper_analysis
        self._hyper_mean, self._hyper_scale = map(exact_copy, hyper)
        self._context = exact_copy(context)
        self._context.pair(paired)
        # The exact gains at a rate (None for a model with a single rate), cached for a few rates.
        self._gained = lru_cache(maxsize=16)(partial(_gained, gains, self.device))

    def analyse_y(self, y: Tensor, rate: float | None) -> tuple[Tensor, Tensor]:
        """Return y and z, multiplied by their gains."""
        gained = self._gained(rate)
        y = y * gained.y
        return y, self._hyper_analysis(y) * gained.z

    def decode_y(self, z_hat: Tensor, y: Tensor | None, code: Code, rate: float | None) -> Tensor:
        """Code the slices of y; return the decoded latent (1, M, h, w), with its gain undone."""
        gained = self._gained(rate)
        z_hat = z_hat * gained.z_inverse
        hyper = HyperOutput(self._hyper_mean(z_hat), self._hyper_scale(z_hat))
        parts = None if y is None else torch.split(y, list(self._context.sizes), dim=1)

        def quantise(i: int, mean: Tensor, scale: Tensor) -> Tensor:
            return code(None if parts is None else parts[i], mean, scale)

        decoded = torch.cat(self._context(hyper, quantise).decoded, dim=1)
        return decoded.float() * gained.y_inverse


def _gained(gains: Gains | None, device: torch.device, rate: float | None) -> Gained:
    # Cached for later passes, which may be outside of inference mode.
    with torch.inference_mode(False):
        return Gained.none(device) if gains is None or rate is None else gains.exact(rate)
