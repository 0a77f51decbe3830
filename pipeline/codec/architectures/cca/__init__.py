"""The CCA architecture: causal context adjustment (Han et al., NeurIPS 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.codec.architectures.base import Architecture
from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.common.lazy import exporting

if TYPE_CHECKING:
    from pipeline.codec.architectures.cca.auxiliary import AuxiliaryEntropyModel
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


# Names that need torch are imported on first access.
__getattr__ = exporting(
    __name__,
    {
        "AuxiliaryEntropyModel": ".auxiliary",
        "CCAModel": ".model",
        "CCAOutput": ".model",
        "start_as_pyramid": ".start",
    },
)


def _model(config: CCAConfig) -> CCAModel:
    from pipeline.codec.architectures.cca.model import CCAModel

    return CCAModel(config)


def _auxiliary(config: CCAConfig) -> AuxiliaryEntropyModel:
    from pipeline.codec.architectures.cca.auxiliary import AuxiliaryEntropyModel

    return AuxiliaryEntropyModel(config)


def _start_as_pyramid(model: CCAModel) -> None:
    from pipeline.codec.architectures.cca.start import start_as_pyramid

    start_as_pyramid(model)


def _read_published(path: Path) -> tuple[CCAModel, AuxiliaryEntropyModel | None]:
    from pipeline.codec.architectures.cca.published import read_published

    published = read_published(path)
    return published.model, published.auxiliary


ARCHITECTURE = Architecture(
    name="cca",
    title="CCA",
    config=CCAConfig,
    model=_model,
    presets={"paper": CCAConfig(), "tiny": CCAConfig.tiny()},
    auxiliary=_auxiliary,
    # With an odd number of slices, the middle one counts as late.
    early_groups=lambda config: config.slices // 2,
    starts={"pyramid": _start_as_pyramid},
    read_published=_read_published,
    published_millions=65.0,
)
