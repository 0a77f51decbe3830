"""Processes that augment for all workers: the same shards, also after one was lost."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from shards import ShardsError, ShardsRuntimeError
from shards.augment.operations import Augmenter
from shards.augment.server import halved
from shards.augment.spec import Spec
from shards.augment.surfaces import Device
from shards.options import Options, augment_options, parse_devices
from tests.shards.making import SMALL, checksums, corpus, make

SPEC = """
operations:
  - RandomDownscale: {scale: [0.5, 0.9], min_side: 34, filter: [lanczos, area]}
  - RandomCrop: {size: 32, count: 2, detail: 4}
  - RandomHorizontalFlip: {}
"""


@pytest.fixture
def options(tmp_path: Path) -> Options:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return replace(SMALL, shard_size=30_000, augment=augment_options(str(path), "cpu"))


@pytest.mark.slow
def test_servers_give_the_workers_own_shards_also_after_one_was_killed(
    options: Options, tmp_path: Path
) -> None:
    before = set(psutil.Process().children())
    source = corpus(tmp_path / "corpus", count=40)
    (source / "class0" / "bad.jpg").write_bytes(b"nothing")
    summary = make(source, tmp_path / "alone", options)
    assert summary.shards > 2
    assert summary.reasons["not a picture"] == 1
    notes: list[str] = []

    def kill(done: int, total: int | None, note: str) -> None:
        notes.append(note)
        for child in psutil.Process().children():
            if "shards.augment.server" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)

    dest = tmp_path / "served"
    with pytest.raises(ShardsRuntimeError, match="augments was killed: run the same command again"):
        make(source, dest, options, devices=("cpu",), progress=kill)
    assert not [path for path in dest.iterdir() if path.name.endswith(".partial")]
    make(source, dest, options, devices=("cpu",), progress=lambda *told: notes.append(told[2]))
    assert checksums(dest) == checksums(tmp_path / "alone")
    assert any("workers wait for the device" in note and "crops/s" in note for note in notes)
    assert not set(psutil.Process().children()) - before


def batch(count: int) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = [(48 + number, 64 - number, 3) for number in range(count)]
    return [(f"{n}", rng.integers(0, 256, size, dtype=np.uint8)) for n, size in enumerate(sizes)]


class SmallDevice(Device):
    """A device that takes two pictures at once."""

    def resized(self, pictures, scalings):
        if len(pictures) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return super().resized(pictures, scalings)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    spec = Spec.from_dict(
        {
            "operations": [
                {"RandomDownscale": {"scale": [0.6, 0.9]}},
                {"RandomCrop": {"size": 16, "count": 2}},
            ]
        }
    )
    expected = Augmenter(spec, 0)(batch(7))
    found = halved(Augmenter(spec, 0, surface=SmallDevice("cpu")), batch(7))
    assert found.keys() == expected.keys()
    for key, crops in expected.items():
        assert [one.tobytes() for one in found[key]] == [one.tobytes() for one in crops]

    class NoDevice(Device):
        def resized(self, pictures, scalings):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        halved(Augmenter(spec, 0, surface=NoDevice("cpu")), batch(3))


def test_devices_are_named_one_by_one() -> None:
    assert parse_devices("auto") == parse_devices("cpu") == parse_devices("cuda") == []
    assert parse_devices("cuda:0,2,0") == ["cuda:0", "cuda:2"]
    for wrong in ("gpu", "cuda:", "cuda:0,", "cuda:-1"):
        with pytest.raises(ShardsError, match="give auto, cpu, cuda or cuda:0,2"):
            parse_devices(wrong)
