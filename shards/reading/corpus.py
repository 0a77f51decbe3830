"""One split of one shard folder, on this machine or remote, ready to be read sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shards.manifest import Manifest, ShardInfo
from shards.reading.cache import Cache, CacheFolder, Wanted, check_room
from shards.reading.decode import BrokenPictureError
from shards.reading.fetch import Fetcher
from shards.reading.files import CachedFiles, Files, LocalFiles
from shards.reading.index import Sample, ShardTable, Span, SplitIndex, read_table
from shards.reading.tars import kept, tar_table
from shards.store import Store


class Corpus:
    """The samples of a split, by shard number and index in the shard."""

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        files: Files,
        tables: Callable[[ShardInfo], ShardTable],
        block: int,
    ) -> None:
        """Take the shards, their files, and what reads a shard's table; `name` is for messages.

        The tables of two blocks of shards stay in memory.
        """
        self.name, self.manifest, self.files = name, manifest, files
        self.index = SplitIndex(manifest, tables, kept=2 * block)

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each shard."""
        return self.manifest.sizes

    def sample(self, shard: int, index: int) -> Sample:
        """Return the place of a sample. Raises as `read`."""
        return self.index.sample(shard, index)

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture.

        Raises:
            BrokenPictureError: the shard ends before the picture does.
            ShardsRuntimeError: the shard is not there or can't be read.
        """
        data = self.files.read(sample.shard, sample.offset, sample.size)
        if len(data) < sample.size:
            raise BrokenPictureError(f"shard {sample.shard} ends inside this picture")
        return data

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network, unless it is told beforehand what will be read."""
        return isinstance(self.files, CachedFiles)

    def expect(self, spans: Sequence[Span]) -> None:
        """Make ready samples that will be read soon, in this order. Returns at once."""
        shards = dict.fromkeys(span.shard for span in spans)
        self.files.expect([self.manifest.shards[shard].tar for shard in shards])

    def close(self) -> None:
        """Close files; reading opens them again."""
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


def open_split(dest: str | Path, split: str, cache: Cache, block: int) -> Corpus:
    """Open `split` of `dest`, a folder or any fsspec URL, whose shards go through `cache`.

    Raises:
        ShardsError: there is no such split, or the cache can't hold a block of its shards.
    """
    store = Store(dest)
    if store.folder is not None:
        files: Files = LocalFiles(store.folder)
        return Corpus(str(dest), Manifest.read(dest, split), files, OurTables(files), block)
    fetcher = Fetcher(store.url, cache.patience)
    manifest = _remote_manifest(fetcher, split)
    check_room(cache, manifest, block)
    wanted = {one.tar: Wanted(one.tar, one.bytes, one.sha256) for one in manifest.shards}
    files = CachedFiles(CacheFolder(cache, fetcher), wanted, kept=block + 1)
    return Corpus(str(dest), manifest, files, OurTables(files), block)


def _remote_manifest(fetcher: Fetcher, split: str) -> Manifest:
    name = Manifest.file_name(split)
    try:
        data = fetcher.whole(name)
    except FileNotFoundError:
        return Manifest.read(fetcher.url, split)  # which says what is there instead
    return Manifest.from_json(data, where=f"{fetcher.url}/{name}")
