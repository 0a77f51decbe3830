"""The short form of the proof of kills, and that it would find what is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.patience import patience
from tests.proof.main_job import files


@pytest.mark.slow
def test_shards_and_streams_survive_a_handful_of_kills(root: Path) -> None:
    command = [sys.executable, "-m", "tests.proof.kills", "--local", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--stages", "shard,compress", "--seed", "4"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=patience(300),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost or doubled" in done.stdout


def run(folder: Path, weights: float, about: Mapping[str, object], spooled: bool) -> dict[str, str]:
    """The files of a run with these weights, as they are compared."""
    place = folder / "runs" / "base"
    (place / "tracking").mkdir(parents=True)
    save_file({"a": torch.full((3,), weights)}, place / "model.safetensors", {"run_id": "1" * 32})
    (place / "run.json").write_text(json.dumps(about))
    if spooled:
        (place / "tracking" / "picture.png").write_bytes(b"not sent")
    return dict(files(folder))


def test_what_is_lost_or_changed_is_found_and_a_run_of_another_name_is_the_same(
    tmp_path: Path,
) -> None:
    one = run(tmp_path / "a", 1.0, {"run_id": "0" * 32, "step": 7, "seconds": 1.0}, False)
    assert one == run(tmp_path / "b", 1.0, {"run_id": "a" * 32, "step": 7, "seconds": 2.0}, False)
    for number, (weights, step, spooled) in enumerate(((1.5, 7, 0), (1.0, 8, 0), (1.0, 7, 1))):
        folder = tmp_path / str(number)
        assert one != run(folder, weights, {"run_id": "b" * 32, "step": step}, bool(spooled))
