"""Counts descriptions that found their picture, and names those that matched none."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from shards.sources.base import Listed, clean_text, decode_path, stem_and_ending


def names_of(path: str) -> tuple[str, ...]:
    """Return the names by which a description may mean the picture at `path`, the surest first."""
    name, stem = path.rpartition("/")[2], stem_and_ending(path)[0]
    return path, name, stem, stem.rpartition("/")[2]


class Matches:
    """Pictures that have a description, and names in descriptions that match no picture."""

    def __init__(self, facts: Sequence[Listed]) -> None:
        self._facts = facts
        self._used: list[set[str]] = [set() for _ in facts]
        self._names = [set(fact.named.values()) for fact in facts]
        self._pictures = self._matched = 0

    def take(self, rows: pa.Table) -> None:
        """Count the pictures of some rows of the plan."""
        if not any(fact.named for fact in self._facts):
            return
        columns = (rows[name].to_pylist() for name in ("source", "location"))
        for number, location in zip(*columns, strict=True):
            named, names = self._facts[number].named, self._names[number]
            if not named:
                continue
            self._pictures += 1
            own = names_of(decode_path(location))
            if any(name in named or name in names for name in own):
                self._matched += 1
                self._used[number].update(own)

    def notes(self) -> list[str]:
        """Return a sentence on the matches; none where nothing is described."""
        if not any(fact.named for fact in self._facts):
            return []
        lost = [
            path
            for fact, used in zip(self._facts, self._used, strict=True)
            for path, name in fact.named.items()
            if path not in used and name not in used
        ]
        sentence = f"descriptions: {self._matched:,} of {self._pictures:,} pictures matched"
        if lost:
            first = clean_text(lost[0])
            sentence += f", {len(lost):,} names matched nothing (first: {first})"
        return [sentence]
