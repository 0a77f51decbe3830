"""What a process says whose companions are gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recipes.launching import peers


def _one_of_two(rank: int, folder: str) -> None:
    """Meet the other process, then end without a word, or find that it did."""
    os.environ["WORLD_SIZE"] = "2"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        os._exit(0)
    try:
        while True:
            dist.all_reduce(torch.ones(1))
    except Exception as error:
        said = peers.lost(error)
        Path(folder, "said").write_text(repr(said) if said is None else said[1])


def test_a_process_whose_companion_is_gone_says_so(tmp_path: Path) -> None:
    mp.start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    assert "another process of this training has ended" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("error", [RuntimeError("a shape is wrong"), ValueError("by peer")])
def test_other_failures_are_not_taken_for_that(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert peers.lost(error) is None


def test_a_process_alone_has_none_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert peers.lost(RuntimeError("Connection closed by peer [127.0.0.1]:1")) is None
