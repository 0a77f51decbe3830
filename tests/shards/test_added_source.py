"""A kind of source is a class and an entry of `FILES`: no other module names one."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards.sources import FILES
from shards.sources.base import Entry, Listed, Part, Rows, Sample
from tests.shards.making import jpeg, make


@dataclass(frozen=True)
class SeedSource:
    """A file with a number a line; each is the seed of a picture."""

    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def origin(self) -> str:
        return self.path

    def collect(self, rows: Rows) -> Listed:
        for seed in map(int, Path(self.path).read_text().split()):
            rows.add(f"picture-{seed}", Part(b"", seed, len(jpeg(seed))))
        return Listed()

    def reader(self) -> SeedReader:
        return SeedReader()


class SeedReader:
    def read(self, entry: Entry) -> Sample:
        return Sample(jpeg(entry.picture.offset))

    def close(self) -> None:
        pass


def test_a_kind_of_source_is_added_by_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, (".seeds",), SeedSource)
    (tmp_path / "some.seeds").write_text("3\n1\n4\n")
    assert make(tmp_path / "some.seeds", tmp_path / "shards").samples == 3
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        pictures = {one.name: tar.extractfile(one) for one in tar if one.name.endswith(".jpg")}
        found = {name: file.read() for name, file in pictures.items() if file}
    assert found == {f"picture-{seed}.jpg": jpeg(seed) for seed in (1, 3, 4)}
