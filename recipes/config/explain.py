"""Explains each setting of a recipe: its type, its default, and its sentences in the schema."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.config.schema import Recipe
from recipes.config.settings import RecipeError


@dataclass(frozen=True)
class Setting:
    """A key of a recipe, dotted; of a list's items, without their numbers."""

    key: str
    kind: str
    default: str
    meaning: str


def settings(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a recipe, in the order of the schema."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        parts = [kind for kind in _classes(field.annotation) if issubclass(kind, BaseModel)]
        meaning = " ".join((field.description or "").split())
        yield Setting(key, _kind(field.annotation), _default(field), meaning)
        for part in parts:
            yield from settings(part, f"{key}.")


def explain(key: str) -> list[Setting]:
    """Return the setting `key` with those under it, or those whose last name it is.

    Raises `RecipeError`, with the nearest names, when there is none.
    """
    every = list(settings())
    asked = ".".join(part for part in key.split(".") if not part.isdecimal())
    found = _of(every, asked) or _of(every, _without_stage(asked))
    found = found or [one for one in every if one.key.endswith(f".{asked}")]
    if not found:
        names = {one.key.rpartition(".")[2] for one in every} | {one.key for one in every}
        close = difflib.get_close_matches(asked, sorted(names), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "`--explain all` lists them"
        raise RecipeError(f"no setting of a recipe is called {key}: {hint}")
    return found


def _of(every: list[Setting], key: str) -> list[Setting]:
    return [one for one in every if one.key == key or one.key.startswith(f"{key}.")]


def _without_stage(key: str) -> str:
    """Return the key without a stage's name, which stands where its number might."""
    first, *rest = key.split(".")
    return ".".join([first, *rest[1:]]) if first == "stages" and len(rest) > 1 else key


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return "none" if value is None else f"default {value}"


def _kind(annotation: Any) -> str:
    """Return a type in words of YAML."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        kinds = [_kind(kind) for kind in get_args(annotation) if kind is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return " or ".join(str(word) for word in get_args(annotation))
    if origin is list:
        return f"list of {_kind(get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return words.get(annotation, "mapping")


def _classes(annotation: Any) -> Iterator[type]:
    inner = get_args(annotation)
    if not inner and isinstance(annotation, type):
        yield annotation
    for kind in inner:
        yield from _classes(kind)
