"""Tars and zips as they come: damaged, cut off, joined, sparse, linked, streamed, oddly named."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards import Cache, ShardsError
from shards.reading.foreign import open_tars
from shards.reading.tars import tar_table
from shards.sources.tarwalk import DamagedTarError, plain, walk
from tests.shards.making import jpeg, make, rejects, rows

COUNT = 6


def tar_of(members: dict[str, bytes], **options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def numbered(first: int = 0) -> dict[str, bytes]:
    return {f"{n}.jpg": jpeg(n) for n in range(first, first + COUNT)}


def names(data: bytes) -> list[str]:
    return [member.name for member in walk(io.BytesIO(data))]


WHOLE = tar_of(numbered())
LAST = 512 * (len(WHOLE.rstrip(b"\0")) // 512 + 1)  # where the members end


@settings(max_examples=200, deadline=None)
@given(st.integers(1, LAST), st.integers(0, 255))
def test_a_walk_reaches_every_member_or_tells_where_it_stopped(place: int, value: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] = value
    try:
        found = len(names(bytes(damaged)))
    except DamagedTarError:
        return
    assert found == COUNT, "a size that changed leads to no header, or all are found"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, LAST))
def test_a_tar_that_is_cut_off_is_never_taken_for_a_whole_one(kept: int) -> None:
    with pytest.raises(DamagedTarError):
        names(WHOLE[:kept])


def test_the_offset_of_damage_is_named() -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        place = tar.getmembers()[3].offset
    damaged = bytearray(WHOLE)
    damaged[place + 150] ^= 7
    with pytest.raises(DamagedTarError, match=f"byte {place:,}"):
        names(bytes(damaged))
    damaged[place : place + 512] = bytes(512)
    with pytest.raises(DamagedTarError, match=f"byte {place:,}"):
        names(bytes(damaged))


def test_joined_tars_are_read_whole() -> None:
    joined = WHOLE + tar_of(numbered(COUNT)) + bytes(512 * 50)
    assert names(joined) == [*numbered(), *numbered(COUNT)]
    with pytest.raises(DamagedTarError, match=f"byte {len(WHOLE):,}"):
        names(WHOLE + b"something else".ljust(512, b"."))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "inside", "shards"])
def test_every_way_to_read_a_tar_tells_of_damage(kind: str, tmp_path: Path) -> None:
    import gzip

    cut = WHOLE[: 512 * 3 + 40]
    path = tmp_path / f"x.{'tar.gz' if kind == 'tar.gz' else 'tar'}"
    if kind == "tar.gz":
        path.write_bytes(gzip.compress(cut))
    else:
        path.write_bytes(tar_of({"a.tar": WHOLE, "b.tar": cut}) if kind == "inside" else cut)
    source = f"shards:{path}" if kind == "shards" else path
    with pytest.raises(ShardsError, match=r"byte \d"):
        make(source, tmp_path / "out")
    if kind == "tar":
        with pytest.raises(ShardsError, match=r"x\.tar is not a whole tar"):
            open_tars(path, Cache(tmp_path / "cache"), 1)


def test_sparse_members_are_read_with_their_holes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = Image.new("RGB", (400, 400))
    image.paste((200, 30, 90), (0, 380, 400, 400))
    image.save(tmp_path / "full.bmp")
    subprocess.run(["cp", "--sparse=always", "full.bmp", "a/b.bmp"], cwd=tmp_path, check=True)
    for form in ("gnu", "posix"):
        command = ["tar", f"--format={form}", "-S", "-cf", f"{form}.tar", "-C", "a", "."]
        if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
            pytest.skip("needs GNU tar")
        with tarfile.open(tmp_path / f"{form}.tar") as tar:
            if not any(member.issparse() for member in tar):
                pytest.skip("this file system has no holes")
        make(tmp_path / f"{form}.tar", tmp_path / form)
        with tarfile.open(tmp_path / form / "train-000000.tar") as tar:
            (member,) = tar.getmembers()
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == (tmp_path / "full.bmp").read_bytes()
        with (
            (tmp_path / f"{form}.tar").open("rb") as file,
            pytest.raises(ShardsError, match="spar"),
        ):
            tar_table(file, "x.tar")


def test_a_tar_of_links_gives_what_its_folder_gives(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for number in range(3):
        (folder / f"p{number}.jpg").write_bytes(jpeg(number))
    (folder / "p0.txt").write_text("a caption")
    for number in (1, 2):
        (folder / f"p{number}.txt").hardlink_to(folder / "p0.txt")
    (folder / "link1.jpg").symlink_to("p0.jpg")
    (folder / "link2.jpg").symlink_to("link1.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder, ".")
    make(folder, tmp_path / "folder")
    make(tmp_path / "x.tar", tmp_path / "tar")
    one, other = (tmp_path / name / "train-000000.tar" for name in ("folder", "tar"))
    assert one.read_bytes() == other.read_bytes()
    with (tmp_path / "x.tar").open("rb") as file:
        assert len(tar_table(file, "x.tar").keys) == 5


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, target in (("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        info = tarfile.TarInfo("c.jpg")
        info.size = len(jpeg())
        tar.addfile(info, io.BytesIO(jpeg()))
    make(tmp_path / "x.tar", tmp_path / "out")
    assert rejects(tmp_path / "out") == {"x.tar/a.jpg": "missing", "x.tar/b.jpg": "missing"}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("./a.jpg", "a.jpg"),
        ("../../up/a.jpg", "up/a.jpg"),
        ("x/./y/../a.jpg", "x/a.jpg"),
        ("/abs/a.jpg", "abs/a.jpg"),
        ("a//b.jpg", "a/b.jpg"),
    ],
)
def test_names_with_dots_are_not_hidden(name: str, path: str, tmp_path: Path) -> None:
    assert plain(name) == path
    (tmp_path / "x.tar").write_bytes(tar_of({name: jpeg()}))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), jpeg())
    for kind in ("tar", "zip"):
        make(tmp_path / f"x.{kind}", tmp_path / kind)
        assert [row["key"] for row in rows(tmp_path / kind)] == [path.removesuffix(".jpg")]


def test_names_that_are_no_utf_8_become_classes_keys_and_sources(tmp_path: Path) -> None:
    root = tmp_path / "caf\udce9"
    for folder in ("th\udce9", "th\udce8"):
        (root / folder).mkdir(parents=True)
        (root / folder / "a.jpg").write_bytes(jpeg(len(list(root.iterdir()))))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(root, ".")
    for number, source in enumerate((root, tmp_path / "x.tar")):
        make(source, tmp_path / str(number))
        assert {row["label"] for row in rows(tmp_path / str(number))} == {"th\\xe9", "th\\xe8"}


class Pipe(io.RawIOBase):
    """What a zip is streamed to: it cannot be sought, so checksums come behind the data."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += bytes(data)
        return len(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_checksum_behind_streamed_data_is_checked(method: int, tmp_path: Path) -> None:
    pipe = Pipe()
    noise = Image.effect_noise((90, 90), 60).convert("RGB")
    stream = io.BytesIO()
    noise.save(stream, "BMP")
    with zipfile.ZipFile(pipe, "w", method) as archive:
        archive.writestr("a.bmp", stream.getvalue())
        archive.writestr("b.jpg", jpeg())
    (tmp_path / "x.zip").write_bytes(pipe.data)
    assert make(tmp_path / "x.zip", tmp_path / "whole").samples == 2
    pipe.data[10000] ^= 1
    (tmp_path / "x.zip").write_bytes(pipe.data)
    make(tmp_path / "x.zip", tmp_path / "damaged")
    assert rejects(tmp_path / "damaged") == {"x.zip/a.bmp": "unreadable"}


def test_one_bad_name_does_not_hide_the_others(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"caf\u00e9{number}.jpg", jpeg(number))
    data = (tmp_path / "x.zip").read_bytes().replace("caf\u00e91".encode(), b"caf\xe9x1")
    (tmp_path / "x.zip").write_bytes(data)
    assert make(tmp_path / "x.zip", tmp_path / "out").samples == 3


def test_zips_of_windows_have_classes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{'ab'[number % 2]}\\{number}.jpg", jpeg(number))
    make(tmp_path / "x.zip", tmp_path / "out")
    assert {row["label"] for row in rows(tmp_path / "out")} == {"a", "b"}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_directory_is_told_never_a_crash(data: st.DataObject) -> None:
    from shards.sources import zipdirectory

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("a.jpg", "folder/b.jpg"):
            archive.writestr(name, b"data")
    damaged = bytearray(stream.getvalue())
    start = damaged.index(b"PK\1\2")
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(start, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(zipdirectory.DamagedZipError):
        list(zipdirectory.members(io.BytesIO(bytes(damaged))))


@pytest.mark.parametrize("wide", [False, True])
def test_the_directory_is_read_as_zipfile_reads_it(
    wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.sources import zipdirectory

    if wide:  # zipfile then writes all sizes and places in 64 bits
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"folder/{number}.jpg", bytes(1000 + number))
        archive.mkdir("empty")
        archive.comment = b"a comment"
    data = b"what stands before" + stream.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        wanted = [(i.filename, i.header_offset, i.file_size) for i in archive.infolist()][:3]
    found = [(m.name, m.header, m.size) for m in zipdirectory.members(io.BytesIO(data))]
    assert found == wanted


Maker = Callable[[Path], None]


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _pipe(path: Path) -> None:
    import os

    os.mkfifo(path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(6 << 30)


@pytest.mark.parametrize("spoil", [_dangling, _pipe, _huge])
@pytest.mark.parametrize("name", ["1.txt", "captions.csv", "4.tif"])
def test_one_bad_file_never_ends_a_run(name: str, spoil: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    spoil(folder / name)
    summary = make(folder, tmp_path / "out")
    assert summary.samples == 3
    if name == "4.tif":
        assert summary.rejected == 1
    else:
        assert summary.ignored == 1
        assert any(name in note for note in summary.notes)


def test_lists_from_anywhere(tmp_path: Path) -> None:
    for name in ("0.jpg", "odd\u2028name.jpg", "spaces .jpg", "end.jpg "):
        (tmp_path / name).write_bytes(jpeg(len(name)))
    lines = [*["0.jpg"] * 700, "odd\u2028name.jpg", "spaces .jpg", " 0.jpg", "a\0b.jpg", ""]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    make(tmp_path / "list.txt", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 3
    assert list(rejects(tmp_path / "out").values()) == ["missing"]


def test_what_a_zip_says_of_sizes_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", jpeg())
        archive.writestr("b.jpg", jpeg(1))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = struct.pack("<L", 3 << 30)
    (tmp_path / "x.zip").write_bytes(data)
    make(tmp_path / "x.zip", tmp_path / "out")
    assert list(rejects(tmp_path / "out").values()) == ["too large"]
