"""One split of one shard folder, ready to be read sample by sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shards.manifest import Manifest, ShardInfo
from shards.reading.decode import BrokenPictureError
from shards.reading.files import CachedFiles, Files
from shards.reading.index import Sample, ShardTable, Span, SplitIndex, read_table
from shards.reading.ranges import Traffic
from shards.reading.tars import kept, tar_table

# Tables of shards that stay in memory: those that the groups of an order read now and next.
TABLES = 192


class Corpus(ABC):
    """The samples of a split, by shard number and index in the shard.

    Attributes: remote: whether reading waits for a network, so that announcing samples helps.
        whole: whether a shard is fetched whole before a sample of it is read.
    """

    remote = True
    whole = False

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        tables: Callable[[ShardInfo], ShardTable],
        block: int,
    ) -> None:
        """Take the shards, and the function that reads a shard's table; `name` is for messages."""
        self.name, self.manifest = name, manifest
        self.index = SplitIndex(manifest, tables, kept=max(2 * block, TABLES))

    @property
    def sizes(self) -> Sequence[int] | npt.NDArray[np.int64]:
        """The number of samples in each shard."""
        return self.manifest.sizes

    @property
    def traffic(self) -> Traffic:
        """The requests and bytes that reading from a store took in this process."""
        return Traffic()

    def sample(self, shard: int, index: int) -> Sample:
        """Return the place of a sample. Raises as `read`."""
        return self.index.sample(shard, index)

    @abstractmethod
    def read(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture.

        Raises:
            BrokenPictureError: the shard ends before the picture does.
            ShardsRuntimeError: the shard is not there or can't be read.
        """

    def reads(self, share: float, ranks: int) -> None:
        """Record the share of an epoch that this process reads: it may fetch no more than that."""
        return

    def begin(self, places: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch samples, by shard and index, that are read next. Raises as `read`."""
        return

    @abstractmethod
    def expect(self, spans: Sequence[Span], over: Sequence[Span] = ()) -> None:
        """Make ready more samples, in this order; those that are `over` are read no more for now.

        Returns at once.
        """

    @abstractmethod
    def close(self) -> None:
        """Close files, fetch no more; reading begins again."""


class FileCorpus(Corpus):
    """A split whose shards are read as files: on this machine's disk, or fetched to it whole."""

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        files: Files,
        tables: Callable[[ShardInfo], ShardTable],
        block: int,
    ) -> None:
        """Take the shards, their files, and what reads a shard's table."""
        super().__init__(name, manifest, tables, block)
        self.files = files
        self.remote = self.whole = isinstance(files, CachedFiles)
        self._expected: dict[Span, None] = {}

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture. Raises as `Corpus.read`."""
        data = self.files.read(sample.shard, sample.offset, sample.size)
        if len(data) < sample.size:
            raise BrokenPictureError(f"shard {sample.shard} ends inside this picture")
        return data

    def expect(self, spans: Sequence[Span], over: Sequence[Span] = ()) -> None:
        """Have the shards of these samples fetched, where they are not here."""
        self._expected |= dict.fromkeys(spans)
        for span in over:
            self._expected.pop(span, None)
        shards = dict.fromkeys(span.shard for span in self._expected)
        self.files.expect([self.manifest.shards[shard].tar for shard in shards])

    def close(self) -> None:
        """Close files; reading opens them again."""
        self._expected = {}
        self.files.close()


class OurTables:
    """Tables of shards that `pipeline shard` wrote: sidecars here, indices of tars from elsewhere.

    A remote sidecar has no checksum in the manifest; the tar, whose headers say the same, has one.
    """

    def __init__(self, files: Files) -> None:
        self.files = files

    def __call__(self, info: ShardInfo) -> ShardTable:
        """Return a shard's table."""
        if isinstance(self.files, CachedFiles):
            return kept(self.files.index(info.tar), info.sha256, lambda: self._walk(info))
        with self.files.open(info.sidecar) as file:
            return read_table(file.read(), self.files.where(info.sidecar))

    def _walk(self, info: ShardInfo) -> ShardTable:
        with self.files.open(info.tar) as file:
            return tar_table(file, self.files.where(info.tar))
