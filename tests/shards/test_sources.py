"""The same pictures from every kind of source, with their labels, captions and columns."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards import Manifest, ShardsError
from shards.run import shard
from tests.shards.making import SMALL, corpus, jpeg, make, rejects, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus") / "pictures", count=24)


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("expected") / "shards"
    make(folder, dest)
    return dest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def contents(dest: Path) -> dict[str, bytes]:
    """Return every member of every tar of `dest`."""
    found = {}
    for path in sorted(dest.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


def tars(dest: Path) -> list[str]:
    return [info.sha256 for info in Manifest.read(dest).shards]


def tar_up(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname=".")
    return path


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "stored.zip"])
def test_archives_make_the_same_tars_as_the_folder(
    folder: Path, expected: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"pictures.{kind}"
    if kind.startswith("tar"):
        tar_up(folder, path, "w:gz" if kind.endswith("gz") else "w")
    else:
        method = zipfile.ZIP_STORED if kind.startswith("stored") else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for file in folder.rglob("*.jpg"):
                archive.write(file, file.relative_to(folder))
    make(path, tmp_path / "dest", workers=2)
    assert tars(tmp_path / "dest") == tars(expected)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["dest", path.name])


def test_a_tar_of_tars_is_read_in_place(folder: Path, expected: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as outer:
        for one in sorted(folder.iterdir()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for file in sorted(one.iterdir()):
                    tar.add(file, arcname=file.name)
            member = tarfile.TarInfo(f"{one.name}.tar")
            member.size = len(inner.getvalue())
            outer.addfile(member, io.BytesIO(inner.getvalue()))
    make(path, tmp_path / "dest")
    assert tars(tmp_path / "dest") == tars(expected)
    assert Manifest.read(tmp_path / "dest").classes == ("class0", "class1", "class2")


def test_imagenets_layout(shared_data: Path, tmp_path: Path) -> None:
    train = shared_data / "data" / "imagenet-mini" / "train"
    path = tmp_path / "ILSVRC2012_img_train.tar"
    with tarfile.open(path, "w") as outer:
        for one in sorted(train.iterdir())[:20]:
            tar_up(one, tmp_path / "inner.tar")
            outer.add(tmp_path / "inner.tar", arcname=f"{one.name}.tar")
    summary = make(path, tmp_path / "dest")
    assert summary.listed == summary.samples == 20
    assert {str(row["label"]) for row in rows(tmp_path / "dest")} == {
        one.name for one in sorted(train.iterdir())[:20]
    }


def test_links_in_a_tar_are_pictures_too(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "linked.tar"
    first = sorted(folder.rglob("*.jpg"))[0]
    with tarfile.open(path, "w") as tar:
        tar.add(first, arcname="./a/one.jpg")
        for name, kind, target in (
            ("./a/hard.jpg", tarfile.LNKTYPE, "./a/one.jpg"),
            ("b/soft.jpg", tarfile.SYMTYPE, "../a/one.jpg"),
            ("b/gone.jpg", tarfile.SYMTYPE, "nowhere.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    summary = make(path, tmp_path / "dest")
    assert (summary.listed, summary.samples) == (4, 3)
    assert {row["sha256"] for row in rows(tmp_path / "dest")} == {
        hashlib.sha256(first.read_bytes()).hexdigest()
    }
    assert rejects(tmp_path / "dest") == {"linked.tar/b/gone.jpg": "missing"}


def test_a_list_of_paths(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.rglob("*.jpg"))[:6]
    (tmp_path / "lists").mkdir()
    listed = [str(paths[0]), *(f"../pictures/{path.relative_to(folder)}" for path in paths[1:])]
    shutil.copytree(folder, tmp_path / "pictures")
    text = tmp_path / "lists" / "some.txt"
    text.write_text("\n".join([*listed, "", listed[1], "nowhere.jpg", "../pictures"]) + "\n")
    summary = make(text, tmp_path / "dest")
    assert (summary.listed, summary.samples) == (8, 6)
    assert rejects(tmp_path / "dest") == {
        "some.txt/nowhere.jpg": "missing",
        "some.txt/../pictures": "missing",
    }


def test_shards_are_sharded_again_with_all_they_hold(expected: Path, tmp_path: Path) -> None:
    make(f"shards:{expected}/train-{{000000..000001}}.tar", tmp_path / "two")
    manifest = Manifest.read(expected)
    assert Manifest.read(tmp_path / "two").samples == sum(manifest.sizes[:2])
    make(f"shards:{expected}/train-*.tar", tmp_path / "all")
    assert contents(tmp_path / "all") == contents(expected)


def test_img2datasets_output_keeps_its_json(tmp_path: Path) -> None:
    written = {}
    for number in range(2):
        with tarfile.open(tmp_path / f"{number:05d}.tar", "w") as tar:
            for row in range(5):
                key = f"{number:05d}{row:04d}"
                about = {"caption": f"picture {row}", "url": "https://x", "status": "success"}
                for ending, data in {
                    "jpg": jpeg(number * 5 + row),
                    "json": json.dumps(about).encode(),
                    "txt": f"picture {row}".encode(),
                }.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                    written[member.name] = data
    make(f"shards:{tmp_path}/0000?.tar", tmp_path / "dest")
    assert contents(tmp_path / "dest") == written


CAPTION_FILES = {
    "results.csv": "image_name| comment_number| comment\n"
    'picture0000.jpg| 0| A "smooth" noise .\npicture0000.jpg| 1| Another\n',
    "captions.txt": 'image,caption\npicture0000.jpg,"A ""smooth"" noise ."\n'
    "picture0000.jpg,Another\n",
    "flickr.token": 'picture0000.jpg#0\tA "smooth" noise .\npicture0000.jpg#1\tAnother\n',
}


@pytest.mark.parametrize("name", CAPTION_FILES)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_captions_travel(tmp_path: Path, name: str, packed: bool) -> None:
    source = tmp_path / "flickr" / "images"
    source.mkdir(parents=True)
    for number in range(2):
        (source / f"picture{number:04d}.jpg").write_bytes(jpeg(number))
    (tmp_path / "flickr" / name).write_text(CAPTION_FILES[name])
    spec = tmp_path / "flickr"
    if packed:
        spec = Path(shutil.make_archive(str(tmp_path / "flickr"), "zip", tmp_path / "flickr"))
    summary = make(spec, tmp_path / "dest")
    assert (summary.samples, summary.ignored) == (2, 0)
    found = contents(tmp_path / "dest")
    captions = ['A "smooth" noise .', "Another"]
    assert found["images/picture0000.txt"].decode() == "\n".join(captions)
    assert json.loads(found["images/picture0000.json"]) == {"captions": captions}
    assert found["images/picture0001.txt"] == b""  # others have one


def test_changed_captions_are_another_source(tmp_path: Path) -> None:
    source = tmp_path / "flickr"
    source.mkdir()
    (source / "a.jpg").write_bytes(jpeg())
    (source / "captions.txt").write_text("image,caption\na.jpg,One\n")
    make(source, tmp_path / "dest")
    (source / "captions.txt").write_text("image,caption\na.jpg,Two\n")
    with pytest.raises(ShardsError, match="captions, labels or columns changed"):
        make(source, tmp_path / "dest")


def test_metadata_columns_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jpg").write_bytes(jpeg())
    (source / "metadata.jsonl").write_text('{"file_name": "a.jpg", "camera": "X1", "iso": 200}\n')
    make(source, tmp_path / "dest")
    assert json.loads(contents(tmp_path / "dest")["a.json"]) == {"camera": "X1", "iso": 200}


def table(folder: Path) -> pa.Table:
    paths = sorted(folder.rglob("*.jpg"))
    pictures = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    return pa.table({"image": pictures, "width": list(range(len(paths)))})


def test_parquet_with_its_columns(folder: Path, tmp_path: Path) -> None:
    pq.write_table(table(folder), tmp_path / "pictures.parquet")
    make(tmp_path / "pictures.parquet", tmp_path / "file")
    (tmp_path / "parts").mkdir()
    pq.write_table(table(folder).slice(0, 10), tmp_path / "parts" / "a.parquet")
    pq.write_table(table(folder).slice(10), tmp_path / "parts" / "b.parquet")
    make(tmp_path / "parts", tmp_path / "folder", workers=2)
    assert tars(tmp_path / "file") == tars(tmp_path / "folder")
    found = contents(tmp_path / "file")
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        assert found[path.name] == path.read_bytes()
        assert json.loads(found[f"{path.stem}.json"]) == {"width": number}


def test_a_saved_dataset_with_its_class_names(folder: Path, tmp_path: Path) -> None:
    import datasets

    paths = sorted(folder.rglob("*.jpg"))
    names = ["class2", "class0", "class1"]
    dataset = datasets.Dataset.from_dict(
        {
            "image": [str(path) for path in paths],
            "label": [names.index(path.parent.name) for path in paths],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        ),
    )
    dataset.save_to_disk(tmp_path / "saved")
    make(tmp_path / "saved", tmp_path / "dest")
    assert Manifest.read(tmp_path / "dest").classes == ("class2", "class0", "class1")
    found = contents(tmp_path / "dest")
    for path in paths:
        assert found[path.name] == path.read_bytes()
        assert int(found[f"{path.stem}.cls"]) == names.index(path.parent.name)
    datasets.DatasetDict({"a": dataset, "b": dataset}).save_to_disk(tmp_path / "both")
    with pytest.raises(ShardsError, match="has splits a, b: name one"):
        make(f"hf:{tmp_path / 'both'}", tmp_path / "no")
    assert make(f"hf:{tmp_path / 'both'}:b", tmp_path / "b").samples == 24


def test_a_dataset_of_webdataset_shards(expected: Path, tmp_path: Path) -> None:
    shutil.copytree(
        expected, tmp_path / "wds", ignore=shutil.ignore_patterns(".*", "*.p*", "*.json")
    )
    summary = make(f"hf:{tmp_path / 'wds'}", tmp_path / "dest")
    assert summary.samples == 24
    assert contents(tmp_path / "dest") == contents(expected)  # labels and JSON too


def test_several_sources_at_once(folder: Path, tmp_path: Path) -> None:
    tar = tar_up(folder, tmp_path / "again.tar")
    (summary,) = shard([str(folder), str(tar)], tmp_path / "dest", SMALL, workers=1)
    assert summary.samples == 48
    keys = [str(row["key"]) for row in rows(tmp_path / "dest")]
    assert len(set(keys)) == 48


def broken_gz(path: Path) -> Path:
    data = tar_up(path, path.parent / "whole.tar.gz", "w:gz").read_bytes()
    (path.parent / "cut.tar.gz").write_bytes(data[: len(data) // 2])
    return path.parent / "cut.tar.gz"


def broken_tar(path: Path) -> Path:
    data = tar_up(path, path.parent / "whole.tar").read_bytes()
    (path.parent / "cut.tar").write_bytes(data[: len(data) // 2 + 100])
    return path.parent / "cut.tar"


def broken_zip(path: Path) -> Path:
    (path.parent / "cut.zip").write_bytes(b"PK\3\4 and no more")
    return path.parent / "cut.zip"


def broken_parquet(path: Path) -> Path:
    (path.parent / "cut.parquet").write_bytes(b"PAR1 and no more")
    return path.parent / "cut.parquet"


def unknown_kind(path: Path) -> Path:
    (path.parent / "notes.doc").write_bytes(b"a letter")
    return path.parent / "notes.doc"


def binary_list(path: Path) -> Path:
    (path.parent / "list.txt").write_bytes(b"\0\1\2")
    return path.parent / "list.txt"


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (broken_gz, "is no gzip, or is cut off"),
        (broken_tar, "is no tar, or is cut off"),
        (broken_zip, "is no zip, or is cut off"),
        (broken_parquet, "cannot be read"),
        (unknown_kind, "can't read pictures from"),
        (binary_list, "is no list of paths"),
    ],
)
def test_what_is_no_source_is_refused(broken, sentence: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "in" / "pictures")
    with pytest.raises(ShardsError, match=sentence):
        make(broken(copy), tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_a_column_of_no_pictures_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"words": ["a", "b"]}), tmp_path / "words.parquet")
    with pytest.raises(ShardsError, match="no column of pictures: it has words"):
        make(tmp_path / "words.parquet", tmp_path / "dest")
    with pytest.raises(ShardsError, match="are not there: check the pattern"):
        make(f"shards:{tmp_path}/x-{{0..3}}.tar", tmp_path / "dest")


def test_damage_inside_a_zip_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    picture = jpeg(1, 640, 480)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", jpeg(0))
        archive.writestr("b.jpg", picture)
        place = archive.getinfo("b.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[place + 200] ^= 0xFF
    path.write_bytes(data)
    summary = make(path, tmp_path / "dest")
    assert summary.samples == 1
    assert rejects(tmp_path / "dest") == {"in.zip/b.jpg": "unreadable"}


def test_the_first_picture_of_a_sample_with_several(tmp_path: Path) -> None:
    left, right = jpeg(1), jpeg(2)
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for name, data in {"a.left.jpg": left, "a.right.jpg": right}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    make(f"shards:{tmp_path}/pairs.tar", tmp_path / "dest")
    found = contents(tmp_path / "dest")
    assert found == {"a.jpg": left, "a.right.jpg": right}
    with Image.open(io.BytesIO(found["a.right.jpg"])) as image:
        assert image.size == (64, 48)
