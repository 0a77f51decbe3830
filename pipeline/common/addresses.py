"""Random numbers by address: each is a hash of where it is drawn; no generator keeps a state.

The numbers are part of what users keep (the order of training, the listing of shards, noise): they
never change.

Source of the 64-bit mixing: the finaliser of SplitMix64 in Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash_words(*words: int) -> int:
    """Return a 64-bit hash of integers, in [0, 2^64): each is added and mixed in turn."""
    state = 0
    for word in words:
        state = (state + (word & MASK) + GOLDEN) & MASK
        state = ((state ^ (state >> 30)) * _FIRST) & MASK
        state = ((state ^ (state >> 27)) * _SECOND) & MASK
        state ^= state >> 31
    return state


def mix(values: Words) -> Words:
    """Return `values` (uint64, any shape) mixed as `hash_words` mixes one: a bijection."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(GOLDEN)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
        return values ^ (values >> np.uint64(31))


def scattered(keys: Words | np.uint64, numbers: npt.NDArray[np.int64]) -> Words:
    """Return number `numbers[i]` of the SplitMix64 sequence that starts at a key, uint64 (n,)."""
    with np.errstate(over="ignore"):
        return mix(numbers.astype(np.uint64) * np.uint64(GOLDEN) + keys)


def permutation(key: int, count: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(count), int64 (count,), that is a function of `key` alone."""
    return np.argsort(scattered(np.uint64(key & MASK), np.arange(count)), kind="stable")


def text_seed(*words: object) -> int:
    """Return a seed in [0, 2^63) that is a function of `words`, which are written as text."""
    text = "\0".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
