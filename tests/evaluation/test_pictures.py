"""Finding, naming and reading the pictures of a set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation import EvaluationError, find_pictures
from pipeline.evaluation.pictures import read_picture, read_sources
from pipeline.evaluation.published import is_kodak, kodak_names


def save(path: Path, colour: int, mode: str = "RGB", size: tuple[int, int] = (5, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def test_pictures_are_found_below_and_sorted(tmp_path: Path) -> None:
    second, first = save(tmp_path / "b" / "x.png", 1), save(tmp_path / "a.PNG", 2)
    (tmp_path / "notes.txt").write_text("no picture")
    assert find_pictures(tmp_path) == [first, second]
    assert find_pictures(first) == [first]


def test_no_pictures_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no pictures"):
        find_pictures(tmp_path)
    with pytest.raises(EvaluationError, match="no folder"):
        find_pictures(tmp_path / "missing")


def test_names_are_stems_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [save(tmp_path / f, i) for i, f in enumerate(("a/x.png", "b/x.png", "b/y.png"))]
    assert [source.name for source in read_sources(paths)] == ["a_x.png", "b_x.png", "y"]
    with pytest.raises(EvaluationError, match="listed twice"):
        read_sources([paths[0], paths[0]])


def test_every_mode_becomes_rgb_of_eight_bits(tmp_path: Path) -> None:
    assert read_picture(save(tmp_path / "grey.png", 7, "L")).tolist()[0][0] == [7, 7, 7]
    deep = Image.fromarray(np.full((3, 5), 0x8123, np.uint16))
    deep.save(tmp_path / "deep.png")
    picture = read_picture(tmp_path / "deep.png")
    assert picture.shape == (3, 5, 3)
    assert (picture == 0x81).all()


def test_a_picture_that_is_none_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"hardly a picture")
    with pytest.raises(EvaluationError, match=r"bad\.png is not a picture"):
        read_sources([bad])
    whole = save(tmp_path / "cut.png", 3, size=(300, 300)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvaluationError, match=r"cut\.png is not a picture"):
        read_picture(tmp_path / "cut.png")


def test_kodak_is_known_by_its_samples_whatever_the_file(pictures: Path) -> None:
    sources = read_sources(find_pictures(pictures / "kodak"))
    assert set(kodak_names(sources)) == {source.name for source in sources}
    assert not is_kodak(sources)


def test_all_of_kodak_is_kodak(shared_data: Path) -> None:
    sources = read_sources(find_pictures(shared_data / "data" / "kodak"))
    assert is_kodak(sources)
    assert not is_kodak(sources[1:])
