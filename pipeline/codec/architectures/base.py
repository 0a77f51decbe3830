"""The description of an architecture, through which the rest of the project uses it.

The config (`pipeline.codec.config.Config`) gives sizes in pixels, memory and noise; the model
(`pipeline.codec.model.Model`) has the networks and the entropy coder.
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

    Files and recipes use `name`, reports use `title`. `presets` are named configs; a recipe that
    names none starts from the config's own defaults.
    """

    name: str
    title: str
    config: type[C]
    model: Callable[[C], Model]
    presets: Mapping[str, C]
    # Makes the auxiliary model for the causal context adjustment term; None if there is none.
    auxiliary: Callable[[C], AuxiliaryModel] | None = None
    # How many groups of `Model.group_bits` count as early; 0 if there is only one group.
    early_groups: Callable[[C], int] = lambda config: 0
    # Initialisations other than the random one, by the names that recipes give them.
    starts: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    # Returns the networks in numpy, which start without torch (`pipeline.codec.light`).
    light: Callable[[], LightForm] | None = None
    read_published: Importer | None = None
    # Parameters of the published model, in millions, for a report to compare with.
    published_millions: float | None = None

    def config_of(self, fields: Mapping[str, Any]) -> C:
        """Return the config of `fields`: an optional `preset`, and the fields that differ from it.

        Raises `CodecError` naming the part that is unknown or unusable.
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
