"""Finds duplicates: pictures of the same bytes, or of the same look.

The first of equal pictures, in the order of their keys, stays. Equal bytes are looked for only
among files of equal size, so few are read. Pictures that look the same have perceptual hashes (the
signs of the lowest 8 x 8 frequencies of a 32 x 32 grey copy against their median, as in pHash,
Zauner 2010) that differ in at most `NEAR` of 64 bits from one that stays, and about the same
aspect.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from scipy.fft import dctn

from pipeline.common.pictures import PictureError, thumbnail
from pipeline.common.workers import Tell, work_in_processes
from shards.arrays import array
from shards.making.listing import ListedCorpus
from shards.making.plan import completed
from shards.sources import Entry, Reader, Source, UnreadableError

NEAR = 4  # bits of 64 that may differ
BANDS = NEAR + 1  # two hashes that near have at least one equal band
ASPECT = 0.03  # largest relative difference of two aspects
CHUNK = 512
# A picture's key, SHA-256, perceptual hash (None: not asked for, or unreadable), and width over
# height.
Look = tuple[str, bytes, int | None, float]


def find_duplicates(
    corpus: ListedCorpus,
    sources: Sequence[Source],
    kind: str,
    workers: int,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> dict[str, str]:
    """Return, by key of each picture to leave out, `exact FIRST` or `near FIRST`.

    Args:
        corpus: the listing.
        sources: its sources.
        kind: "exact" or "near".
        workers: processes that read.
        progress: called with pictures read, pictures to read, and a few words.
    """
    near = kind == "near"
    chosen = [table for table in _candidates(corpus, near) if table.num_rows]
    total = sum(table.num_rows for table in chosen)
    looks: list[Look] = []
    for found in _looked(sources, chosen, near, workers):
        looks += found
        if progress is not None:
            progress(len(looks), total, "looking for duplicates")
    looks.sort()
    return _exact(looks) | (_near(looks) if near else {})


def look(data: bytes, near: bool) -> tuple[bytes, int | None, float]:
    """Return SHA-256, perceptual hash and aspect of the picture `data`."""
    digest = hashlib.sha256(data).digest()
    if not near:
        return digest, None, 0.0
    try:
        image = Image.fromarray(thumbnail(data, 64))
    except PictureError:  # a picture that cannot be decoded is no duplicate: its check tells
        return digest, None, 0.0
    aspect = image.width / image.height
    grey = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    return digest, perceptual_hash(np.asarray(grey, dtype=np.float64)), aspect


def perceptual_hash(grey: npt.NDArray[np.float64]) -> int:
    """Return 64 bits of a (32, 32) grey picture: which of its low frequencies exceed the median."""
    low = dctn(grey, norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _candidates(corpus: ListedCorpus, near: bool) -> Iterator[pa.Table]:
    """Yield the rows that may have a duplicate: all, or those whose size occurs again."""
    counts: dict[int, int] = defaultdict(int)
    if not near:
        for run in corpus.runs:
            for size in pc.value_counts(run["size"]).to_pylist():
                counts[size["values"]] += size["counts"]
    common = array([size for size, count in counts.items() if count > 1], pa.int64())
    for table in corpus.ranges():
        rows = completed(table, corpus.facts, labels=False)
        rows = rows.filter(pc.greater_equal(rows["size"], 0))
        yield rows if near else rows.filter(pc.is_in(rows["size"], common))


def _looked(
    sources: Sequence[Source], tables: Sequence[pa.Table], near: bool, workers: int
) -> Iterator[list[Look]]:
    chunks = (
        table.slice(start, CHUNK) for table in tables for start in range(0, table.num_rows, CHUNK)
    )
    if workers == 1:
        for chunk in chunks:
            yield look_at(sources, chunk, near)
        return
    for _, found in work_in_processes(partial(_looker, sources, near), chunks, workers):
        yield found


def _looker(sources: Sequence[Source], near: bool, tell: Tell) -> Callable[[pa.Table], list[Look]]:
    return lambda rows: look_at(sources, rows, near)


def look_at(sources: Sequence[Source], rows: pa.Table, near: bool) -> list[Look]:
    """Return the looks of the pictures of `rows`; those that cannot be read are left out."""
    readers: dict[int, Reader] = {}
    looks: list[Look] = []
    for row in rows.to_pylist():
        number = row["source"]
        if number not in readers:
            readers[number] = sources[number].reader()
        try:
            data = readers[number].read(Entry.from_row(row)).data
        except UnreadableError:
            continue
        looks.append((row["key"], *look(data, near)))
    for reader in readers.values():
        reader.close()
    return looks


def _exact(looks: Iterable[Look]) -> dict[str, str]:
    first: dict[bytes, str] = {}
    found = {}
    for key, digest, _, _ in looks:
        if first.setdefault(digest, key) != key:
            found[key] = f"exact {first[digest]}"
    return found


def _near(looks: Iterable[Look]) -> dict[str, str]:
    """Return the near duplicates: each is near one that stays and comes before it."""
    bands: list[dict[int, list[tuple[str, int, float]]]] = [defaultdict(list) for _ in range(BANDS)]
    seen: set[bytes] = set()
    found = {}
    for key, digest, code, aspect in looks:
        if code is None or digest in seen:
            continue
        seen.add(digest)
        parts = [band_of(code, band) for band in range(BANDS)]
        near = (one for band, part in zip(bands, parts, strict=True) for one in band[part])
        match = min((one for one in near if _alike(one, code, aspect)), default=None)
        if match is not None:
            found[key] = f"near {match[0]}"
            continue
        for band, part in zip(bands, parts, strict=True):
            band[part].append((key, code, aspect))
    return found


def band_of(code: int, band: int) -> int:
    """Return the bits of the 64-bit `code` that belong to `band`."""
    start, stop = 64 * band // BANDS, 64 * (band + 1) // BANDS
    return code >> start & ((1 << stop - start) - 1)


def _alike(one: tuple[str, int, float], code: int, aspect: float) -> bool:
    close = abs(one[2] - aspect) <= ASPECT * aspect
    return close and (one[1] ^ code).bit_count() <= NEAR
