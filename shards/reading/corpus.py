"""One split of one shard folder, ready to be read sample by sample."""

from __future__ import annotations

from pathlib import Path

from shards.errors import ShardsError, ShardsRuntimeError
from shards.reading.decode import BrokenPictureError
from shards.reading.index import Sample, SplitIndex
from shards.reading.local import LocalReader


class Corpus:
    """The samples of a split, by shard number and index in the shard."""

    def __init__(self, dest: str | Path, split: str = "train") -> None:
        """Open `split` of `dest`.

        Raises:
            ShardsError: there is no such split.
        """
        self.dest = str(dest)
        self.index = SplitIndex(dest, split)
        folder = self.index.store.folder
        if folder is None:
            raise ShardsError(f"{dest} is not a folder on this machine: copy the shards here first")
        self._reader = LocalReader(folder)

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each shard."""
        return self.index.sizes

    def sample(self, shard: int, index: int) -> Sample:
        """Return the place of a sample."""
        return self.index.sample(shard, index)

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture.

        Raises:
            BrokenPictureError: the shard ends before the picture does.
            ShardsRuntimeError: the shard is not there or can't be read.
        """
        try:
            data = self._reader.read(sample.shard, sample.offset, sample.size)
        except OSError as error:
            raise ShardsRuntimeError(
                f"shard {sample.shard} of {self.dest} cannot be read: {error.strerror}"
            ) from error
        if len(data) < sample.size:
            raise BrokenPictureError(f"shard {sample.shard} ends inside this picture")
        return data

    def close(self) -> None:
        """Close files; reading opens them again."""
        self._reader.close()
