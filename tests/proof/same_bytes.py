"""The same bytes enter the model, whatever the ranks, the workers, the store and the stops.

    python -m tests.proof.same_bytes [--batches 300] [--seed 0]

prints a table of digests, a row a way of training, and exits with 1 unless all of a corpus are
equal. Each is the SHA-256 of all that enters the model over so many global batches of 192: keys,
crops after augmentation, addresses of noise and rates, in the order of the global batch.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import fsspec
import torch

from pipeline.common.addresses import text_seed
from shards import Augment, Batch, Cache, Stream
from tests.shards.made import encoded, photo, write_split

GLOBAL = 192
WORLDS = (1, 2, 3, 4, 8, 64)
AUGMENT = Augment(16, downscale=0.8, flip=0.5, colour=0.1)
BEGINNING = {"epoch": 0, "samples_seen": 0, "order": 2}


@dataclass(frozen=True)
class Way:
    """A way of training: what is read, through which cache, and who reads it when."""

    name: str
    dest: dict[str, float]
    cache: Cache | None
    worlds: Callable[[int], int]
    workers: int = 0
    stops: Sequence[int] = ()


def digest(way: Way, batches: int) -> str:
    """Return the digest of the first `batches` global batches, trained in this way."""
    found, state, done = hashlib.sha256(), BEGINNING, 0
    ends = [*(stop for stop in way.stops if stop < batches), batches]
    for turn, end in enumerate(ends):
        for parts, after in _global_batches(way, way.worlds(turn), state, end - done):
            for one in _entered(parts):
                found.update(one)
            state = after
        done = end
    return found.hexdigest()


def _global_batches(
    way: Way, world: int, state: dict[str, int], count: int
) -> Iterator[tuple[list[Batch], dict[str, int]]]:
    """Yield the parts of all ranks, and the state after them; the ranks end then."""
    ranks = [
        Stream(
            way.dest,
            batch_size=GLOBAL // world,
            crop=AUGMENT.needed(),
            seed=11,
            rank=rank,
            world_size=world,
            workers=way.workers if rank < 2 else 0,
            block=3,
            cache=way.cache,
            augment=AUGMENT,
        )
        for rank in range(world)
    ]
    for one in ranks:
        one.load_state_dict(state)
    for parts in islice(zip(*ranks, strict=True), count):
        after = ranks[0].state_dict()
        assert all(one.state_dict() == after for one in ranks)
        yield list(parts), after
    for one in ranks:
        one.close()


def _entered(parts: list[Batch]) -> Iterator[bytes]:
    """Yield all that enters the model, in the order of the global batch."""
    pictures = {
        slot: (key, position, image)
        for part in parts
        for slot, key, position, image in zip(
            part.slots, part.keys, part.positions, part.images, strict=True
        )
    }
    assert sorted(pictures) == list(range(GLOBAL))
    step = parts[0].state["samples_seen"] // GLOBAL
    for slot in range(GLOBAL):
        key, position, image = pictures[slot]
        draws = [text_seed(0, kind, parts[0].epoch, step, slot) for kind in ("noise", "rate")]
        yield f"{key} {position} {draws}".encode()
        yield image.numpy().tobytes()


def corpora(folder: Path, scale: int = 1) -> dict[str, dict[str, float]]:
    """Make two corpora; return the destinations that are trained on: one, and both mixed."""
    generator = random.Random(5)
    for number, (name, shards) in enumerate((("a", 9), ("b", 4))):
        sizes = [generator.randint(20, 60) * scale for _ in range(shards)]
        samples = []
        for i in range(sum(sizes)):
            pixels = photo(1000 * number + i % 97, 20 + i % 23, 24 + i % 17)
            samples.append((f"{name}{i:05d}", encoded(pixels)))
        write_split(folder / name, sizes, samples, checksums=True)
    a, b = str(folder / "a"), str(folder / "b")
    return {"one corpus": {a: 1.0}, "3 to 1 mixture": {a: 3.0, b: 1.0}}


def ways(dest: dict[str, float], folder: Path, batches: int, seed: int) -> list[Way]:
    """Return the ways of training on `dest` whose digests must be equal."""
    dice = random.Random(seed)
    found = [Way(f"{world} ranks", dest, None, [world].__getitem__) for world in WORLDS]
    for workers in (1, 3):
        found.append(Way(f"2 ranks, {workers} workers", dest, None, lambda turn: 2, workers))
    for attempt in range(2):
        stops = sorted(dice.sample(range(1, batches), min(4, batches - 1)))
        worlds = [dice.choice(WORLDS) for _ in range(len(stops) + 1)]
        name = f"stops at {stops}, ranks {worlds}"
        found.append(Way(name, dest, None, worlds.__getitem__, attempt, tuple(stops)))
    remote = {_uploaded(place): weight for place, weight in dest.items()}
    largest = sum(sorted(_sizes(dest))[-5:])
    for name, cache in (
        ("a store", Cache(folder / "cache")),
        ("a store, a cache that is too small", Cache(folder / "small", limit=largest)),
        ("a store, no cache", Cache(None)),
    ):
        found.append(Way(f"{name}, 4 ranks", remote, cache, lambda turn: 4))
    return found


def _uploaded(place: str) -> str:
    """Copy shards to a store in memory; return their URL there."""
    url = f"memory://proof{place}"
    fsspec.filesystem("memory").put(f"{place}/", f"{url}/", recursive=True)
    return url


def _sizes(dest: dict[str, float]) -> list[int]:
    return [path.stat().st_size for place in dest for path in Path(place).glob("*.tar")]


def main() -> int:
    """Print the table; return 1 unless the digests of each corpus are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    equal = True
    with tempfile.TemporaryDirectory() as temporary:
        for name, dest in corpora(Path(temporary), scale=4).items():
            print(f"\n{name}, {given.batches} global batches of {GLOBAL}:\n")
            print("| trained by | SHA-256 of what entered the model |\n|---|---|")
            seen = set()
            for way in ways(dest, Path(temporary) / name, given.batches, given.seed):
                found = digest(way, given.batches)
                seen.add(found)
                print(f"| {way.name} | {found} |", flush=True)
            equal = equal and len(seen) == 1
    print("\nall equal" if equal else "\nNOT EQUAL")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
