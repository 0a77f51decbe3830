"""Reports made of chosen numbers, and small models on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from pipeline.codec import CCAConfig, CCAModel, save_model
from pipeline.evaluation.results import Measurement, ModelResult, PeerResult, Point, Report

SMALL = CCAConfig(
    latent_channels=12,
    slices=3,
    transform_channels=(8, 8, 8),
    transform_blocks=(0, 1, 0),
    context_channels=8,
    context_blocks=1,
    hyper_latent_channels=4,
    head_channels=(8, 8),
)
Pairs = Sequence[tuple[float, float]]


def point(bpp: float, psnr: float, setting: str = "", pictures: int = 3) -> Point:
    """A point whose pictures spread round the given means."""
    found = []
    for i in range(pictures):
        shift = i - (pictures - 1) / 2
        found.append(
            Measurement(
                name=f"picture{i}",
                bytes=round(1000 * bpp),
                bpp=bpp * (1 + 0.1 * shift),
                psnr=psnr + shift,
                ms_ssim=0.9,
                ms_ssim_db=psnr / 2 + shift,
                encode_seconds=0.01,
                decode_seconds=0.02,
            )
        )
    return Point(setting, tuple(found))


def model(name: str, curve: str, at: tuple[float, float]) -> ModelResult:
    """A model at (bpp, PSNR)."""
    return ModelResult(
        name=name,
        curve=curve,
        path=name,
        fingerprint="0123456789abcdef0123",
        rate_weight=1.0,
        distortion="mse",
        point=point(*at),
        parameters=1_090_000,
        kmac_per_pixel=11.3,
        peak_memory_bytes=2**29,
        parts=({"part": "analysis", "parameters": 7, "kmac_per_pixel": 1.0},),
        info={"step": 7},
    )


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """Build a report from {curve: pairs} of models and {codec: pairs} of classical codecs."""

    def make(curves: dict[str, Pairs], peers: dict[str, Pairs]) -> Report:
        models = [
            model(f"{name}/{i}", name, at) for name, pairs in curves.items()
            for i, at in enumerate(pairs)
        ]  # fmt: skip
        found = [
            PeerResult(name, name.upper(), "note", "1.0",
                       tuple(point(*at, str(i)) for i, at in enumerate(pairs)))
            for name, pairs in peers.items()
        ]  # fmt: skip
        machine = {
            "processor": "chip", "cores": 2, "threads": 1, "device": "CPU",
            "python": "3.11", "torch": "2", "system": "Linux",
        }  # fmt: skip
        pictures = tuple(
            {"name": f"picture{i}", "width": 9, "height": 9, "sha256": "0"} for i in range(3)
        )
        return Report(
            "2026-01-01T00:00:00+00:00", pictures, tuple(models), tuple(found), {}, (), machine
        )

    return make


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small untrained models of two rates."""
    folder = tmp_path_factory.mktemp("models")
    found = []
    for seed, weight in enumerate((0.85, 3.5)):
        torch.manual_seed(seed)
        info = {"name": "small", "distortion": "mse", "rate_weight": weight}
        found.append(save_model(CCAModel(SMALL), folder / f"w{weight:g}", info))
    return found
