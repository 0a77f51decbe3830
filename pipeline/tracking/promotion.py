"""Whether a challenger's measured curve is better than the champion's beyond the noise.

The noise is that of the pictures: sets drawn from the measured ones, with replacement, the same
for both (paired), give a distribution of BD-rates; its middle 95 % is the interval (the percentile
bootstrap: B. Efron, "Bootstrap methods: another look at the jackknife", 1979). The challenger is
better when the whole interval lies below zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tracking.errors import TrackingError
from pipeline.tracking.registry import Version, find, list_versions
from pipeline.tracking.store import client, explained

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

CHAMPION, CHALLENGER = "champion", "challenger"
DRAWS = 1000
SHARE_DEFINED = 0.95
# What makes versions one training: the same recipe, pictures and code, at the same stage.
TRAINING = ("recipe_digest", "data_digest", "git_commit", "stage", "distortion")

# BD-rate in percent of (anchor rates, anchor qualities, tested rates, tested qualities); raises
# ValueError where it is not defined.
BDRate = Callable[["Floats", "Floats", "Floats", "Floats"], float]


@dataclass(frozen=True, eq=False)
class Curve:
    """A training's measured versions: `rates` (bpp) and `qualities` (dB), versions x pictures."""

    rates: Floats
    qualities: Floats


@dataclass(frozen=True)
class Decision:
    """What came of a challenge. `bd_rate` and its 95 % interval are in percent."""

    name: str
    champion: str | None
    challenger: str
    better: bool
    why: str
    bd_rate: float | None = None
    interval: tuple[float, float] | None = None
    pictures: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"moved": self.better, **asdict(self)}


def contenders(name: str) -> tuple[list[Version], list[Version]]:
    """Return the champion's training and the challenger's: a version a rate, each alias first.

    No champion, or one of the challenger's own training: the first list is empty. Raises
    TrackingError when there is no challenger.
    """
    versions = list_versions(name)
    challenger = find(versions, CHALLENGER)
    if challenger is None:
        raise TrackingError(
            f"{name} has no challenger: pipeline register CHECKPOINT --name {name} "
            f"--alias {CHALLENGER}"
        )
    champion = find(versions, CHAMPION)
    if champion is None or _training(champion) == _training(challenger):
        return [], _family(versions, challenger)
    return _family(versions, champion), _family(versions, challenger)


def decide(
    name: str,
    champion: tuple[Version, Curve],
    challenger: tuple[Version, Curve],
    bd_rate: BDRate,
    seed: int = 0,
) -> Decision:
    """Compare both curves, measured on the same pictures in the same order."""
    pictures = challenger[1].rates.shape[1]
    old, new = champion[0].uri, challenger[0].uri
    try:
        value = _bd_rate(champion[1], challenger[1], np.arange(pictures), bd_rate)
    except ValueError as error:
        why = f"{new} can't be compared with {old}: BD-rate is not defined, {error}"
        return Decision(name, old, new, False, why, pictures=pictures)
    draws = _draws(champion[1], challenger[1], bd_rate, seed)
    told = f"{new} needs {abs(value):.1f} % {'fewer' if value < 0 else 'more'} bits than {old} at "
    told += f"equal quality over {pictures} pictures"
    if len(draws) < SHARE_DEFINED * DRAWS:
        why = f"{told}, but on {DRAWS - len(draws)} of {DRAWS} drawn sets BD-rate is not defined"
        return Decision(name, old, new, False, why, value, None, pictures)
    low, high = (float(edge) for edge in np.percentile(draws, (2.5, 97.5)))
    interval = f"95 % of drawn sets of pictures give {low:+.1f} to {high:+.1f} %"
    if high < 0:
        why = f"{told} ({interval}): better beyond the noise"
    elif low > 0:
        why = f"{told} ({interval}): worse beyond the noise"
    else:
        why = f"{told}, which is within the noise ({interval}): more pictures would tell"
    return Decision(name, old, new, high < 0, why, value, (low, high), pictures)


def unchallenged(name: str, challenger: Version) -> Decision:
    """Return the decision where there is no champion of another training."""
    holder = find(list_versions(name), CHAMPION)
    if holder is None:
        why = f"{name} had no champion, so {challenger.uri} is the first"
        return Decision(name, None, challenger.uri, True, why)
    why = f"{challenger.uri} comes from the champion's own training: nothing to decide"
    return Decision(name, holder.uri, challenger.uri, False, why)


def enact(decision: Decision) -> None:
    """Move the alias where the challenger is better; write the reason on its version anyway."""
    name, _, number = decision.challenger.removeprefix("models:/").rpartition("/")
    where = client()
    with explained(where.tracking_uri):
        where.set_model_version_tag(name, number, "promotion", decision.why)
        if decision.better:
            where.set_registered_model_alias(name, CHAMPION, number)


def _family(versions: Sequence[Version], first: Version) -> list[Version]:
    """Return `first` and the newest version of each other rate of its training."""
    others = {
        version.rate_weight: version
        for version in versions
        if _training(version) == _training(first) and version.rate_weight != first.rate_weight
    }
    return [first, *others.values()]


def _training(version: Version) -> tuple[str, ...]:
    """Return what identifies the version's training; one without a recipe stands alone."""
    if "recipe_digest" not in version.tags:
        return (version.uri,)
    return tuple(version.tags.get(key, "") for key in TRAINING)


def _draws(champion: Curve, challenger: Curve, bd_rate: BDRate, seed: int) -> list[float]:
    """Return the BD-rates of drawn sets; fewer than DRAWS where some are not defined."""
    generator = np.random.default_rng(seed)
    pictures = challenger.rates.shape[1]
    found = []
    for drawn in generator.integers(pictures, size=(DRAWS, pictures)):
        try:
            found.append(_bd_rate(champion, challenger, drawn, bd_rate))
        except ValueError:
            continue
    return found


def _bd_rate(
    champion: Curve, challenger: Curve, pictures: npt.NDArray[np.int64], bd_rate: BDRate
) -> float:
    means = [
        values[:, pictures].mean(axis=1)
        for curve in (champion, challenger)
        for values in (curve.rates, curve.qualities)
    ]
    return bd_rate(*means)
