"""The CCA architecture: causal context adjustment (Han et al., NeurIPS 2024)."""

from __future__ import annotations

from pathlib import Path

from pipeline.codec.architectures.base import Architecture
from pipeline.codec.architectures.cca.auxiliary import AuxiliaryEntropyModel
from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.codec.architectures.cca.model import CCAModel, CCAOutput
from pipeline.codec.architectures.cca.start import start_as_pyramid

__all__ = [
    "ARCHITECTURE",
    "AuxiliaryEntropyModel",
    "CCAConfig",
    "CCAModel",
    "CCAOutput",
    "start_as_pyramid",
]


def _read_published(path: Path) -> tuple[CCAModel, AuxiliaryEntropyModel | None]:
    from pipeline.codec.architectures.cca.published import read_published

    published = read_published(path)
    return published.model, published.auxiliary


ARCHITECTURE = Architecture(
    name="cca",
    title="CCA",
    config=CCAConfig,
    model=CCAModel,
    presets={"paper": CCAConfig(), "tiny": CCAConfig.tiny()},
    auxiliary=AuxiliaryEntropyModel,
    # The middle one of an odd number of slices is late.
    early_groups=lambda config: config.slices // 2,
    starts={"pyramid": start_as_pyramid},
    read_published=_read_published,
    published_millions=65.0,
)
