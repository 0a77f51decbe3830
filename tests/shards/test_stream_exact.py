"""The same 500 global batches, to the pixel, from any ranks and workers, through interruptions."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import time
from collections.abc import Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path

import pytest
import simplejpeg

from shards import Batch, Stream
from tests.shards.made import encoded, photo, write_split

BATCHES, GLOBAL = 500, 8
SIZES = [31, 7, 50, 1, 44, 18, 25, 37]  # 213 samples: 26 global batches and 5 samples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of each subsampling and some PNGs, of many sizes, some smaller than a crop."""
    folder = tmp_path_factory.mktemp("corpus")
    samples = []
    for number in range(sum(SIZES)):
        pixels = photo(number, 20 + number % 61, 28 + number % 47)
        kind = ("444", "420", "422", "440", "png")[number % 5]
        data = (
            encoded(pixels)
            if kind == "png"
            else simplejpeg.encode_jpeg(pixels.copy(), 90, "RGB", kind)
        )
        samples.append((f"{number:03d}", data))
    write_split(folder, SIZES, samples)
    return folder


def ranks_streams(corpus: Path, ranks: int, workers: int, state: dict[str, int]) -> list[Stream]:
    """The streams of all ranks, continued from `state`."""
    streams = [
        Stream(
            corpus,
            batch_size=GLOBAL // ranks,
            crop=32,
            seed=11,
            rank=rank,
            world_size=ranks,
            workers=workers,
            block=3,
        )
        for rank in range(ranks)
    ]
    for one in streams:
        one.load_state_dict(state)
    return streams


def hashed(parts: Sequence[Batch]) -> str:
    """One hash of the keys and pixels of a global batch, from its ranks' parts."""
    digest = hashlib.sha256()
    pictures = [
        one for part in parts for one in zip(part.slots, part.keys, part.images, strict=True)
    ]
    assert [slot for slot, _, _ in sorted(pictures, key=itemgetter(0))] == list(range(GLOBAL))
    for _, key, image in sorted(pictures, key=itemgetter(0)):
        digest.update(key.encode())
        digest.update(image.numpy().tobytes())
    return digest.hexdigest()


def global_batches(
    corpus: Path, ranks: int, workers: int, state: dict[str, int], count: int
) -> tuple[list[str], dict[str, int]]:
    """Hash the next `count` global batches; return the state after them too."""
    streams = ranks_streams(corpus, ranks, workers, state)
    hashes = [hashed(parts) for parts in islice(zip(*streams, strict=True), count)]
    states = [one.state_dict() for one in streams]
    for one in streams:
        one.close()
    assert states == [states[0]] * ranks
    return hashes, states[0]


BEGINNING = {"epoch": 0, "samples_seen": 0, "order": 2}


@pytest.fixture(scope="module")
def wanted(corpus: Path) -> list[str]:
    hashes, _ = global_batches(corpus, 1, 0, BEGINNING, BATCHES)
    assert len(set(hashes)) == BATCHES
    return hashes


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_workers_change_nothing(corpus, wanted, ranks, workers):
    assert global_batches(corpus, ranks, workers, BEGINNING, BATCHES)[0] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_interruptions_and_other_ranks_change_nothing(corpus, wanted, seed):
    dice = random.Random(seed)
    seen: list[str] = []
    state = BEGINNING
    while len(seen) < BATCHES:
        count = min(dice.randint(1, 90), BATCHES - len(seen))
        ranks, workers = dice.choice([1, 2, 4, 8]), dice.choice([0, 0, 2])
        hashes, state = global_batches(corpus, ranks, workers, state, count)
        seen += hashes
    assert seen == wanted


def _train(corpus: Path, log: Path) -> None:
    """Receive batches for ever, and note each batch's hash and the state after it."""
    (one,) = ranks_streams(corpus, 1, 2, BEGINNING)
    with log.open("w") as file:
        for batch in one:
            file.write(json.dumps([hashed([batch]), one.state_dict()]) + "\n")
            file.flush()


@pytest.mark.slow
def test_a_process_killed_at_any_moment_goes_on_from_what_it_noted(corpus, wanted, tmp_path):
    log = tmp_path / "log"
    process = multiprocessing.get_context("fork").Process(target=_train, args=(corpus, log))
    process.start()
    while not log.exists() or log.stat().st_size < 5000:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    noted = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    assert len(noted) > 10
    seen = [one for one, _ in noted]
    state = noted[-1][1]
    rest = global_batches(corpus, 4, 0, state, max(BATCHES - len(seen), 0))[0]
    assert (seen + rest)[:BATCHES] == wanted
