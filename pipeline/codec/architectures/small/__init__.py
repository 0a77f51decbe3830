"""The small architecture: a codec for all rates that fits into a package and runs on two cores."""

from __future__ import annotations

from pipeline.codec.architectures.base import Architecture
from pipeline.codec.architectures.small.config import SmallConfig
from pipeline.codec.architectures.small.model import SmallModel
from pipeline.codec.architectures.small.start import start_as_transform

__all__ = ["ARCHITECTURE", "SmallConfig", "SmallModel", "start_as_transform"]

ARCHITECTURE = Architecture(
    name="small",
    title="small",
    config=SmallConfig,
    model=SmallModel,
    presets={"box": SmallConfig(), "tiny": SmallConfig.tiny()},
    starts={"transform": start_as_transform},
)
