"""What an architecture states: the one place that the rest of the project asks.

Sizes in pixels, memory and noise are its config's (`pipeline.codec.config.Config`), networks and
coder its model's (`pipeline.codec.model.Model`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError

if TYPE_CHECKING:
    from pipeline.codec.light.form import LightForm
    from pipeline.codec.model import AuxiliaryModel, Model

C = TypeVar("C", bound=Config)
# Reads a published checkpoint: its model, and its auxiliary model if it has one.
Importer = Callable[[Path], "tuple[Model, AuxiliaryModel | None]"]


@dataclass(frozen=True)
class Architecture(Generic[C]):
    """A kind of network, and how to make one.

    `name` is its name in files and recipes, `title` that in reports. `presets` are named configs;
    without a preset, a recipe's fields change the config's own defaults.
    """

    name: str
    title: str
    config: type[C]
    model: Callable[[C], Model]
    presets: Mapping[str, C]
    # Makes the auxiliary model for the causal context adjustment term; None: it has none.
    auxiliary: Callable[[C], AuxiliaryModel] | None = None
    # How many groups of `Model.group_bits` count as early; 0 where there is but one group.
    early_groups: Callable[[C], int] = lambda config: 0
    # Other ways to start untrained weights than at random, by the name that recipes give them.
    starts: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    # Returns its networks without torch, for a quick start (`pipeline.codec.light`).
    light: Callable[[], LightForm] | None = None
    read_published: Importer | None = None
    # Parameters of the published model, in millions, for a report to compare with.
    published_millions: float | None = None

    def config_of(self, fields: Mapping[str, Any]) -> C:
        """Return the config that `fields` describe: a `preset`, if named, and what differs from it.

        Raises `CodecError` naming what is unknown or not usable.
        """
        rest = dict(fields)
        preset = rest.pop("preset", None)
        if preset is None:
            return self.config.from_mapping(rest)
        if preset not in self.presets:
            raise CodecError(
                f"architecture {self.name} has no preset {preset!r}; it has "
                f"{', '.join(self.presets) or 'none'}"
            )
        named = self.presets[preset].to_dict()
        named.pop("architecture", None)
        return self.config.from_mapping(named | rest)
