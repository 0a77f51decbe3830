"""Archives of any number of members in little memory: nothing is lost where files are spilled."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sources.archive import TarSource
from shards.sources.base import Part, Rows
from shards.sources.files import SourceFile
from shards.sources.gathering import Gathering
from shards.sources.pathlist import ListSource
from shards.sources.tarwalk import followed, walk
from tests.shards.making import jpeg, make

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=160)


@given(
    st.lists(st.tuples(NAMES, st.integers(0, 1500)), max_size=6),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([0, 1.5]),
)
@settings(deadline=None)
def test_a_walk_finds_what_tarfile_finds(
    members: list[tuple[str, int]], form: int, mtime: float
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, mtime
            try:
                tar.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:  # a name that does not fit USTAR
                return
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        expected = [(one.name, one.offset_data, one.size, one.type) for one in tar]
    found = [(one.name, one.offset_data, one.size, one.type) for one in walk(file)]
    assert found == expected


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=40))
def test_files_of_a_stem_stay_together_in_their_order(names: list[tuple[str, str]]) -> None:
    files = [
        SourceFile(f"{stem}.{ending}", Part(b"", number, 1), 0)
        for number, (stem, ending) in enumerate(names)
    ]
    gathering = Gathering(in_memory=3)
    for file in files:
        gathering.add(file)
    groups = list(gathering.groups())
    assert sorted((one for group in groups for one in group), key=place) == files
    for group in groups:
        assert group == sorted(group, key=place)
    for stem in "abc":
        with_it = [group for group in groups if any(one.path[0] == stem for one in group)]
        assert len(with_it) <= 1
    gathering.close()


def place(file: SourceFile) -> int:
    return file.part.offset


def test_captions_far_from_their_pictures_are_found_in_what_was_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.sources.gathering.IN_MEMORY", 4)
    folder = tmp_path / "a"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        (folder / f"{number}.txt").write_text(f"caption {number}")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix):
            tar.add(path, path.name)
    make(folder, tmp_path / "one")
    make(tmp_path / "x.tar", tmp_path / "two")
    tars = [tmp_path / name / "train-000000.tar" for name in ("one", "two")]
    assert tars[0].read_bytes() == tars[1].read_bytes()


def test_links_to_folders_lead_to_what_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "real" / "deep").mkdir(parents=True)
    for number, name in enumerate(("real/0.jpg", "real/deep/1.jpg")):
        (folder / name).write_bytes(jpeg(number))
    (folder / "real" / "0.txt").write_text("words")
    (folder / "real" / "again.jpg").symlink_to("0.jpg")
    (folder / "real" / "up").symlink_to("..")  # above itself: nothing
    (folder / "link").symlink_to("real")
    (folder / "through.jpg").symlink_to("link/deep/1.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder, ".")
    one, two = make(folder, tmp_path / "one"), make(tmp_path / "x.tar", tmp_path / "two")
    assert one.samples == two.samples == 7
    tars = [tmp_path / name / "train-000000.tar" for name in ("one", "two")]
    assert tars[0].read_bytes() == tars[1].read_bytes()


def test_links_are_followed_through_folders_and_not_for_ever() -> None:
    links = {"a": "b", "b/c": "d/e", "x": "y", "y": "x", "z": "z/z"}
    assert followed(links, "a/c/f") == "d/e/f"
    assert followed(links, "x") == "x"
    assert followed(links, "z") == "z"
    assert followed(links, "free") == "free"


def test_memory_does_not_grow_with_a_list_or_a_flat_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.sources.gathering.IN_MEMORY", 1000)
    monkeypatch.setattr("shards.sources.base.BATCH_ROWS", 500)
    peaks: dict[str, list[int]] = {"list": [], "tar": []}
    for count in (1500, 4500):
        names = [f"pictures/of/some/length/{number:08d}.jpg" for number in range(count)]
        listed, flat = tmp_path / f"{count}.txt", tmp_path / f"{count}.tar"
        listed.write_text("\n".join([*names, *names[:10], ""]))
        headers = (tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT) for name in names)
        flat.write_bytes(b"".join(headers) + bytes(1024))
        for kind, source in (("list", ListSource(str(listed))), ("tar", TarSource(str(flat)))):
            found: list[int] = []
            peaks[kind].append(peak_bytes(source, found))
            assert sum(found) == count
    for small, large in peaks.values():
        assert large - small < 150 * 3000


def peak_bytes(source: ListSource | TarSource, found: list[int]) -> int:
    """Return the most memory that listing took; `found` takes the numbers of rows."""

    def take(batch: pa.RecordBatch) -> None:
        found.append(batch.num_rows)

    tracemalloc.start()
    rows = Rows(0, take)
    source.collect(rows)
    rows.flush()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
