"""The auxiliary entropy model: what y would cost if each slice did not see the one before it.

Only training uses it, for the causal context adjustment loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.codec.architectures.cca.context import ContextModel
from pipeline.codec.architectures.cca.model import code_slices
from pipeline.codec.densities import FactorizedDensity
from pipeline.codec.model import AuxiliaryModel, AuxiliaryOutput, HyperOutput, add_noise


class AuxiliaryEntropyModel(AuxiliaryModel):
    """A separate context model, in which slice i sees its own decoded slices 0 to i-2."""

    def __init__(self, config: CCAConfig | None = None) -> None:
        super().__init__()
        self.config = config or CCAConfig()
        self.context = ContextModel(self.config, withheld=1)
        self.density = FactorizedDensity(self.config.latent_channels)

    def forward(
        self,
        y: Tensor,
        hyper: HyperOutput,
        noise: Mapping[str, Tensor] | None = None,
        factorized: bool = True,
    ) -> AuxiliaryOutput:
        """Return the likelihoods of the unquantised y; see `AuxiliaryModel.forward`."""
        noise = noise or {}
        _, likelihoods = code_slices(self.context, y, hyper, noise.get("aux_y"), self.training)
        if not factorized:
            return AuxiliaryOutput(likelihoods, None)
        if self.training:
            seen = add_noise(y, noise.get("aux_factorized"))
        else:
            medians = self.density.medians
            seen = (y - medians).round() + medians
        return AuxiliaryOutput(likelihoods, self.density(seen))

    def costly_parts(self) -> Iterator[nn.Module]:
        """Yield the supports and heads."""
        yield from self.context.costly_parts()

    def stacks(self) -> Iterator[nn.Module]:
        """Yield the supports' blocks."""
        yield from self.context.stacks()
