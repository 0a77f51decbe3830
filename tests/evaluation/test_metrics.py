"""PSNR and MS-SSIM on 8-bit RGB."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d

from pipeline.evaluation import EvaluationError, decibels, ms_ssim, psnr


def flat(value: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


@given(st.integers(0, 255), st.integers(0, 255))
def test_psnr_of_flat_pictures_is_the_formula(a: int, b: int) -> None:
    expected = 100.0 if a == b else 10 * np.log10(255**2 / (a - b) ** 2)
    assert psnr(flat(a), flat(b)) == pytest.approx(expected)


def test_psnr_counts_all_samples_alike() -> None:
    a, b = flat(10, 4), flat(10, 4)
    b[0, 0, 2] = 26
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / (16**2 / 48)))


def test_identical_pictures_reach_the_ceiling() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (192, 200, 3), dtype=np.uint8)
    similarity = ms_ssim(noise, noise)
    assert similarity == pytest.approx(1)
    assert psnr(noise, noise) == decibels(1.0) == 100


def reference_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The formula of the paper on one channel, with scipy's filters."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        return convolve1d(convolve1d(x, taps, axis=0), taps, axis=1)[5:-5, 5:-5]

    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        value = (2 * cov + 7.65**2) / (va + vb + 7.65**2)
        if scale == 4:
            value = value * (2 * ma * mb + 2.55**2) / (ma**2 + mb**2 + 2.55**2)
        product *= max(value.mean(), 0) ** weight
        a, b = (x.reshape(x.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3)) for x in (a, b))
    return product


def test_ms_ssim_is_the_formula_of_the_paper() -> None:
    rng = np.random.default_rng(1)
    a = np.repeat(np.repeat(rng.integers(0, 256, (24, 28, 3)), 8, 0), 8, 1).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    expected = [reference_ms_ssim(*(p[..., c].astype(float) for p in (a, b))) for c in range(3)]
    assert ms_ssim(a, b) == pytest.approx(np.mean(expected), abs=1e-4)


def test_ms_ssim_is_undefined_on_small_pictures() -> None:
    assert ms_ssim(flat(3, 160), flat(4, 160)) is None
    assert ms_ssim(flat(3, 161), flat(4, 161)) is not None


def test_decibels() -> None:
    assert decibels(0.99) == pytest.approx(20)
    assert decibels(0.0) == 0


@pytest.mark.parametrize("other", [flat(0, 8), np.zeros((16, 16, 3)), np.zeros((16, 16), np.uint8)])
def test_pictures_that_cannot_be_compared_are_refused(other: np.ndarray) -> None:
    with pytest.raises(EvaluationError):
        psnr(flat(0), other)
