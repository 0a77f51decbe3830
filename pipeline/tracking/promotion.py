"""Decides whether a challenger replaces the champion: only if it is better beyond the noise.

Tracking finds the two and records the decision. Evaluation measures them: how many percent more
bits the challenger needs, and the interval in which 95 % of sets of pictures drawn from the
measured ones lie. The whole interval must lie below zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.tracking.errors import TrackingError
from pipeline.tracking.registry import Version, find, list_versions
from pipeline.tracking.store import client, explained

CHAMPION, CHALLENGER = "champion", "challenger"
# Tags that identify a training, besides the run that all its versions began in (or their code).
TRAINING = ("recipe_digest", "data_digest", "stage", "distortion")


@dataclass(frozen=True)
class Gain:
    """How many percent more bits the challenger needs, the interval of that, and the method."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Decision:
    """The outcome of a challenge; `gain` is None if it could not be, or was not, measured."""

    name: str
    champion: str | None
    challenger: str
    better: bool
    why: str
    pictures: int = 0
    gain: Gain | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"moved": self.better, **asdict(self)}


def contenders(name: str) -> tuple[list[Version], list[Version]]:
    """Return the versions of the champion's training and of the challenger's, one for each rate.

    The version with the alias comes first. The first list is empty if there is no champion, or if
    it is of the challenger's own training. Raises TrackingError when there is no challenger.
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


def judge(
    name: str, champion: Version, challenger: Version, gain: Gain | str, pictures: int
) -> Decision:
    """Decide by `gain`, which may also be the reason why there is none."""
    old, new = champion.uri, challenger.uri
    if isinstance(gain, str):
        why = f"{new} can't be compared with {old} on these {pictures} pictures: {gain}"
        return Decision(name, old, new, False, why, pictures)
    more = "fewer" if gain.value < 0 else "more"
    measured = (
        f"{new} needs {abs(gain.value):.1f} % {more} bits than {old} over {pictures} pictures "
        f"({gain.method}; 95 % of drawn sets give {gain.low:+.1f} to {gain.high:+.1f} %)"
    )
    if gain.high < 0:
        outcome = "better beyond the noise"
    elif gain.low > 0:
        outcome = "worse beyond the noise"
    else:
        outcome = "within the noise, more pictures would tell"
    return Decision(name, old, new, gain.high < 0, f"{measured}: {outcome}", pictures, gain)


def unchallenged(name: str, challenger: Version) -> Decision:
    """Return the decision if there is no champion of another training."""
    holder = find(list_versions(name), CHAMPION)
    if holder is None:
        why = f"{name} had no champion, so {challenger.uri} is the first"
        return Decision(name, None, challenger.uri, True, why)
    why = f"{challenger.uri} comes from the champion's own training: nothing to decide"
    return Decision(name, holder.uri, challenger.uri, False, why)


def enact(decision: Decision, measured: Mapping[str, Mapping[str, float | str]]) -> None:
    """Move the alias if the challenger is better; record the reason and the measurements.

    `measured` has the tags that versions get, by their `models:/` names.
    """
    name, _, number = decision.challenger.removeprefix("models:/").rpartition("/")
    where = client()
    with explained(where.tracking_uri):
        for uri, values in measured.items():
            for key, value in values.items():
                where.set_model_version_tag(name, uri.rpartition("/")[2], key, str(value))
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
    begun = version.tags.get("training") or version.tags.get("git_commit", "")
    return (begun, *(version.tags.get(key, "") for key in TRAINING))
