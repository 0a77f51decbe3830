"""The entropy coder of CCA's latents: slice after slice, with exact networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.cca.context import ContextModel
from pipeline.codec.densities import FactorizedDensity
from pipeline.codec.exact import exact_copy
from pipeline.codec.gains import Gains
from pipeline.codec.latents import Code, HyperpriorCoder
from pipeline.codec.model import HyperOutput


class CCACoder(HyperpriorCoder):
    """Codes the slices of y in order, each given the ones before."""

    def __init__(
        self,
        hyper_analysis: nn.Module,
        density: FactorizedDensity,
        gains: Gains | None,
        hyper: tuple[nn.Module, nn.Module],
        context: ContextModel,
    ) -> None:
        """`hyper` are the hyper-decoders of mean and scale."""
        super().__init__(hyper_analysis, density, gains)
        self._hyper_mean, self._hyper_scale = map(exact_copy, hyper)
        self._context = exact_copy(context)

    def decode_y(self, z_hat: Tensor, y: Tensor | None, code: Code) -> Tensor:
        """Return the decoded latent (1, M, h, w), having coded its slices."""
        hyper = HyperOutput(self._hyper_mean(z_hat), self._hyper_scale(z_hat))
        parts = None if y is None else torch.split(y, list(self._context.sizes), dim=1)

        def quantise(i: int, mean: Tensor, scale: Tensor) -> Tensor:
            return code(None if parts is None else parts[i], mean, scale)

        return torch.cat(self._context(hyper, quantise).decoded, dim=1)
