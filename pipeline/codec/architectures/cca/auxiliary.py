"""The auxiliary entropy model: what y would cost if each slice's latest neighbour were withheld.

Used in training alone, by the causal context adjustment loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.codec.architectures.cca.context import ContextModel, HyperOutput
from pipeline.codec.architectures.cca.model import Noise, add_noise, code_slices
from pipeline.codec.densities import FactorizedDensity


@dataclass(frozen=True)
class AuxiliaryOutput:
    """Likelihoods of y, (N, M, h, w): by the withheld context, and by the density (if asked)."""

    likelihoods_y: Tensor
    likelihoods_factorized: Tensor | None


class AuxiliaryEntropyModel(nn.Module):
    """A context model of its own, in which slice i sees its own decoded slices 0 to i-2.

    It detaches nothing and reverses nothing: that is up to what is passed in. `density` gets a
    gradient only through `likelihoods_factorized`, its quantiles only through `quantile_loss`.
    """

    def __init__(self, config: CCAConfig | None = None) -> None:
        super().__init__()
        self.config = config or CCAConfig()
        self.context = ContextModel(self.config, withheld=1)
        self.density = FactorizedDensity(self.config.latent_channels)

    def forward(
        self, y: Tensor, hyper: HyperOutput, noise: Noise | None = None, factorized: bool = True
    ) -> AuxiliaryOutput:
        """Return the likelihoods of the unquantised y (N, M, h, w), given the hyper-decoders'.

        `factorized=False` leaves the factorised density out (its likelihoods are then None).
        """
        noise = noise or Noise()
        _, likelihoods = code_slices(self.context, y, hyper, noise.aux_y, self.training)
        if not factorized:
            return AuxiliaryOutput(likelihoods, None)
        if self.training:
            seen = add_noise(y, noise.aux_factorized)
        else:
            medians = self.density.medians
            seen = (y - medians).round() + medians
        return AuxiliaryOutput(likelihoods, self.density(seen))

    def quantiles(self) -> list[nn.Parameter]:
        """Return the parameters that `quantile_loss` alone trains."""
        return [self.density.quantiles]

    def quantile_loss(self) -> Tensor:
        """Return the quantiles' loss, a scalar; its gradient reaches the quantiles only."""
        return self.density.quantile_loss()
