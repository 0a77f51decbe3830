"""A folder becomes shards: what is in them, what is left out, and what is said of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards import Manifest, ShardsError
from shards.making.tar import header
from shards.options import Options
from shards.run import shard
from tests.shards.making import SMALL, checksums, corpus, encoded, jpeg, make, rejects, rows


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def dest(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("dest") / "shards"
    make(source, dest)
    return dest


def test_every_picture_is_in_one_shard_byte_for_byte(source: Path, dest: Path) -> None:
    found = {}
    for row in rows(dest):
        data = (source / str(row["source"]).partition("/")[2]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert len(data) == row["size"]
        found[row["key"]] = data
    files = {str(path.relative_to(source).with_suffix("")) for path in source.rglob("*.jpg")}
    assert found.keys() == files


def test_offsets_point_at_the_pictures_inside_plain_tars(dest: Path) -> None:
    manifest = Manifest.read(dest)
    for info in manifest.shards:
        table = pq.read_table(dest / info.sidecar).to_pylist()
        data = (dest / info.tar).read_bytes()
        with tarfile.open(dest / info.tar) as tar:
            for row in table:
                member = tar.extractfile(row["member"])
                assert member is not None
                assert member.read() == data[row["offset"] : row["offset"] + row["size"]]
                with Image.open(io.BytesIO(data[row["offset"] :])) as image:
                    assert image.size == (row["width"], row["height"])
                    assert image.format == row["format"].upper()


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=120), st.integers(0, 8**12))
@example("a" * 100, 8**11 - 1)
@example("a" * 101, 8**11)
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert header(member.name, size) == member.tobuf(tarfile.GNU_FORMAT)


def test_the_manifest_counts_and_sums(dest: Path) -> None:
    manifest = Manifest.read(dest)
    assert (manifest.samples, manifest.listed, manifest.rejected) == (60, 60, 0)
    assert sum(manifest.sizes) == 60
    assert len(manifest.shards) > 2
    for info in manifest.shards:
        data = (dest / info.tar).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (info.bytes, info.sha256)
        assert pq.read_metadata(dest / info.sidecar).num_rows == info.samples


def test_shards_stay_near_the_size_asked_for(dest: Path) -> None:
    sizes = [info.bytes for info in Manifest.read(dest).shards]
    record = 10_240
    assert max(sizes) <= SMALL.shard_size + record
    assert min(sizes[:-1]) > SMALL.shard_size / 2


def test_the_order_mixes_classes(dest: Path) -> None:
    first = [row["label"] for row in rows(dest)[:15]]
    assert len(set(first)) == 3


def test_class_folders_become_labels(dest: Path) -> None:
    manifest = Manifest.read(dest)
    assert manifest.classes == ("class0", "class1", "class2")
    with tarfile.open(dest / manifest.shards[0].tar) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for row in pq.read_table(dest / manifest.shards[0].sidecar).to_pylist():
        label = row["key"].split("/")[0]
        assert row["label"] == label
        assert int(members[row["key"] + ".cls"]) == manifest.classes.index(label)
        assert json.loads(members[row["key"] + ".json"]) == {"label": label}


def test_labels_can_be_left_out(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "d", Options(shard_size=60_000, min_side=32, labels=False))
    assert {row["label"] for row in rows(tmp_path / "d")} == {None}


def test_files_beside_a_picture_travel_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1))
    (folder / "a.json").write_text('{"url": "somewhere"}')
    (folder / "a.txt").write_text("a caption")
    (folder / "b.jpg").write_bytes(jpeg(2))
    (folder / "readme.md").write_text("not a picture")
    summary = make(folder, tmp_path / "out")
    assert (summary.listed, summary.ignored) == (2, 1)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        names = sorted(tar.getnames())
        assert names == ["a.jpg", "a.json", "a.txt", "b.jpg", "b.json", "b.txt"]
        assert tar.extractfile("b.json").read() == b"{}"  # every sample has the same members
        assert tar.extractfile("a.json").read() == b'{"url": "somewhere"}'


def test_odd_names_become_keys_that_stay_apart(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(["a.b.jpg", "a_b.jpg", "a.b.png", "Ünï cödé.JPG", ".hidden.jpg"]):
        image = Image.open(io.BytesIO(jpeg(number)))
        (folder / name).write_bytes(encoded(image, "PNG" if name.endswith("png") else "JPEG"))
    (folder / "raw\udcff.jpg").write_bytes(jpeg(9))
    make(folder, tmp_path / "out")
    found = rows(tmp_path / "out")
    keys = [str(row["key"]) for row in found]
    assert len(found) == len(set(keys)) == 5
    assert not any("." in key for key in keys)
    assert {"a_b", "Ünï cödé", "raw_"} <= set(keys)
    assert {str(row["member"]).rpartition(".")[2] for row in found} == {"jpg"}
    assert {row["format"] for row in found} == {"jpeg", "png"}


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in", count=3)
    bad = folder / "class0"
    whole = jpeg(77)
    (bad / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (bad / "text.jpg").write_text("this is no picture")
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "small.jpg").write_bytes(jpeg(5, 64, 31))
    (bad / "long.jpg").write_bytes(jpeg(5, 400, 40))
    (bad / "bomb.png").write_bytes(encoded(Image.new("1", (20_000, 20_000)), "PNG"))
    (bad / "wide.png").write_bytes(encoded(Image.new("L", (300, 300)), "PNG"))
    png = encoded(Image.open(io.BytesIO(whole)), "PNG")
    (bad / "cut.png").write_bytes(png[:-200])
    (bad / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(bad / "pipe.jpg")  # reading it would wait for ever
    options = Options(shard_size=60_000, min_side=32, max_area=80_000, max_aspect=4)
    summary = make(folder, tmp_path / "out", options)
    reasons = {name.rpartition("/")[2]: why for name, why in rejects(tmp_path / "out").items()}
    assert reasons == {
        "cut.jpg": "damaged",
        "text.jpg": "not a picture",
        "empty.jpg": "not a picture",
        "small.jpg": "too small",
        "long.jpg": "too elongated",
        "bomb.png": "too large",
        "wide.png": "too large",
        "cut.png": "damaged",
        "gone.jpg": "missing",
        "pipe.jpg": "missing",
    }
    assert (summary.listed, summary.samples, summary.rejected) == (13, 3, 10)
    assert sum(summary.reasons.values()) == 10


def test_checks_go_as_deep_as_asked(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in", count=3)
    whole = jpeg(77)
    (folder / "class0" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "class0" / "text.jpg").write_text("this is no picture")
    expected = {"full": 3, "header": 4, "none": 5}
    for check, samples in expected.items():
        options = Options(shard_size=60_000, min_side=32, check=check)
        assert make(folder, tmp_path / check, options).samples == samples


def test_modes_pass_through_and_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    forms = {"L": "JPEG", "CMYK": "JPEG", "RGBA": "PNG", "LA": "PNG", "P": "PNG", "I;16": "PNG"}
    for mode, form in forms.items():
        image = Image.new(mode, (64, 64))
        (folder / f"{mode[:4].replace(';', '')}.{form.lower()}").write_bytes(encoded(image, form))
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned.jpg").write_bytes(encoded(Image.new("RGB", (64, 48)), "JPEG", exif=exif))
    make(folder, tmp_path / "out")
    found = {str(row["key"]): row for row in rows(tmp_path / "out")}
    assert {str(row["mode"]) for row in found.values()} == {*forms, "RGB"}
    assert found["turned"]["orientation"] == 6
    assert (found["turned"]["width"], found["turned"]["height"]) == (64, 48)


def test_the_same_tars_from_any_number_of_workers(source: Path, dest: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "d", workers=2)
    assert checksums(tmp_path / "d") == checksums(dest)


def test_parts_make_together_what_one_makes(source: Path, dest: Path, tmp_path: Path) -> None:
    for number in (2, 0):
        summary = make(source, tmp_path / "d", part=(number, 3))
        assert not summary.complete
        assert summary.made > 0
    assert not (tmp_path / "d" / "train.json").exists()
    assert make(source, tmp_path / "d", part=(1, 3)).complete
    assert checksums(tmp_path / "d") == checksums(dest)


def test_pictures_are_found_in_folders_many_and_deep(tmp_path: Path) -> None:
    picture = jpeg()
    folders = [Path(f"{number}") for number in range(70)]
    folders += [Path(*map(str, range(depth))) / "x" for depth in range(40)]
    for folder in folders:
        (tmp_path / "corpus" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / folder / "a.jpg").write_bytes(picture)
    make(tmp_path / "corpus", tmp_path / "dest")
    found = sorted(str(row["key"]) for row in rows(tmp_path / "dest"))
    assert found == sorted(f"{folder}/a" for folder in folders)


def test_a_script_needs_no_guard_around_its_main_part(source: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from shards.options import Options\n"
        "from shards.run import shard\n"
        "options = Options(shard_size=50_000, min_side=32)\n"
        f"shard([{str(source)!r}], {str(tmp_path / 'dest')!r}, options, workers=2)\n"
    )
    # A worker takes modules from where the script has them, not from the folder it is run in.
    (tmp_path / "json.py").write_text("raise SystemExit('not the real one')")
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", str(script)]
    subprocess.run(command, cwd=tmp_path, env=there, check=True)
    assert (tmp_path / "dest" / "train.json").exists()


def test_running_again_does_nothing(source: Path, dest: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dest.iterdir()}
    summary = make(source, dest)
    assert summary.complete
    assert summary.made == 0
    assert {path: path.stat().st_mtime_ns for path in dest.iterdir()} == before


def test_another_seed_gives_another_order_of_the_same_pictures(
    source: Path, dest: Path, tmp_path: Path
) -> None:
    make(source, tmp_path / "d", Options(shard_size=60_000, min_side=32, seed=1))
    ours, theirs = ([row["key"] for row in rows(one)] for one in (dest, tmp_path / "d"))
    assert ours != theirs
    assert sorted(map(str, ours)) == sorted(map(str, theirs))
    assert Manifest.read(dest).source_digest == Manifest.read(tmp_path / "d").source_digest
    assert Manifest.read(dest).digest != Manifest.read(tmp_path / "d").digest


def test_shares_split_a_corpus_by_key(source: Path, tmp_path: Path) -> None:
    options = Options(split="train=0.7,val=0.3", shard_size=60_000, min_side=32)
    train, val = shard([str(source)], tmp_path / "d", options, workers=1)
    assert train.listed + val.listed == 60
    assert 5 < val.listed < 35
    keys = {str(row["key"]) for row in rows(tmp_path / "d", "val")}
    assert not keys & {str(row["key"]) for row in rows(tmp_path / "d")}
    # A key's split depends on the key alone: half the corpus falls as before, under any seed.
    for path in sorted(source.rglob("*.jpg"))[::2]:
        target = tmp_path / "half" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    again = Options(split="train=0.7,val=0.3", shard_size=60_000, min_side=32, seed=5)
    shard([str(tmp_path / "half")], tmp_path / "h", again, workers=1)
    assert {str(row["key"]) for row in rows(tmp_path / "h", "val")} < keys


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    summary = make(source, tmp_path / "d", dry_run=True)
    assert (summary.listed, summary.complete) == (60, False)
    assert summary.shards > 2
    assert not (tmp_path / "d").exists()


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "tiny.jpg").write_bytes(jpeg(0, 8, 8))
    with pytest.raises(
        ShardsError, match=r"not one of the 1 pictures could be used \(1 too small; the first, "
    ):
        make(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "train.json").exists()


def test_no_pictures_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "note.txt").write_text("hello")
    with pytest.raises(ShardsError, match=r"no pictures in .* among 1 files"):
        make(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ShardsError, match="there is no source"):
        make(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_repositorys_own_pictures(pictures: Path, tmp_path: Path) -> None:
    summary = shard([str(pictures)], tmp_path / "d", Options(shard_size=2_000_000), workers=2)[0]
    assert summary.samples == summary.listed > 0
    assert {str(row["format"]) for row in rows(tmp_path / "d")} == {"jpeg", "webp"}


def test_a_folder_of_tars_is_told_how_to_name_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cat.tar", "w"):
        pass
    with pytest.raises(ShardsError, match=r"'shards:.*/\*\.tar' where they are WebDataset"):
        make(tmp_path, tmp_path / "d")
