"""Two runs into one destination at once: one has the split, the other is refused, or helps."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import fsspec
import pytest

from shards import Manifest, ShardsError
from shards.inspecting.verify import verify
from shards.making.plan import Plan, check_planned
from shards.run import finish_splits, shard
from shards.store import Store
from tests.shards.making import SMALL, corpus, make
from tests.shards.test_reading_s3 import bucket

__all__ = ["bucket"]
TWO_SPLITS = replace(SMALL, split="train=0.5,val=0.5")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("two") / "a", count=12)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("two") / "b", count=9, classes=2)


@pytest.fixture(params=["folder", "memory"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "d")
        return
    yield "memory://two"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/two", recursive=True)


Before = Callable[[str, str, Callable[[], object]], None]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Before:
    """Have something happen once, just before a method of `Store` is called for a file."""

    def arrange(method: str, ending: str, happen: Callable[[], object]) -> None:
        ordinary = getattr(Store, method)

        def called(store: Store, *arguments: object, **more: object) -> object:
            if any(str(one).endswith(ending) for one in arguments):
                monkeypatch.setattr(Store, method, ordinary)
                happen()
            return ordinary(store, *arguments, **more)

        monkeypatch.setattr(Store, method, called)

    return arrange


def test_of_two_that_plan_at_once_one_is_refused(
    source: Path, others: Path, dest: str, before: Before
) -> None:
    before("create", ".train.plan.json", lambda: shard([str(others)], dest, SMALL, workers=1))
    with pytest.raises(ShardsError, match="of another source: pictures: "):
        shard([str(source)], dest, SMALL, workers=1)
    assert Manifest.read(dest).listed == 9
    assert verify(dest, workers=1).problems == ()
    rows = [name for name in Store(dest).names() if name.startswith(".train.plan.")]
    assert len(rows) == 2  # the plan and its rows: what the other one planned is gone


def test_another_seed_is_refused_by_name(source: Path, dest: str, before: Before) -> None:
    seeded = replace(SMALL, seed=1)
    before("create", ".train.plan.json", lambda: shard([str(source)], dest, seeded, workers=1))
    with pytest.raises(ShardsError, match="--seed was 1 and is now 0"):
        shard([str(source)], dest, SMALL, workers=1)
    assert Manifest.read(dest).seed == 1
    assert verify(dest, workers=1).problems == ()


def test_a_run_that_does_the_same_helps(source: Path, dest: str, before: Before) -> None:
    before("create", ".train.plan.json", lambda: shard([str(source)], dest, SMALL, workers=1))
    assert shard([str(source)], dest, SMALL, workers=1)[0].samples == 12
    assert verify(dest, workers=1).problems == ()


def test_a_refused_run_gives_its_other_splits_back(
    source: Path, others: Path, dest: str, before: Before
) -> None:
    held = replace(SMALL, split="val")
    before("create", ".val.plan.json", lambda: shard([str(others)], dest, held, workers=1))
    with pytest.raises(ShardsError, match="split 'val'"):
        shard([str(source)], dest, TWO_SPLITS, workers=1)
    assert Plan.read(Store(dest), "train") is None
    assert shard([str(source)], dest, SMALL, workers=1)[0].complete


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_whose_split_is_started_anew_writes_no_more(
    source: Path, dest: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    anew = replace(SMALL, seed=1)
    checks = iter(range(1, 100))

    def check(store: Store, split: str, identity: str) -> None:
        if next(checks) == number:
            shard([str(source)], dest, anew, workers=1, fresh=True)
        check_planned(store, split, identity)

    monkeypatch.setattr("shards.making.write.check_planned", check)
    with pytest.raises(ShardsError, match="started split 'train' anew"):
        shard([str(source)], dest, SMALL, workers=1)
    monkeypatch.undo()
    assert Manifest.read(dest).seed == 1
    shard([str(source)], dest, anew, workers=1)
    assert verify(dest, workers=1).problems == ()


def test_a_shard_of_another_plan_is_named(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "one", replace(SMALL, shard_size=9000))
    make(source, tmp_path / "two", replace(SMALL, shard_size=9000, seed=1))
    for ending in ("tar", "parquet"):
        name = f"train-000001.{ending}"
        shutil.copy(tmp_path / "one" / name, tmp_path / "two" / name)
    (tmp_path / "two" / "train.json").unlink()
    with pytest.raises(ShardsError, match=r"train-000001\.parquet was made by another run"):
        finish_splits(tmp_path / "two")


def created_by(stores: list[Store], contents: list[bytes]) -> list[bytes]:
    """Return which of `contents` were created as one file, by as many threads at once."""
    together = Barrier(len(contents))

    def create(store: Store, data: bytes) -> bool:
        together.wait()
        try:
            store.create("file", data)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(contents)) as pool:
        succeeded = pool.map(create, stores, contents)
        return [data for data, won in zip(contents, succeeded, strict=True) if won]


def test_of_several_that_create_a_file_at_once_one_succeeds(dest: str) -> None:
    store = Store(dest)
    (won,) = created_by([store] * 6, [bytes([number]) * 999 for number in range(6)])
    assert store.read("file") == won
    store.create("file", won)  # as a second try of the same does
    assert store.names() == {"file"}


def test_a_file_is_created_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*names: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    test_of_several_that_create_a_file_at_once_one_succeeds(str(tmp_path / "d"))


@pytest.mark.slow
def test_of_several_that_create_an_object_at_once_one_succeeds(bucket: str) -> None:
    contents = [bytes([number]) * 999 for number in range(6)]
    (won,) = created_by([Store(bucket) for _ in contents], contents)
    assert Store(bucket).read("file") == won
