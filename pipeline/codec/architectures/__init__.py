"""The registry of architectures, by name. No other part of the project imports an architecture.

There are three ways to add one: a folder here whose package defines `ARCHITECTURE` (the folder has
the architecture's name, with underscores for hyphens); an installed package with an entry point of
the group `cca_pipeline.architectures`; or a call of `register`. See docs/architecture.md.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pipeline.codec.architectures.base import Architecture
from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError

__all__ = [
    "DEFAULT",
    "ENTRY_POINTS",
    "Architecture",
    "config_of",
    "entry_point",
    "folder_name",
    "forget",
    "is_built_in",
    "load",
    "names",
    "register",
]

# Files and recipes that name no architecture mean this one: they are older than the choice.
DEFAULT = "cca"
ENTRY_POINTS = "cca_pipeline.architectures"

_registered: dict[str, Architecture[Any]] = {}


def register(architecture: Architecture[Any]) -> Architecture[Any]:
    """Make `architecture` known in this process, and return it.

    Raises `CodecError` when another architecture has this name already.
    """
    known = _registered.get(architecture.name)
    if known not in (None, architecture) or architecture.name in _built_in():
        raise CodecError(f"there is an architecture called {architecture.name} already")
    _registered[architecture.name] = architecture
    return architecture


def forget(name: str) -> None:
    """Undo `register`, and forget an installed architecture that `load` has cached."""
    _registered.pop(name, None)


def load(name: str) -> Architecture[Any]:
    """Return the architecture called `name`; an unknown one raises `CodecError`."""
    if name in _registered:
        return _registered[name]
    if name in _built_in():
        architecture = import_module(f"{__name__}.{folder_name(name)}").ARCHITECTURE
    else:
        entry = entry_point(name)
        if entry is None:
            raise CodecError(
                f"there is no architecture called {name!r}; known are {', '.join(names())}"
            )
        architecture = entry.load()
    if not isinstance(architecture, Architecture) or architecture.name != name:
        raise CodecError(f"what is installed as {name!r} is not an architecture of that name")
    _registered[name] = architecture
    return architecture


def names() -> list[str]:
    """Return the names of all architectures, built in, installed or registered."""
    installed = entry_points(group=ENTRY_POINTS).names
    return sorted({*_built_in(), *installed, *_registered})


def is_built_in(name: str) -> bool:
    """Tell whether the architecture `name` is part of this package."""
    return name in _built_in()


def entry_point(name: str) -> EntryPoint | None:
    """Return the entry point of an installed architecture; None where `name` is not installed."""
    return next(iter(entry_points(group=ENTRY_POINTS, name=name)), None)


def config_of(description: str | Mapping[str, Any]) -> Config:
    """Return the config that a recipe, a model file or a checkpoint describes.

    A mapping has an `architecture` (by default "cca"), an optional `preset`, and the fields that
    differ from the preset. A string is an architecture, ARCHITECTURE/PRESET, or a preset of the
    default architecture. Raises `CodecError` naming the part that is unknown or unusable.
    """
    if isinstance(description, str):
        description = _in_words(description)
    rest = dict(description)
    name = rest.pop("architecture", DEFAULT)
    if not isinstance(name, str):
        raise CodecError(f"architecture must be a name, not {name!r}")
    config: Config = load(name).config_of(rest)
    return config


def _in_words(word: str) -> dict[str, str]:
    name, _, preset = word.partition("/")
    if preset:
        return {"architecture": name, "preset": preset}
    presets = load(DEFAULT).presets
    if word in presets:
        return {"preset": word}
    if word in names():
        return {"architecture": word}
    raise CodecError(
        f"there is no model called {word!r}; known are {', '.join(presets)}, and the "
        f"architectures {', '.join(names())}"
    )


def folder_name(name: str) -> str:
    """Return the folder of the built-in architecture `name`, relative to this package."""
    return name.replace("-", "_")


def _built_in() -> set[str]:
    packages = (module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {package.replace("_", "-") for package in packages}
