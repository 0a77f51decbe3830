"""The entropy coder of the small model's latents: slice after slice, with exact networks."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.codec.architectures.small.rates import Rate, mixed
from pipeline.codec.exact import exact_copy, exact_dtype
from pipeline.codec.latents import Code, HyperpriorCoder

if TYPE_CHECKING:
    from pipeline.codec.architectures.small.model import SmallModel


class SmallCoder(HyperpriorCoder):
    """Codes z, then the slices of y in order, each conditioned on the slices before it."""

    def __init__(self, model: SmallModel) -> None:
        super().__init__(model.hyper_density, exact_dtype(model.context))
        self._vectors = model.config.vectors
        self._hyper_analysis = model.hyper_analysis
        self._hyper_synthesis = exact_copy(model.hyper_synthesis)
        self._context = exact_copy(model.context)
        self._log_steps = tuple(
            log.detach().to(self.dtype) for log in (model.steps.y, model.steps.z)
        )
        self._at = lru_cache(maxsize=16)(self._place)

    def analyse_y(self, y: Tensor, rate: float | None) -> tuple[Tensor, Tensor]:
        """Return y (1, M, h, w) and z (1, Z, h/4, w/4) as they are coded."""
        at, _, z_step = self._at(rate)
        floats = at._replace(share=at.share.float())
        return y, self._hyper_analysis(y, floats) / z_step.float()

    def decode_y(self, z_hat: Tensor, y: Tensor | None, code: Code, rate: float | None) -> Tensor:
        """Code the slices of y; return the decoded latent (1, M, h, w)."""
        at, y_logs, z_step = self._at(rate)
        features = self._hyper_synthesis(z_hat * z_step, at)
        parts = None if y is None else torch.split(y, self._context.sizes, dim=1)

        def quantise(i: int, mean: Tensor, step: Tensor, scale: Tensor) -> Tensor:
            values = None if parts is None else (parts[i] - mean) / step
            return code(values, torch.zeros_like(mean), scale)

        y_hat: Tensor = self._context(features, y_logs, at, quantise)
        return y_hat

    def _place(self, rate: float | None) -> tuple[Rate, Tensor, Tensor]:
        """Return the place of `rate` between learned rates, y's log steps and z's steps, exact."""
        # Cached for later passes, which may be outside of inference mode.
        with torch.inference_mode(False):
            number = torch.tensor([rate or 0.0], dtype=torch.float64, device=self.device)
            at = Rate.of(number, self._vectors)
            at = at._replace(share=at.share.to(self.dtype))
            y_logs, z_logs = (mixed(at, logs) for logs in self._log_steps)
            return at, y_logs, self._context.exp(z_logs)
