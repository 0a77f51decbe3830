"""Processes that augment for all workers: the same shards, also after one was lost."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from shards import ShardsError, ShardsRuntimeError
from shards.augment.operations import Augmenter, Refused
from shards.augment.server import Answer, LostError, answered, halved
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
    notes: list[str] = []
    summary = make(
        source, tmp_path / "alone", options, progress=lambda *told: notes.append(told[2])
    )
    assert re.search(r"; workers: decoding \d+%, operations \d+%, encoding \d+%$", notes[-1])
    assert summary.shards > 2
    assert summary.reasons["not a picture"] == 1

    def kill(done: int, total: int | None, note: str) -> None:
        notes.append(note)
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it was killed at an earlier report
                if "shards.augment.server" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)

    dest = tmp_path / "served"
    with pytest.raises(ShardsRuntimeError, match="augments was killed: run the same command again"):
        make(source, dest, options, devices=("cpu",), progress=kill)
    assert not [path for path in dest.iterdir() if path.name.endswith(".partial")]
    make(source, dest, options, devices=("cpu",), progress=lambda *told: notes.append(told[2]))
    assert checksums(dest) == checksums(tmp_path / "alone")
    said = r"crops/s, .*; workers: decoding \d+%, waiting for a device \d+%, encoding \d+%; "
    said += r"devices: busy \d+%, \d+\.\d batches in their queue"
    assert any(re.search(said, note) for note in notes)
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
    spec = two_crops()
    expected = Augmenter(spec, 0)(batch(7))
    found = halved(Augmenter(spec, 0, surface=SmallDevice("cpu")), batch(7))
    assert found.keys() == expected.keys()
    for key, crops in expected.items():
        assert [one.tobytes() for one in found[key]] == [one.tobytes() for one in crops]


def two_crops() -> Spec:
    return Spec.from_dict(
        {
            "operations": [
                {"RandomDownscale": {"scale": [0.6, 0.9]}},
                {"RandomCrop": {"size": 16, "count": 2}},
            ]
        }
    )


class OddDevice(Device):
    """A device on which pictures of one height fail, by an error of one's choice."""

    def __init__(self, error: Exception) -> None:
        super().__init__("cpu")
        self.error = error

    def resized(self, pictures, scalings):
        if any(one.shape[2] == 50 for one in pictures):
            raise self.error
        return super().resized(pictures, scalings)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("out of memory"), "it does not fit the memory of cpu"),
        (RuntimeError("an illegal shape\nand more"), "an illegal shape"),
    ],
)
def test_one_picture_that_cant_be_augmented_is_refused_alone(error: Exception, words: str) -> None:
    expected = Augmenter(two_crops(), 0).each(batch(7))
    found = halved(Augmenter(two_crops(), 0, surface=OddDevice(error)), batch(7))
    assert found.pop("2") == Refused("not augmented", words)
    assert found.keys() == expected.keys() - {"2"}
    for key, crops in found.items():
        assert [one.tobytes() for one in crops] == [one.tobytes() for one in expected[key]]


def test_a_lost_device_is_told_from_a_picture_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    augmenter = Augmenter(two_crops(), 0, surface=OddDevice(RuntimeError("an illegal shape")))
    monkeypatch.setattr(torch, "ones", lost)
    with pytest.raises(LostError, match="unspecified launch failure"):
        halved(augmenter, batch(7))
    sentence = "cpu was lost (CUDA error: unspecified launch failure): run the same command again; "
    assert answered(augmenter, batch(7), 0) == sentence + "it goes on where it stopped"


def test_an_answer_says_how_long_its_batch_waited_and_was_worked_on() -> None:
    expected = Augmenter(two_crops(), 0).each(batch(3))
    before = time.monotonic()
    told = answered(Augmenter(two_crops(), 0, surface=Device("cpu")), batch(3), before - 5)
    assert isinstance(told, Answer)
    assert told.results.keys() == expected.keys()
    assert told.queueing >= 5
    assert 0 < told.working <= time.monotonic() - before


def lost(*_: object, **__: object) -> torch.Tensor:
    raise RuntimeError("CUDA error: unspecified launch failure\nCompile with ...")


def test_devices_are_named_one_by_one() -> None:
    assert parse_devices("auto") == parse_devices("cpu") == parse_devices("cuda") == []
    assert parse_devices("cuda:0,2,0") == ["cuda:0", "cuda:2"]
    for wrong in ("gpu", "cuda:", "cuda:0,", "cuda:-1"):
        with pytest.raises(ShardsError, match="give auto, cpu, cuda or cuda:0,2"):
            parse_devices(wrong)
