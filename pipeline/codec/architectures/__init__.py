"""The architectures that there are, by name: nothing else in the project knows one.

An architecture is a folder here whose package has an `ARCHITECTURE` (its name, with underscores
for hyphens); or, in a package of its own,
an entry point of the group `cca_pipeline.architectures`, or what a program `register`s.
See docs/architecture.md.
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

# What files and recipes mean that name none: they are older than the choice.
DEFAULT = "cca"
ENTRY_POINTS = "cca_pipeline.architectures"

_registered: dict[str, Architecture[Any]] = {}


def register(architecture: Architecture[Any]) -> Architecture[Any]:
    """Make `architecture` known in this process, and return it.

    Raises `CodecError` when its name is another one's already.
    """
    known = _registered.get(architecture.name)
    if known not in (None, architecture) or architecture.name in _built_in():
        raise CodecError(f"there is an architecture called {architecture.name} already")
    _registered[architecture.name] = architecture
    return architecture


def forget(name: str) -> None:
    """Undo `register`, and what `load` remembers of an installed architecture."""
    _registered.pop(name, None)


def load(name: str) -> Architecture[Any]:
    """Return the architecture called `name`; an unknown one raises `CodecError`."""
    if name in _registered:
        return _registered[name]
    if name in _built_in():
        found = import_module(f"{__name__}.{folder_name(name)}").ARCHITECTURE
    else:
        entry = entry_point(name)
        if entry is None:
            raise CodecError(
                f"there is no architecture called {name!r}; known are {', '.join(names())}"
            )
        found = entry.load()
    if not isinstance(found, Architecture) or found.name != name:
        raise CodecError(f"what is installed as the architecture {name} is none, or another one")
    _registered[name] = found
    return found


def names() -> list[str]:
    """Return the names of all architectures, built in, installed or registered."""
    installed = entry_points(group=ENTRY_POINTS).names
    return sorted({*_built_in(), *installed, *_registered})


def is_built_in(name: str) -> bool:
    """Tell whether `name` is one of the codec's own, which every copy of it has."""
    return name in _built_in()


def entry_point(name: str) -> EntryPoint | None:
    """Return the entry point of an installed architecture; None where `name` is not installed."""
    return next(iter(entry_points(group=ENTRY_POINTS, name=name)), None)


def config_of(description: str | Mapping[str, Any]) -> Config:
    """Return the config that a recipe, a model file or a checkpoint describes.

    A mapping has an `architecture` (by default "cca"), a `preset` if any, and the fields that
    differ from it; a word is an architecture, ARCHITECTURE/PRESET, or a preset of the default
    architecture. Raises `CodecError` naming what is unknown or not usable.
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
    """Return the name of the folder that the architecture `name` has among the codec's own."""
    return name.replace("-", "_")


def _built_in() -> set[str]:
    packages = (module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {package.replace("_", "-") for package in packages}
