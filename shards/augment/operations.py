"""Runs the operations of a specification on pictures.

Every draw is seeded by (seed, key of the picture, number of the operation), so a picture's result
does not depend on other pictures, on its worker or on its batch.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.common.pictures.limits import MAX_PIXELS
from shards.augment.measures import blocking, detail
from shards.augment.resampling import Pixels, Scaling
from shards.augment.spec import Operation, Spec
from shards.augment.surfaces import Device, surface_for
from shards.errors import ShardsError

if TYPE_CHECKING:
    import torch

BLOCKED = "jpeg artefacts"
FAILED = "not augmented"
TRIES = 8  # places that are drawn for a crop with `detail`
FLIPS = {"RandomHorizontalFlip": True, "RandomVerticalFlip": False}


@dataclass(frozen=True)
class Refused:
    """Why there is no result of a picture: a reason of few words, and more."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Picture:
    """A picture on its way.

    `pixels` are as the surface has them, `size` is the height and width that they have once the
    resize that is due, if any, is done. `crop` counts the crops of one picture.
    """

    key: str
    pixels: Any
    size: tuple[int, int]
    crop: int = 0
    due: Scaling | None = None


class Augmenter:
    """Applies a specification to batches of pictures.

    Raises `ShardsError`, naming every operation that does not exist or has wrong parameters.
    """

    def __init__(
        self, spec: Spec, seed: int, device: str = "cpu", surface: Device | None = None
    ) -> None:
        self.spec = spec
        self._surface = surface or surface_for(spec.version, device)
        self._steps = _steps(spec.operations, seed, self._surface)

    @property
    def device(self) -> torch.device | None:
        """Where pictures are worked on; None: in arrays, on this processor."""
        return self._surface.device

    def __call__(self, pictures: Iterable[tuple[str, Pixels]]) -> dict[str, list[Pixels]]:
        """Return, by key, the results of each picture (uint8 (H, W, 3)); none: it is too small.

        Raises:
            ShardsError: an operation fails on a picture.
        """
        results = self.each(pictures)
        for one in results.values():
            if isinstance(one, Refused) and one.reason == FAILED:
                raise ShardsError(one.detail)
        return {key: [] if isinstance(one, Refused) else one for key, one in results.items()}

    def each(self, pictures: Iterable[tuple[str, Pixels]]) -> dict[str, list[Pixels] | Refused]:
        """Return, by key, the results of each picture, or why there are none.

        Raises:
            torch.OutOfMemoryError: the batch does not fit the device.
        """
        batch = Batch(self._surface)
        results: dict[str, list[Pixels] | Refused] = {}
        found: dict[str, list[Pixels]] = {}
        with self._surface_mode():
            for key, pixels in pictures:
                found[key] = []
                size = (pixels.shape[0], pixels.shape[1])
                batch.pictures.append(Picture(key, self._surface.load(pixels), size))
            for step in self._steps:
                step(batch)
            for one in sorted(batch.done(), key=lambda one: (one.key, one.crop)):
                found[one.key].append(self._surface.to_bytes(one.pixels))
        results |= found
        return results | batch.refused

    def _surface_mode(self) -> contextlib.AbstractContextManager[Any]:
        if self._surface.device is None:
            return contextlib.nullcontext()
        import torch

        return torch.inference_mode()


class Batch:
    """Pictures that are worked on together, and those that were refused on the way."""

    def __init__(self, surface: Device) -> None:
        self.surface = surface
        self.pictures: list[Picture] = []
        self.refused: dict[str, Refused] = {}

    def done(self) -> list[Picture]:
        """Return the pictures once every resize that is due has been done.

        A picture that would become larger than any that is read is refused.
        """
        for one in list(self.pictures):
            if one.due is not None and one.size[0] * one.size[1] > MAX_PIXELS:
                words = f"it would become {one.size[1]} x {one.size[0]}, over {MAX_PIXELS} pixels"
                self.refuse(one.key, FAILED, words)
        due = [one for one in self.pictures if one.due is not None]
        if due:
            scalings = [one.due for one in due if one.due is not None]
            made = iter(self.surface.resized([one.pixels for one in due], scalings))
            self.pictures = [
                replace(one, pixels=next(made), due=None) if one.due is not None else one
                for one in self.pictures
            ]
        return self.pictures

    def refuse(self, key: str, reason: str, words: str) -> None:
        """Leave out all that came of a picture."""
        self.refused.setdefault(key, Refused(reason, words))
        self.pictures = [one for one in self.pictures if one.key != key]


@dataclass(frozen=True)
class Draws:
    """Seeds of one operation's draws."""

    seed: int
    number: int

    def seed_of(self, one: Picture) -> int:
        """Return a seed of 63 bits for a picture."""
        text = f"{self.seed} {self.number} {one.crop} {one.key}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def of(self, one: Picture) -> np.random.Generator:
        """Return the generator of a picture's draws."""
        return np.random.Generator(np.random.Philox(self.seed_of(one)))


Step = Callable[[Batch], None]


def _steps(operations: Sequence[Operation], seed: int, surface: Device) -> list[Step]:
    steps, mistakes = [], []
    for number, one in enumerate(operations):
        try:
            steps.append(_step(one, Draws(seed, number), surface))
        except ShardsError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ShardsError("; ".join(mistakes))
    return steps


def _step(operation: Operation, draws: Draws, surface: Device) -> Step:
    if operation.name in STEPS:
        return STEPS[operation.name](operation.parameters, draws)
    chance = operation.parameters.get("p", 0.5)
    if operation.name in FLIPS and operation.parameters.keys() <= {"p"}:
        _check_chance(operation.name, chance)
        return _flip_step(FLIPS[operation.name], chance, draws)
    from shards.augment.kornias import kornia_operation  # imports torch and Kornia

    _check_chance(operation.name, chance)
    changed = kornia_operation(operation)

    def step(batch: Batch) -> None:
        for one in list(batch.done()):
            if draws.of(one).random() < chance:
                try:
                    pixels = changed(surface.floats(one.pixels), draws.seed_of(one))
                except ShardsError as error:
                    batch.refuse(one.key, FAILED, str(error))
                    continue
                _put(batch, one, pixels)

    return step


def _check_chance(name: str, chance: Any) -> None:
    if not (isinstance(chance, int | float) and 0 <= chance <= 1):
        raise ShardsError(f"operation {name}: p is {chance!r}, no probability in [0, 1]")


def _put(batch: Batch, one: Picture, pixels: Any) -> None:
    """Give `one` other pixels."""
    batch.pictures = [
        replace(other, pixels=pixels) if other is one else other for other in batch.pictures
    ]


def _flip_step(across: bool, chance: float, draws: Draws) -> Step:
    def step(batch: Batch) -> None:
        batch.pictures = [
            replace(one, pixels=batch.surface.flipped(one.pixels, across))
            if draws.of(one).random() < chance
            else one
            for one in batch.done()
        ]

    return step


def _resize_step(parameters: dict[str, Any], draws: Draws) -> Step:
    side = parameters["shorter"]

    def target(one: Picture) -> tuple[tuple[int, int], str]:
        scale = side / min(one.size)
        return _scaled(one.size, scale), _filter(parameters, draws.of(one))

    return lambda batch: _resize(batch, target)


def _downscale_step(parameters: dict[str, Any], draws: Draws) -> Step:
    least = parameters.get("min_side", 1)

    def target(one: Picture) -> tuple[tuple[int, int], str]:
        random = draws.of(one)
        scale = random.uniform(*_range(parameters, random))
        scale = min(max(scale, least / min(one.size)), 1.0)
        return _scaled(one.size, scale), _filter(parameters, random)

    return lambda batch: _resize(batch, target)


def _range(parameters: dict[str, Any], random: np.random.Generator) -> tuple[float, float]:
    """Return the range of scales: the only one, or one drawn from a mixture."""
    if "mixture" not in parameters:
        low, high = parameters["scale"]
        return low, high
    shares = np.cumsum([one[2] for one in parameters["mixture"]])
    place = int(np.searchsorted(shares, random.random() * shares[-1], side="right"))
    low, high, _ = parameters["mixture"][min(place, len(shares) - 1)]
    return low, high


def _filter(parameters: dict[str, Any], random: np.random.Generator) -> str:
    names = parameters.get("filter", "bilinear")
    return str(names[int(random.integers(len(names)))]) if isinstance(names, list) else str(names)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _resize(batch: Batch, target: Callable[[Picture], tuple[tuple[int, int], str]]) -> None:
    pictures = []
    for one in batch.done():
        size, name = target(one)
        if size == one.size:
            pictures.append(one)
        else:
            due = Scaling.whole(one.size, size, name)
            pictures.append(replace(one, size=size, due=due))
    batch.pictures = pictures
    if not batch.surface.cuts_first:
        batch.done()


def _crop_step(parameters: dict[str, Any], draws: Draws) -> Step:
    def step(batch: Batch) -> None:
        batch.pictures = [
            cut for one in batch.pictures for cut in _cuts(batch.surface, one, parameters, draws)
        ]

    return step


def _cuts(surface: Device, one: Picture, parameters: dict[str, Any], draws: Draws) -> list[Picture]:
    """Return `count` squares cut at random places; none where the picture is smaller.

    With `detail`, a place is drawn anew, up to `tries` times, until the square has that much; where
    none has, the one with the most is taken.
    """
    side, count = parameters["size"], parameters.get("count", 1)
    if min(one.size) < side:
        return []
    least, tries = parameters.get("detail"), parameters.get("tries", TRIES)
    random = draws.of(one)
    cuts = []
    for number in range(count):
        best, most = None, -1.0
        for _ in range(1 if least is None else tries):
            top = int(random.integers(0, one.size[0] - side + 1))
            left = int(random.integers(0, one.size[1] - side + 1))
            cut = replace(_cut(surface, one, top, left, side), crop=one.crop * count + number)
            if least is None:
                best = cut
                break
            cut = _resized_now(surface, cut)
            found = detail(surface.green(cut.pixels))
            if found > most:
                best, most = cut, found
            if found >= least:
                break
        assert best is not None
        cuts.append(best)
    return cuts


def _cut(surface: Device, one: Picture, top: int, left: int, side: int) -> Picture:
    if one.due is not None:
        return replace(one, size=(side, side), due=one.due.cut(top, left, side))
    return replace(one, size=(side, side), pixels=surface.cut(one.pixels, top, left, side))


def _resized_now(surface: Device, one: Picture) -> Picture:
    if one.due is None:
        return one
    return replace(one, pixels=surface.resized([one.pixels], [one.due])[0], due=None)


def _blocking_step(parameters: dict[str, Any], draws: Draws) -> Step:
    limit = parameters["over"]

    def step(batch: Batch) -> None:
        for one in list(batch.done()):
            found = blocking(batch.surface.green(one.pixels))
            if found > limit:
                words = f"edges on a grid of 8 pixels are {found:.2f} times the others"
                batch.refuse(one.key, BLOCKED, f"{words}, over {limit:g}")

    return step


# Our own operations, those of `OWN`.
STEPS: dict[str, Callable[[dict[str, Any], Draws], Step]] = {
    "Resize": _resize_step,
    "RandomDownscale": _downscale_step,
    "RandomCrop": _crop_step,
    "RejectBlocking": _blocking_step,
}
