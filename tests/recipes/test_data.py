"""What a run is trained on: several corpora, shards behind a URL, crops changed on the device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import fsspec
import pytest
import torch
import yaml

from recipes.config.load import load_recipe
from recipes.config.settings import Data
from recipes.train import main
from recipes.training.data import Feed
from shards import Batch, Manifest
from shards.options import Options
from shards.run import shard

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def kodak_shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("kodak")
    shard([str(pictures / "kodak")], dest, Options(split="train"), workers=1)
    return dest


def feed(path: Path, *overrides: str, rank: int = 0, world_size: int = 1) -> Feed:
    return Feed(load_recipe(path, overrides).runs()[0], rank, world_size, CPU)


def by_slot(batch: Batch) -> Iterator[tuple[int, tuple[str, torch.Tensor]]]:
    yield from zip(batch.slots, zip(batch.keys, batch.images, strict=True), strict=True)


def taken(feed: Feed, step: int, count: int) -> Iterator[Batch]:
    yield from islice(feed.from_step(step), count)
    feed.close()


def test_corpora_are_mixed_by_weight(write_recipe, photo_shards: Path, kodak_shards: Path) -> None:
    path = write_recipe()
    mixture = f"data.train={{{photo_shards}: 3, {kodak_shards}: 1}}"
    kodak = {key for _, keys in _members(kodak_shards) for key in keys}
    batches = list(taken(feed(path, mixture), 0, 64))
    drawn = [key for batch in batches for key in batch.keys]
    assert 0.2 < sum(key in kodak for key in drawn) / len(drawn) < 0.3
    # Any number of processes sees the same, from any step on.
    shared = [taken(feed(path, mixture, rank=rank, world_size=2), 50, 5) for rank in range(2)]
    for whole, *parts in zip(batches[50:], *shared, strict=False):
        pictures = {slot: picture for part in parts for slot, picture in by_slot(part)}
        for slot, (key, image) in by_slot(whole):
            assert pictures[slot][0] == key
            assert torch.equal(pictures[slot][1], image)


def _members(folder: Path) -> Iterator[tuple[str, list[str]]]:
    import pyarrow.parquet as pq

    for path in folder.glob("train-*.parquet"):
        yield path.stem, pq.read_table(path, columns=["key"])["key"].to_pylist()


@pytest.mark.slow
def test_a_mixture_is_told_of_and_must_stay(
    write_recipe, photo_shards: Path, kodak_shards: Path, caplog
) -> None:
    path = write_recipe(stages=[_stage(steps=2)])
    out = path.parent / "runs" / "base"
    assert main([str(path), f"data.train={{{photo_shards}: 3, {kodak_shards}: 1}}"]) == 0
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    from mlflow import MlflowClient

    told = MlflowClient().get_run(run_id)
    found = {one.dataset.name: one.dataset.digest for one in told.inputs.dataset_inputs}
    assert found == {
        "train-0": Manifest.read(photo_shards).digest[:36],
        "train-1": Manifest.read(kodak_shards).digest[:36],
    }
    (out / "run.json").unlink()
    assert main([str(path), f"data.train={{{photo_shards}: 1, {kodak_shards}: 1}}"]) == 2
    assert "have changed since" in caplog.text


def test_crops_are_changed_on_the_device_alike_after_a_restart(write_recipe) -> None:
    path = write_recipe()
    options = ("data.augment={downscale: 0.5, colour: 0.1}",)
    batches = list(taken(feed(path, *options), 0, 6))
    assert all(batch.images.shape == (4, 3, 64, 64) for batch in batches)
    assert all(batch.images.dtype == torch.float32 for batch in batches)
    assert min(float(batch.images.min()) for batch in batches) >= 0
    assert max(float(batch.images.max()) for batch in batches) <= 1
    plain = list(taken(feed(path), 0, 6))
    assert not torch.allclose(plain[0].images / 255, batches[0].images, atol=0.02)
    for whole, again in zip(batches[3:], taken(feed(path, *options), 3, 3), strict=True):
        assert torch.equal(whole.images, again.images)


@pytest.mark.slow
def test_training_on_augmented_crops_resumes_to_the_same_bits(write_recipe, caplog) -> None:
    path = write_recipe(stages=[_stage(steps=4)])
    augment = "data.augment={downscale: 0.5, colour: 0.1}"
    assert main([str(path), augment]) == 0
    assert main([str(path), augment, "out=cut", "stages.0.steps=2"]) == 0
    (Path("cut") / "base" / "run.json").unlink()
    assert main([str(path), augment, "out=cut"]) == 0
    whole, cut = (out / "base" / "model.safetensors" for out in (path.parent / "runs", Path("cut")))
    assert whole.read_bytes()[-4096:] == cut.read_bytes()[-4096:]  # weights; names come first
    (path.parent / "runs" / "base" / "run.json").unlink()
    assert main([str(path)]) == 2
    assert "begun with other settings (augment was {" in caplog.text


def _stage(**changes: object) -> dict[str, object]:
    stage = {"name": "base", "rate_weight": 0.3, "steps": 6, "batch": 4, "crop": 64, "lr": 1e-3}
    return stage | changes


def test_shards_behind_a_url_come_through_the_recipes_cache(
    write_recipe, photo_shards: Path, tmp_path: Path
) -> None:
    remote = fsspec.filesystem("memory")
    for file in photo_shards.glob("train*"):
        remote.pipe_file(f"/photos/{file.name}", file.read_bytes())
    path = write_recipe()
    there = ("data.train=memory://photos", f"data.cache.folder={tmp_path / 'cache'}")
    plain = list(taken(feed(path), 5, 4))
    for one, other in zip(plain, taken(feed(path, *there), 5, 4), strict=True):
        assert torch.equal(one.images, other.images)
    assert list((tmp_path / "cache").rglob("*.tar*"))
    remote.rm("/photos", recursive=True)


def test_tars_that_others_made(write_recipe, photo_shards: Path, tmp_path: Path) -> None:
    for file in photo_shards.glob("train-*.tar"):
        (tmp_path / file.name).symlink_to(file)
    path = write_recipe()
    batches = taken(feed(path, f"data.train={tmp_path}/train-*.tar"), 0, 3)
    assert [len(batch.keys) for batch in batches] == [4, 4, 4]


def test_the_pages_example_is_a_recipes_part(root: Path) -> None:
    text = (root / "docs" / "training.md").read_text()
    shown = yaml.safe_load(re.findall(r"```yaml\n(data:.*?)```", text, re.DOTALL)[0])
    data = Data(**shown["data"])
    assert list(data.corpora.values()) == [3, 1, 2]
    assert data.augment is not None
    assert data.augment.downscale == 0.5


@pytest.mark.parametrize(
    ("override", "piece"),
    [
        ("data.train={}", "data.train"),
        ("data.train={a: 0}", "data.train.a: input should be greater than 0"),
        ("data.augment.downscale=2", "data.augment.downscale: input should be less than"),
        ("data.augment.hue=2", "unknown key data.augment.hue"),
        ("data.cache.gigabytes=0", "data.cache.gigabytes"),
        ("data.cache.gigabytes=1e-6", "the cache's limit is 1000 bytes"),
        ("data.train={nowhere: 1, elsewhere: 2}", "data.train: nowhere has no manifest"),
    ],
)
def test_one_sentence_for_each_mistake(write_recipe, caplog, override: str, piece: str) -> None:
    path = write_recipe()
    remote = fsspec.filesystem("memory")
    more = []
    if "1e-6" in override:
        folder = Path(str(load_recipe(path).data.train))
        for file in folder.glob("train*"):
            remote.pipe_file(f"/small/{file.name}", file.read_bytes())
        more = ["data.train=memory://small"]
    assert main([str(path), override, *more]) == 2
    assert piece in caplog.text
