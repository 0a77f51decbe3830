"""Times and sizes in profiles: which are understood, and what to write instead of others."""

from __future__ import annotations

import math
import re

from pipeline.common.errors import UsageError
from pipeline.common.sizes import in_mebibytes, parse_size

# As Slurm writes times: 10:30, 24:00:00, 1-12, 1-00:00, 1-00:00:00.
CLOCK = re.compile(r"(?:(?P<days>[0-9]+)-)?(?P<rest>[0-9]+(?::[0-9]+){0,2})")
MIB = 1 << 20
UNITS = ("T", 1 << 40), ("G", 1 << 30), ("M", MIB)


def minutes_from(value: object) -> object:
    """Return `value` if it is a number of minutes.

    Raises ValueError for a time of day or of Slurm, with the number to write instead: `10:30` is
    ten minutes and a half to Slurm, and ten hours and a half to most others.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"[0-9]+(\.0*)?", text):
        return int(text.partition(".")[0])
    found = CLOCK.fullmatch(text)
    if found is None:
        raise ValueError(f"write a number of minutes (given: {text!r})")
    raise ValueError(f"write a number of minutes, {_meant(text, found)}, instead of {text}")


def _meant(text: str, found: re.Match[str]) -> str:
    numbers = [int(part) for part in found["rest"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return str(math.ceil(int(found["days"]) * 1440 + hours * 60 + minutes + seconds / 60))
    if len(numbers) == 3:
        return str(math.ceil(numbers[0] * 60 + numbers[1] + numbers[2] / 60))
    as_hours, as_slurm = numbers[0] * 60 + numbers[1], math.ceil(numbers[0] + numbers[1] / 60)
    return f"{as_hours} for {numbers[0]} hours or {as_slurm} for {numbers[0]} minutes"


def memory_from(value: object) -> object:
    """Return an amount of memory as every engine takes it: a whole number of M, G or T.

    These count by 1024, as in Slurm: `64G` and `64GiB` are the same, and `64GB`, which counts by
    1000, is the next whole number of M above it. A bare number has no unit and is refused.

    Raises ValueError where `value` is not an amount with a unit.
    """
    try:
        if not isinstance(value, str) or not value.strip().rstrip("Bb")[-1:].isalpha():
            raise UsageError("there is no unit")
        total = in_mebibytes(parse_size(value)) * MIB
    except UsageError as error:
        raise ValueError(
            f"write an amount and its unit, as in 4000M or 64G (given: {value!r})"
        ) from error
    unit, size = next((unit, size) for unit, size in UNITS if total % size == 0)
    return f"{total // size}{unit}"
