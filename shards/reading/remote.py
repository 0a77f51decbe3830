"""Splits behind a URL: pictures by ranges where each has a checksum, whole shards elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from shards.errors import ShardsError, ShardsRuntimeError
from shards.manifest import Manifest, ShardInfo
from shards.reading.cache import Cache, CacheFolder, Wanted, check_room
from shards.reading.corpus import Corpus, FileCorpus, OurTables
from shards.reading.fetch import Fetcher
from shards.reading.files import CachedFiles
from shards.reading.index import Sample, ShardTable, Span, read_table
from shards.reading.ranges import Ranges, Traffic
from shards.reading.requests import requests
from shards.reading.tars import write_table
from shards.store import Store


class RangedCorpus(Corpus):
    """A remote split whose pictures are read by ranges, each checked by its own checksum."""

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        tables: RemoteTables,
        ranges: Ranges,
        block: int,
    ) -> None:
        """Take the shards, the function that reads a shard's table, and the reader of ranges."""
        super().__init__(name, manifest, tables, block)
        self.tables, self.ranges = tables, ranges
        self._expected: dict[Span, int] = {}  # what is made ready, and its bytes
        self._postponed: dict[Span, None] = {}  # what the cache has no room for yet

    @property
    def traffic(self) -> Traffic:
        """The requests and bytes that reading from the store took in this process."""
        return self.ranges.traffic

    def reads(self, share: float, ranks: int) -> None:
        """Take down which share of an epoch this process reads, one of a rank."""
        self.ranges.reads(share, int(sum(self.manifest.byte_sizes)), ranks)

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture. Raises as `Corpus.read`."""
        data = self.ranges.read(sample)
        for _ in range(self.ranges.fetcher.patience.attempts):
            if sample.sha256 in (None, hashlib.sha256(data).hexdigest()):
                return data
            # A damaged part or a damaged table may be the cause: both are fetched anew.
            self.ranges.drop(sample)
            self.tables.drop(self.manifest.shards[sample.place[0]])
            self.index.forget(sample.place[0])
            sample = self.index.sample(*sample.place)
            data = self.ranges.exactly(sample)
        raise ShardsRuntimeError(
            f"{self.ranges.fetcher.url}/{sample.shard} does not have the checksum of the manifest "
            f"at {sample.key}: run `pipeline verify` there"
        )

    def begin(self, places: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch samples, by shard and index, that are read next."""
        missing = [shard for shard in {shard for shard, _ in places} if not self.index.has(shard)]
        asked = [requests().urgent(partial(self.index.table, shard)) for shard in missing]
        for one in asked:
            one.result()
        self.ranges.begin([self.index.sample(*place) for place in places])

    def expect(self, spans: Sequence[Span], over: Sequence[Span] = ()) -> None:
        """Fetch the parts that hold these samples, as soon as the cache has room for them."""
        if self.ranges.cache is None:
            return
        self._postponed |= dict.fromkeys(spans)
        for span in over:
            self._postponed.pop(span, None)
            self._expected.pop(span, None)
        room = self.ranges.cache.cache.limit * 3 // 4 - sum(self._expected.values())
        for span in list(self._postponed):
            info = self.manifest.shards[span.shard]
            size = info.bytes * (span.end - span.first) // max(info.samples, 1)
            room -= size
            if room < 0:
                break
            del self._postponed[span]
            self._expected[span] = size
            requests().later(partial(self._expect, span))

    def _expect(self, span: Span) -> None:
        """Have the parts fetched that hold a span, each unless the span is over by then."""

        def expected() -> bool:
            return span in self._expected

        if expected():
            table = self.index.table(span.shard)
            begin = int(table.offsets[span.first])
            end = int(table.offsets[span.end - 1] + table.sizes[span.end - 1])
            self.ranges.expect(self.manifest.shards[span.shard].tar, begin, end, expected)

    def close(self) -> None:
        """Fetch no more; reading begins again."""
        self._expected, self._postponed = {}, {}
        self.ranges.close()


class RemoteTables:
    """Sidecars of a store, with the checksums of the pictures that they place."""

    def __init__(self, fetcher: Fetcher, cache: CacheFolder | None, ranges: Ranges) -> None:
        """Take what reads the shards: it is told of each shard whose table is read."""
        self.fetcher, self.cache, self.ranges = fetcher, cache, ranges

    def __call__(self, info: ShardInfo) -> ShardTable:
        """Return a shard's table; raises ShardsError when it is none, or not of this shard."""
        self.ranges.files[info.tar] = Wanted(info.tar, info.bytes, info.sha256)
        if self.cache is None:
            return self._fetched(info)
        path = self._path(info)
        with contextlib.suppress(OSError, ShardsError):
            return read_table(path.read_bytes(), str(path), info.sha256, digests=True)
        table = self._fetched(info)
        with self.cache.room(table.nbytes, path), contextlib.suppress(OSError):
            write_table(table, path, info.sha256)
        return table

    def drop(self, info: ShardInfo) -> None:
        """Remove the stored copies of a shard's table."""
        if self.cache is not None:
            self._path(info).unlink(missing_ok=True)

    def _path(self, info: ShardInfo) -> Path:
        assert self.cache is not None
        return self.cache.path(Wanted(info.sidecar, 0, info.sha256)).with_suffix(".table")

    def _fetched(self, info: ShardInfo) -> ShardTable:
        where = f"{self.fetcher.url}/{info.sidecar}"
        for _ in range(self.fetcher.patience.attempts):
            try:
                data = self.fetcher.whole(info.sidecar)
                table = read_table(data, where, digests=True)
            except FileNotFoundError as error:
                raise ShardsError(f"{where} is missing: run `pipeline verify` there") from error
            except ShardsError as error:  # it may have been damaged on its way
                failed = error
            else:
                return table
        raise failed


def open_remote(url: str, split: str, cache: Cache, block: int) -> Corpus:
    """Open `split` of the shards at `url`.

    Raises:
        ShardsError: there is no such split, or the cache can't hold a block of its shards.
    """
    fetcher = Fetcher(url, cache.patience)
    manifest = _remote_manifest(fetcher, split)
    folder = None
    if cache.folder is not None:
        check_room(cache, manifest, block)
        folder = CacheFolder(cache, fetcher)
    ranges = Ranges(fetcher, folder)
    tables = RemoteTables(fetcher, folder, ranges)
    if folder is None or _has_checksums(tables, manifest):
        return RangedCorpus(url, manifest, tables, ranges, block)
    wanted = {one.tar: Wanted(one.tar, one.bytes, one.sha256) for one in manifest.shards}
    files = CachedFiles(folder, wanted, kept=block + 1)
    return FileCorpus(url, manifest, files, OurTables(files), block)


def _has_checksums(tables: RemoteTables, manifest: Manifest) -> bool:
    """Whether pictures can be checked one by one; tars that are fetched whole are else."""
    try:
        return not manifest.shards or tables(manifest.shards[0]).digests is not None
    except ShardsError:
        return False


def _remote_manifest(fetcher: Fetcher, split: str) -> Manifest:
    name = Manifest.file_name(split)
    try:
        data = fetcher.whole(name)
    except FileNotFoundError:
        return Manifest.read(fetcher.url, split)  # which says what is there instead
    return Manifest.from_json(data, where=f"{fetcher.url}/{name}", store=Store(fetcher.url))
