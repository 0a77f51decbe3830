"""Gives all samples of a corpus the same members, so that tools that make columns lose none.

`datasets` takes the columns from the first five samples of a split: they must agree, and a member
that they do not have is lost in all others. So the pictures of a corpus share one ending,
whatever their formats (decoders know a picture by its contents), and where some samples have text
or JSON, all have: an empty text, an empty object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common.pictures import PictureError, opened
from pipeline.common.pictures.formats import FORMATS, SAME, usual_ending
from shards.sources.base import Entry, Listed, Source, UnreadableError

# Members of a sample that has none of its own, where other samples have some.
BLANK: Mapping[str, bytes] = {"json": b"{}", "txt": b""}
LONGEST = max(len(ending) for one in FORMATS for ending in one.endings) + 1  # with its dot
FORMAT_OF = {ending: one.name for one in FORMATS for ending in one.endings}
LOOKED_AT = 16  # pictures to open where no name has an ending
USUAL = "jpg"


class Tally:
    """Counts, batch by batch, the formats that names stand for; knows what lies beside pictures."""

    def __init__(self) -> None:
        self.formats: Counter[str] = Counter()
        self.beside: set[str] = set()

    def take(self, batch: pa.RecordBatch) -> None:
        """Add a batch of the listing."""
        ends = pc.value_counts(pc.binary_slice(batch["location"], -LONGEST, None))
        for end in ends.to_pylist():
            ending = end["values"].rpartition(b".")[2].lower().decode("ascii", "replace")
            if ending in FORMAT_OF:
                self.formats[FORMAT_OF[ending]] += end["counts"]
        beside = pc.struct_field(pc.list_flatten(batch["siblings"]), "ext")
        self.beside.update(pc.unique(beside).to_pylist())


def common_members(tally: Tally, facts: Sequence[Listed], labels: bool) -> list[str]:
    """Return the endings of `BLANK` that some sample has, and all shall have."""
    has = set(tally.beside)
    if any(fact.captions for fact in facts):
        has |= {"txt", "json"}
    if any(fact.columns or (labels and fact.labelled) for fact in facts):
        has.add("json")
    return [name for name in BLANK if name in has]


def common_ending(
    tally: Tally, sources: Sequence[Source], first: Sequence[tuple[int, Entry]]
) -> str:
    """Return the ending of all pictures: that of most names, or of the first that can be opened.

    Args:
        tally: counts over the whole listing.
        sources: what is listed.
        first: some pictures of it, each with its source's number; looked at where no name tells.
    """
    if tally.formats:
        order = [one.name for one in FORMATS]
        most = max(tally.formats, key=lambda name: (tally.formats[name], -order.index(name)))
        return usual_ending(most)
    for number, entry in islice(first, LOOKED_AT):
        found = _looked_at(sources[number], entry)
        if found:
            return usual_ending(SAME.get(found, found))
    return USUAL


def _looked_at(source: Source, entry: Entry) -> str:
    """Return Pillow's name for the format of a picture; "": it cannot be opened."""
    if entry.picture.size < 0:
        return ""
    reader = source.reader()
    try:
        with opened(reader.read(entry).data) as image:
            return image.format or ""
    except (PictureError, UnreadableError):
        return ""
    finally:
        reader.close()
