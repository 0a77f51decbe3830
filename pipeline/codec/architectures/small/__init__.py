"""The small architecture: a codec for all rates that fits into a package and runs on two cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.codec.architectures.base import Architecture
from pipeline.codec.architectures.small.config import SmallConfig
from pipeline.common.lazy import exporting

if TYPE_CHECKING:
    from pipeline.codec.architectures.small.model import SmallModel
    from pipeline.codec.architectures.small.start import start_as_transform
    from pipeline.codec.light.form import LightForm

__all__ = ["ARCHITECTURE", "SmallConfig", "SmallModel", "start_as_transform"]

# Names that need torch are imported on first access.
__getattr__ = exporting(__name__, {"SmallModel": ".model", "start_as_transform": ".start"})


def _model(config: SmallConfig) -> SmallModel:
    from pipeline.codec.architectures.small.model import SmallModel

    return SmallModel(config)


def _start_as_transform(model: SmallModel) -> None:
    from pipeline.codec.architectures.small.start import start_as_transform

    start_as_transform(model)


def _light() -> LightForm:
    from pipeline.codec.architectures.small.light import FORM

    return FORM


ARCHITECTURE = Architecture(
    name="small",
    title="small",
    config=SmallConfig,
    model=_model,
    presets={"box": SmallConfig(), "tiny": SmallConfig.tiny()},
    starts={"transform": _start_as_transform},
    light=_light,
)
