"""The floor's smaller pieces: addresses, secrets, retries, digests, devices, errors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common import retries
from pipeline.common.addresses import hash_words, mix, permutation, text_seed
from pipeline.common.devices import memory_needed, pick_device
from pipeline.common.digests import file_sha256, json_sha256
from pipeline.common.errors import RunError, UsageError, explained
from pipeline.common.retries import Retries
from pipeline.common.secrets import (
    has_password,
    is_secret_name,
    redacted,
    secret_set_in,
    without_user,
)

# --- addresses: users keep what follows from these numbers, so they never change.


def test_addresses_are_what_they_always_were() -> None:
    assert hash_words(1, 2, 3) == 7702586659592502839
    assert permutation(7, 8).tolist() == [1, 5, 7, 0, 4, 6, 3, 2]
    assert mix(np.arange(2, dtype=np.uint64)).tolist() == [
        16294208416658607535,
        10451216379200822465,
    ]
    assert text_seed(0, "noise", 3) == 1395556113677668381


@given(st.integers(0, 2**64 - 1))
def test_one_word_and_an_array_are_mixed_alike(word: int) -> None:
    assert hash_words(word) == int(mix(np.array([word], dtype=np.uint64))[0])


@given(st.integers(), st.integers(0, 300))
def test_a_permutation_has_every_number_once(key: int, count: int) -> None:
    assert sorted(permutation(key, count)) == list(range(count))


# --- secrets


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "db_password", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "Passphrase"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert secret_set_in(f"export {name}=abc") == name
    assert secret_set_in(f"export {name}=$FROM_ELSEWHERE") is None


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "HOME", "MONKEY"])
def test_names_of_settings(name: str) -> None:
    assert not is_secret_name(name)


def test_secrets_are_covered_and_users_taken_out_of_urls() -> None:
    environment = {"HF_TOKEN": "hf_12345", "USE_TOKEN": "true", "HOME": "/home/me"}
    text = "true hf_12345 at https://me:word@host/path and /home/me"
    assert redacted(text, environment) == "true [redacted] at https://host/path and /home/me"
    assert has_password("s3://me:word@host")
    assert secret_set_in("curl https://me:word@host") == "a URL"
    assert without_user("https://me@host") == "https://host"


# --- retries


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("times", [0, 1, 4, 5, 9])
def test_what_fails_for_a_while_is_tried_again(pauses: list[float], times: int) -> None:
    left = [times]

    def attempt() -> str:
        if left[0]:
            left[0] -= 1
            raise ConnectionError("not now")
        return "here"

    policy = Retries(attempts=5, pause=1.0, longest_pause=3.0)
    if times < 5:
        assert policy.call(attempt, "it") == "here"
    else:
        with pytest.raises(ConnectionError, match="not now"):
            policy.call(attempt, "it")
    assert len(pauses) == min(times, 4)
    for pause, longest in zip(pauses, (1, 2, 3, 3), strict=False):
        assert longest / 2 <= pause <= longest


def test_what_trying_again_does_not_help_is_tried_once(pauses: list[float]) -> None:
    def attempt() -> None:
        raise FileNotFoundError("no")

    with pytest.raises(FileNotFoundError):
        Retries().call(attempt, "it", (FileNotFoundError,))
    assert not pauses


# --- digests


def test_a_file_has_one_digest_by_path_and_by_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == known
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 2)
    assert file_sha256(descriptor) == known
    os.close(descriptor)
    assert json_sha256({"b": 1, "a": "é"}) == json_sha256({"a": "é", "b": 1})


# --- devices


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta", "cpu:x", "cpu:7", ""])
def test_a_device_that_is_not_here_is_bad_usage(name: str) -> None:
    with pytest.raises(UsageError, match="device"):
        pick_device(name)


def test_full_memory_is_a_failure_at_run_time_and_no_missing_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(RunError, match="memory of device 'cpu' is full"), memory_needed("cpu"):
        torch.empty(1 << 62, dtype=torch.uint8)

    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(RunError, match="memory of device 'cpu' is full"):
        pick_device("cpu")


# --- errors


def test_an_error_has_its_exit_code_and_its_sentence(tmp_path: Path) -> None:
    assert explained(UsageError("wrong")) == (2, "wrong")
    assert explained(RunError("failed")) == (1, "failed")
    with pytest.raises(OSError, match="No such file") as told:
        (tmp_path / "none").read_bytes()
    assert explained(told.value) == (1, f"{tmp_path / 'none'}: No such file or directory")
    code, sentence = explained(KeyboardInterrupt()) or (0, "")
    assert code == 130
    assert "interrupted" in sentence
    assert explained(torch.OutOfMemoryError("CUDA out of memory. Tried ...")) == (
        1,
        "out of memory: CUDA out of memory",
    )
    assert explained(ValueError("a fault of the code")) is None
