"""The ablation's models side by side: what training makes of the same recipe, one after another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.train import main
from tests.benchmarks import ablation


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_training(
    write_recipe, held_out: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    common = {"steps": 3, "batch": 4, "crop": 64, "lr": 1e-3, "draws": "all"}
    stages = [
        {"name": "plain", "rate_weight": [1.85, 16], "cca": {"mode": "off"}, **common},
        {"name": "one", "variable_rate": [1.85, 16], **common},
    ]
    path = write_recipe(stages=stages, start="pyramid")
    out = path.parent / "together"
    words = f"ablation {path} --steps 3 --batch 4 --warmup 0 --window 2 --out {out}"
    words += f" --whole {held_out}"
    monkeypatch.setattr(sys, "argv", words.split())
    ablation.main()
    found = json.loads((out / "results.json").read_text())
    assert found["bd_rate"]["trial/plain"]["training"] == 0
    assert [row["stage"] for row in found["runs"]] == ["plain", "plain", "one"]
    assert [len(row["held_out"]["whole"]) for row in found["runs"]] == [1, 1, 2]
    assert main([str(path)]) == 0
    for one, other in (
        ("plain/w1.85", "plain/w1.85"),
        ("plain/w16", "plain/w16"),
        ("one/all", "one"),
    ):
        mine = load_file(out / one / "model.safetensors")
        trained = load_file(path.parent / "runs" / other / "model.safetensors")
        apart = torch.stack([(mine[name] - trained[name]).norm() for name in mine]).norm()
        assert apart < 1e-5 * torch.stack([tensor.norm() for tensor in mine.values()]).norm()
