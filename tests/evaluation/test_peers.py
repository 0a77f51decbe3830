"""The classical codecs: each runs, rises with its setting, and is remembered by content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation import EvaluationError, psnr
from pipeline.evaluation.classical import Cache, Runner, Span, run_peer
from pipeline.evaluation.peers import PEERS, Peer, PeerMissingError, choose_peers
from pipeline.evaluation.pictures import EvaluatedPicture, read_picture, read_sources

pytestmark = pytest.mark.slow  # processes, servers and codecs of their own

SPAN = Span(rates=(0.3, 0.6), qualities=(27.0, 30.0))


@pytest.fixture(scope="module")
def crop(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluatedPicture:
    """A part of a photograph with odd sides, large enough for MS-SSIM."""
    path = tmp_path_factory.mktemp("crop") / "crop.png"
    picture = read_picture(pictures / "kodak" / "kodim23.webp")[100:293, 200:421]
    Image.fromarray(picture).save(path)
    return read_sources([path])[0]


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_codec_writes_files_whose_quality_rises_with_rate(
    peer: Peer, crop: EvaluatedPicture, tmp_path: Path
) -> None:
    try:
        assert peer.version()
    except PeerMissingError as error:
        pytest.skip(f"{peer.label}: {error}")
    picture = read_picture(crop.path)
    found = []
    for setting in peer.settings[2:-2:3]:
        path = tmp_path / f"{setting}{peer.suffix}"
        decoded, encoding, decoding = run_peer(peer, picture, setting, path)
        assert decoded.shape == picture.shape
        assert encoding > 0 < decoding
        found.append((path.stat().st_size, psnr(picture, decoded)))
    assert found == sorted(found)
    assert 18 < found[0][1] < 33 < found[-1][1]


def test_results_are_remembered_by_what_a_picture_holds(
    crop: EvaluatedPicture, tmp_path: Path
) -> None:
    first = Runner(Cache(tmp_path / "cache"), 2).run([PEERS["jpeg"]], [crop], SPAN)
    renamed = replace(crop, name="other", path=tmp_path / "not-there.png")
    # Nothing is read: all comes from the cache, under the picture's present name.
    again = Runner(Cache(tmp_path / "cache"), 2).run([PEERS["jpeg"]], [renamed], SPAN)
    assert [p.means() for p in again[0].points] == [p.means() for p in first[0].points]
    assert again[0].points[0].pictures[0].name == "other"


def test_a_damaged_memory_is_measured_again(crop: EvaluatedPicture, tmp_path: Path) -> None:
    Runner(Cache(tmp_path), 1).run([PEERS["jpeg"]], [crop], SPAN)
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    found = Runner(Cache(tmp_path), 1).run([PEERS["jpeg"]], [crop], SPAN)
    assert found[0].points[0].pictures[0].bytes > 0


def test_settings_match_the_models_rates(crop: EvaluatedPicture) -> None:
    (found,) = Runner(Cache(None), 1).run([PEERS["jpeg"]], [crop], SPAN)
    rates = [point.mean("bpp") or 0 for point in found.points]
    assert rates == sorted(rates)
    assert rates[0] < SPAN.rates[0] < SPAN.rates[1] < rates[-1]
    assert len(found.points) < len(PEERS["jpeg"].settings)


def test_rates_beyond_a_codec_get_its_nearest_settings(crop: EvaluatedPicture) -> None:
    low = Runner(Cache(None), 1).run([PEERS["jpeg"]], [crop], Span((1e-4, 2e-4), (5.0, 6.0)))
    high = Runner(Cache(None), 1).run([PEERS["jpeg"]], [crop], Span((30.0, 40.0), (90.0, 95.0)))
    assert [p.setting for p in low[0].points] == [str(s) for s in PEERS["jpeg"].settings[:4]]
    assert [p.setting for p in high[0].points] == [str(s) for s in PEERS["jpeg"].settings[-4:]]


def test_a_codec_that_fails_is_named_and_the_others_go_on(crop: EvaluatedPicture) -> None:
    def fail(picture: np.ndarray, setting: int, path: Path) -> None:
        raise OSError("no room")

    broken = replace(PEERS["webp"], encode=fail)
    runner = Runner(Cache(None), 2)
    found = runner.run([broken, PEERS["jpeg"]], [crop], SPAN)
    assert [peer.name for peer in found] == ["jpeg"]
    assert "no room" in runner.failed["webp"]


def test_an_unknown_codec_is_refused_and_a_missing_one_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(EvaluationError, match="choose from jpeg"):
        choose_peers(["jpeg", "gif"])
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    here, absent = choose_peers(["jpeg", "jxl", "jpeg"])
    assert [peer.name for peer in here] == ["jpeg"]
    assert "pillow-jxl-plugin" in absent["jxl"]
