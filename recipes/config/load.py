"""Read a recipe: a YAML file, then `key=value` overrides, all mistakes reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline.common.documents import DocumentError, check_depth, reading_yaml
from recipes.config.bundled import shipped
from recipes.config.errors import sentence
from recipes.config.optimizing import named
from recipes.config.schema import Recipe
from recipes.config.settings import RecipeError, fastest

# A step into a recipe: the name of a field, or the number of a list's item.
Path_ = tuple[str | int, ...]
# Settings that a word may stand for, and what says them one by one.
WORDS: dict[str, Callable[[object], object]] = {"optimizer": named, "speed": fastest}
# Letters of another library's error that one of ours repeats at most.
LONGEST = 500
# Pydantic's names of a union's simple branches; no field of a recipe is called so.
_SIMPLE = re.compile(r"str|float|int|function-.*")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in the YAML file `path`, changed by `overrides`.

    An override is `key=value`, the key dotted, a stage by number or by name
    (`stages.0.steps=200`, `stages.base.lr=1e-4`), the value as YAML would read it.
    A recipe of this project is found by its name, `recipes/demo.yaml`, from any folder.
    Raises `RecipeError` with every mistake of the file and the overrides in one message.
    """
    content = _read(shipped(Path(path)))
    mistakes: list[str] = []
    for override in overrides:
        try:
            _apply(content, override)
        except RecipeError as error:
            mistakes.append(str(error))
    recipe = _validated(_resolved(content, path), mistakes)
    if recipe is None or mistakes:
        raise RecipeError(f"{path}: " + "; ".join(mistakes))
    recipe.runs()
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        with reading_yaml():
            text = path.read_text(encoding="utf-8")  # once: it may be a pipe
            check_depth(text)
            content = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: there is no such recipe (`pipeline recipes` lists those of the project)"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: can't be read as a recipe ({error})") from error
    except (DocumentError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path}: is not YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is a list")
    return {str(key): value for key, value in content.items()}


def _resolved(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Fill in `${key}` references; a value `???` must still be given."""
    try:
        made = OmegaConf.create(content)
        resolved = OmegaConf.to_container(made, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {_one_line(error)}") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _apply(content: dict[str, Any], override: str) -> None:
    try:
        override.encode()
    except UnicodeEncodeError:
        raise RecipeError(
            f"{override!a} has letters that this shell's locale does not know: set"
            " LC_ALL=C.UTF-8, or PYTHONUTF8=1"
        ) from None
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is not of the form key=value")
    value = _value(override, text)
    parts = key.split(".")
    place: Any = content
    for index, part in enumerate(parts[:-1]):
        place = _enter(place, part, ".".join(parts[: index + 1]))
    last = parts[-1]
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    else:
        place[last] = value


def _value(override: str, text: str) -> Any:
    if _cut_short(text):
        # YAML would take the rest for a comment; a shell has none here.
        if text.lstrip()[:1] in "[{\"'":
            raise RecipeError(f"{override!r}: put quotes around what has a # in it")
        return text
    try:
        # OmegaConf's reading of YAML, in which 1e-4 is a number.
        with reading_yaml():
            check_depth(f"value: {text}")
            read = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    except (DocumentError, OmegaConfBaseException) as error:
        raise RecipeError(f"{override!r}: the value is not YAML") from error
    if not isinstance(read, dict) or set(read) != {"value"}:
        raise RecipeError(f"{override!r}: the value is not YAML")
    return read["value"]


def _cut_short(text: str) -> bool:
    """Tell whether YAML reads less than all of `text`: what follows a # is a comment."""
    try:
        tokens = [token for token in yaml.scan(text) if token.end_mark.index > 0]
    except yaml.YAMLError:
        return False
    kept = (yaml.StreamEndToken, yaml.BlockEndToken)
    end = max((one.end_mark.index for one in tokens if not isinstance(one, kept)), default=0)
    return "#" in text[end:]


def _enter(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        inner = place[_index(place, part, key)]
    else:
        if place.get(part) is None:
            place[part] = {}
        # A word that stands for several settings, some of which are given as well, and differ.
        if part in WORDS:
            place[part] = WORDS[part](place[part])
        inner = place[part]
    if not isinstance(inner, dict | list):
        raise RecipeError(f"{key} is {inner!r}, a value with no keys of its own")
    return inner


def _index(items: list[Any], part: str, key: str) -> int:
    """Return the number of the item that `part` names: by number, or a stage by its name."""
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    names = [item.get("name") if isinstance(item, Mapping) else None for item in items]
    if part in names:
        return names.index(part)
    known = ", ".join(str(name) for name in names if name is not None)
    raise RecipeError(f"{key}: there are only 0 to {len(items) - 1}, or by name {known}")


def _validated(content: dict[str, Any], mistakes: list[str]) -> Recipe | None:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        mistakes.extend(dict.fromkeys(_sentences(error, content)))
        return None


def _sentences(error: ValidationError, content: dict[str, Any]) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=False):
        place, fits = _locate(content, detail["loc"])
        if not fits:
            continue
        nearest = _nearest(place) if detail["type"] == "extra_forbidden" else ""
        yield sentence(detail, ".".join(str(part) for part in place), nearest)


def _locate(content: Any, steps: Path_) -> tuple[Path_, bool]:
    """Return the place in `content` that pydantic's location means, without names of branches.

    Each branch of a union complains; the second result tells whether this one is of the shape
    (list, mapping or single value) that the value has, so that its complaint matters.
    """
    place: list[str | int] = []
    fits = True
    value = content
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        simple = _SIMPLE.fullmatch(str(step))
        if isinstance(value, Mapping) and (step in value or (last and not simple)):
            value = value.get(str(step))
            place.append(step)
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step] if step < len(value) else None
            place.append(step)
        else:
            branch = str(step).startswith(("list", "dict", "constrained-dict"))
            fits = fits and branch == isinstance(value, list | dict)
    return tuple(place), fits


def _nearest(place: Path_) -> str:
    """Return a hint at the right spelling of the last step of `place`."""
    model: type[BaseModel] = Recipe
    for step in place[:-1]:
        if isinstance(step, int):
            continue
        model = _part(model, step) or model
    close = difflib.get_close_matches(str(place[-1]), list(model.model_fields), n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (there are: {', '.join(model.model_fields)})"


def _part(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the part of a recipe that the field `name` of `model` holds, if it is one."""
    field = model.model_fields.get(name)
    candidates = [] if field is None else _classes(field.annotation)
    return next((kind for kind in candidates if issubclass(kind, BaseModel)), None)


def _classes(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", None):
        return [annotation]
    return [kind for inner in getattr(annotation, "__args__", ()) for kind in _classes(inner)]


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    # The grammar of `${...}` repeats what it could not read, however long.
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}..."
