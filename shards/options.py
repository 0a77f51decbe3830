"""What a split is made with: everything that decides its bytes, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from shards.augment.spec import BEFORE, KEYS, Spec, completed, read_dict
from shards.errors import ShardsError

CHECKS = ("full", "header", "none")
# Twice Pillow's MAX_IMAGE_PIXELS, where it refuses to open a picture.
MAX_AREA = 178_956_970
DEDUPES = ("none", "exact", "near")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Options:
    """All options that decide the bytes of the shards, together with the source.

    Attributes:
        split: name of the split, or several with their shares: "train=0.98,val=0.02".
        seed: of the permutation that mixes the listing before it is cut into shards.
        shard_size: largest size of a shard's tar in bytes, unless a single sample is larger.
        min_side: smallest shorter side of a picture in pixels.
        max_area: largest number of pixels of a picture; larger ones are never decoded.
        max_aspect: largest ratio of longer to shorter side; 0: any.
        check: "full" decodes every picture, "header" reads its header, "none" also reads it but
            keeps pictures that it cannot read.
        dedupe: "exact" rejects pictures whose bytes came earlier in the listing, "near" also
            those that look the same.
        labels: whether class folders become labels.
        augment: the result of `augment_options`, or None to keep the original bytes.
    """

    split: str = "train"
    seed: int = 0
    shard_size: int = 256_000_000
    min_side: int = 256
    max_area: int = MAX_AREA
    max_aspect: float = 0.0
    check: str = "full"
    dedupe: str = "none"
    labels: bool = True
    augment: dict[str, Any] | None = None

    @property
    def spec(self) -> Spec | None:
        """What the option `augment` asks for."""
        return spec_of(self.augment)

    def __post_init__(self) -> None:
        parse_split(self.split)
        for name, allowed in (("check", CHECKS), ("dedupe", DEDUPES)):
            if getattr(self, name) not in allowed:
                raise ShardsError(
                    f"--{name} is {getattr(self, name)!r}: give one of {', '.join(allowed)}"
                )
        for name in ("shard_size", "max_area"):
            if getattr(self, name) < 1:
                raise ShardsError(f"--{name.replace('_', '-')} must be at least 1")
        if self.max_area > MAX_AREA:
            raise ShardsError(f"--max-area must be at most {MAX_AREA}, the decoder's own limit")
        for name in ("seed", "min_side", "max_aspect"):
            if getattr(self, name) < 0:
                raise ShardsError(f"--{name.replace('_', '-')} must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Options:
        """Return the options that `to_dict` gave; unknown names are of a later version."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})

    def going_on(self, before: Mapping[str, Any] | None) -> Options:
        """Return these options with what their augmentation leaves open.

        It is as in the options `before` that stored work was begun with, or as today.
        """
        if self.augment is None:
            return self
        then = before.get("augment") if before else None
        return replace(self, augment=completed(self.augment, then))

    def difference(self, other: Mapping[str, Any]) -> list[str]:
        """Return, a phrase each, how `other` (options of before) differs from these."""
        mine = self.to_dict()
        return [
            f"--{name.replace('_', '-')} was {other.get(name)!r} and is now {mine.get(name)!r}"
            for name in sorted(mine.keys() | other.keys())
            if mine.get(name) != other.get(name)
        ]


def crops_of(augment: Mapping[str, Any] | None) -> int:
    """Return how many samples a picture gives under the option `augment`."""
    spec = spec_of(augment)
    return spec.crops if spec else 1


def spec_of(augment: Mapping[str, Any] | None) -> Spec | None:
    """Return the specification inside the option `augment`."""
    if augment is None:
        return None
    if not isinstance(augment, Mapping) or not augment.keys() >= {"format", "operations"}:
        raise ShardsError("the option `augment` of these shards says nothing of operations")
    return Spec.from_dict(BEFORE | {key: augment[key] for key in KEYS if key in augment})


def augment_options(path: str, device: str) -> dict[str, Any]:
    """Return the option `augment` for a specification in a file, worked out on `device`.

    The device's kind belongs to it: another one may round otherwise.

    Raises:
        ShardsError: the file has mistakes.
        UsageError: there is no such device.
    """
    from pipeline.common.devices import kind_of
    from shards.augment.operations import Augmenter

    given = read_dict(path)
    spec = Spec.from_dict(given, str(path))
    if spec.crops_area > MAX_AREA:
        raise ShardsError(f"{path}: the crops of one picture have over {MAX_AREA} pixels together")
    kinds = {kind_of(one) for one in parse_devices(device) or [device]}
    Augmenter(spec, 0)  # tries Kornia's operations
    said = {key: value for key, value in spec.to_dict().items() if key in ("format", *given)}
    return {**said, "device": kinds.pop()}


def parse_devices(text: str) -> list[str]:
    """Return torch's names of the GPUs that `cuda:0,2` names; none for `auto`, `cpu` or `cuda`.

    Raises:
        ShardsError: it is not understood.
    """
    if text in ("auto", "cpu", "cuda"):
        return []
    match = re.fullmatch(r"cuda:(\d+(?:,\d+)*)", text)
    if match is None:
        raise ShardsError(f"--device {text!r} is not known: give auto, cpu, cuda or cuda:0,2")
    return [f"cuda:{number}" for number in dict.fromkeys(match[1].split(","))]


def devices_for(augment: Mapping[str, Any] | None) -> list[str]:
    """Return torch's names of the devices that are used where none is named: all GPUs, or none."""
    if augment is None or augment.get("device") != "cuda":
        return []
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def parse_part(text: str) -> tuple[int, int]:
    """Return (I, N) of `I/N`, 0 <= I < N; raises ShardsError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise ShardsError(f"part {text!r} is not understood: write I/N with 0 <= I < N, like 0/8")
    return int(match[1]), int(match[2])


def parse_split(text: str) -> dict[str, float]:
    """Return {name: share} of `train` or `train=0.98,val=0.02`; shares add up to 1.

    Raises:
        ShardsError: a name or a share is not understood.
    """
    names = [part.partition("=") for part in text.split(",")]
    if len(names) == 1 and not names[0][1]:
        shares = {names[0][0].strip(): 1.0}
    else:
        shares = {}
        for name, _, share in names:
            if not re.fullmatch(r"\d*\.?\d+", share.strip()) or name.strip() in shares:
                raise ShardsError(_split_help(text))
            shares[name.strip()] = float(share)
    if not all(NAME.fullmatch(name) for name in shares) or not all(shares.values()):
        raise ShardsError(_split_help(text))
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ShardsError(f"the shares of --split {text} add up to {sum(shares.values()):g}, not 1")
    return shares


def _split_help(text: str) -> str:
    return (
        f"--split {text!r} is not understood: write a name of letters, digits, - and _, "
        "or names with shares, like train=0.98,val=0.02"
    )
