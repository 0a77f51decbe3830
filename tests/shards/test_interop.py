"""The tars are ordinary WebDataset shards: others read them with nothing of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards.making import corpus, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("interop")
    source = corpus(folder / "corpus", count=20)
    make(source, folder / "dest")
    return source, folder / "dest"


def test_plain_webdataset_reads_them(made: tuple[Path, Path]) -> None:
    import webdataset

    source, dest = made
    urls = sorted(str(path) for path in dest.glob("*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(found) == 20
    for sample in found:
        assert sample["jpg"] == (source / f"{sample['__key__']}.jpg").read_bytes()
        assert int(sample["cls"]) == int(sample["__key__"][5])
    decoded = next(iter(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")))
    assert decoded["jpg"].shape[2] == 3
    assert decoded["json"] == {"label": decoded["__key__"].split("/")[0]}


def test_datasets_reads_them(made: tuple[Path, Path], tmp_path: Path) -> None:
    import datasets

    source, dest = made
    files = {"train": sorted(str(path) for path in dest.glob("*.tar"))}
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path)
    )
    assert len(loaded) == 20
    for row in loaded.cast_column("jpg", datasets.Image(decode=False)):
        assert row["jpg"]["bytes"] == (source / f"{row['__key__']}.jpg").read_bytes()
        assert row["json"] == {"label": row["__key__"].split("/")[0]}
