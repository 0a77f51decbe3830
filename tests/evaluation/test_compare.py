"""Comparisons and the verdict say what the numbers say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.evaluation.compare import PUBLISHED, compare
from pipeline.evaluation.published import published_curves
from pipeline.evaluation.results import Report
from pipeline.evaluation.verdict import rate_at, verdict

JPEG = [(0.2, 25.0), (0.4, 28.0), (0.8, 31.0), (1.6, 34.0)]
DOUBLE = [(2 * rate, quality) for rate, quality in JPEG]
HALF = [(rate / 2, quality) for rate, quality in JPEG]
Make = Callable[..., Report]


def judged(report: Report) -> Report:
    found = replace(report, comparisons=compare(report.curves(), report.peers, {}))
    return replace(found, verdict=verdict(found))


def test_a_curve_is_compared_with_every_codec_in_both_qualities(make_report: Make) -> None:
    report = judged(make_report({"a": DOUBLE, "b": HALF}, {"jpeg": JPEG, "webp": HALF}))
    found = {(c.curve, c.anchor, c.quality): c.value for c in report.comparisons}
    assert found["a", "jpeg", "psnr"] == pytest.approx(100)
    assert found["a", "jpeg", "ms_ssim_db"] == pytest.approx(100)
    assert found["b", "jpeg", "psnr"] == pytest.approx(-50)
    assert found["a", "b", "psnr"] == pytest.approx(300)
    assert found["b", "webp", "psnr"] == pytest.approx(0, abs=1e-9)
    assert len(found) == 2 * 3 * 2


def test_published_curves_are_marked_and_compared_in_psnr_alone(make_report: Make) -> None:
    report = make_report({"a": DOUBLE}, {})
    found = compare(report.curves(), report.peers, published_curves())
    assert {c.quality for c in found} == {"psnr"}
    assert all(c.anchor.startswith(PUBLISHED) for c in found)


def test_what_has_no_bd_rate_says_why(make_report: Make) -> None:
    (found, _) = judged(make_report({"a": DOUBLE[:1]}, {"jpeg": JPEG})).comparisons
    assert found.value is None
    assert found.reason is not None
    assert "at least two points" in found.reason


def test_the_verdict_does_not_flatter(make_report: Make) -> None:
    text = " ".join(judged(make_report({"tiny": DOUBLE[:3]}, {"jpeg": JPEG})).verdict)
    assert "JPEG gets there with 0.800 bpp: the model spends 2.0 times the bits" in text
    assert "+100.0 %: it does not beat JPEG" in text
    assert "Every codec compared here needs fewer bits" in text
    assert "1.09 million parameters, where the published CCA model has 65.0" in text


def test_the_verdict_gives_praise_where_due(make_report: Make) -> None:
    text = " ".join(judged(make_report({"good": HALF}, {"jpeg": JPEG, "webp": JPEG})).verdict)
    assert "saves 50 % of the bits" in text
    assert "-50.0 %: it beats JPEG" in text
    assert "fewer bits than every codec compared here (JPEG and WEBP)" in text


@pytest.mark.parametrize("quality", [20.0, 40.0])
def test_beyond_jpeg_the_verdict_says_so(make_report: Make, quality: float) -> None:
    points = [(0.5, quality), (0.6, quality + 1)]
    text = " ".join(judged(make_report({"odd": points}, {"jpeg": JPEG})).verdict)
    assert "outside the range where JPEG was measured" in text
    assert "BD-rate against JPEG is not defined" in text


def test_the_verdict_is_of_the_best_curve_and_names_the_others(make_report: Make) -> None:
    curves = {"alone": HALF[:1], "worse": DOUBLE, "better": HALF}
    said = judged(make_report(curves, {"jpeg": JPEG})).verdict
    assert "better reaches" in said[0]
    assert [line for line in said if "alone" in line or "worse" in line] == [
        "The table of BD-rates has the other curves of models: worse and alone."
    ]


def test_of_one_model_alone_the_verdict_says_one_sentence(make_report: Make) -> None:
    said = judged(make_report({"alone": HALF[:1]}, {"jpeg": JPEG})).verdict
    assert "JPEG gets there with" in said[0]
    assert not any("BD-rate" in sentence for sentence in said)


def test_without_jpeg_the_verdict_says_so(make_report: Make) -> None:
    assert "not compared with JPEG" in judged(make_report({"a": HALF}, {})).verdict[0]


def test_a_rate_is_read_off_a_curve() -> None:
    curve = published_curves()["JPEG"]
    assert rate_at(curve, curve.qualities[3]) == pytest.approx(curve.rates[3])
    assert rate_at(curve, 5.0) is None


def test_means_are_over_pictures(make_report: Make) -> None:
    report = make_report({"a": [(0.5, 30.0)]}, {})
    assert report.models[0].point.mean("psnr") == pytest.approx(30)
    assert report.to_dict()["models"][0]["bpp"] == pytest.approx(0.5)
    small = replace(report.models[0].point.pictures[0], ms_ssim=None)
    point = replace(report.models[0].point, pictures=(small,))
    assert point.mean("ms_ssim") is None
