"""`pipeline compress` and `decompress` as people type them: one file, several, folders, pipes."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.cli.main import main
from pipeline.codec import save_model
from pipeline.codec.files import is_stream
from tests.codec.conftest import SMALL, make_model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture and, in a folder of its own, a model."""
    monkeypatch.chdir(tmp_path)
    save_model(make_model(SMALL), tmp_path / "model")
    Image.effect_noise((50, 40), 60).convert("RGB").save("photo.jpg")
    return tmp_path


def run(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(line.split())
    captured = capfd.readouterr()
    return int(leaving.value.code or 0), captured.out, captured.err


def test_names_are_made_up_and_the_model_is_found(place: Path, capfd) -> None:
    code, out, _ = run("compress photo.jpg", capfd)
    assert code == 0
    assert out.startswith("photo.cca: ")
    # Others' models beside it hide nothing, damaged copies of the right one neither.
    from pipeline.codec.box import box_model

    damaged = bytearray(box_model().read_bytes())
    damaged[-1000] ^= 1
    (place / "a.safetensors").write_bytes(damaged)
    assert run("decompress photo.cca", capfd)[:2] == (0, "photo.png: 50 x 40 pixels\n")
    assert run("compress photo.jpg", capfd)[:2] == (0, "photo.cca: already there\n")
    first = Path("photo.cca").read_bytes()
    assert run("compress photo.jpg --quality lowest", capfd)[0] == 0
    assert len(Path("photo.cca").read_bytes()) < len(first)


def test_a_limit_is_kept_and_said(place: Path, capfd) -> None:
    code, out, _ = run("compress photo.jpg --size 800 --json", capfd)
    assert code == 0
    done = json.loads(out)
    assert Path("photo.cca").stat().st_size == done["bytes"] <= 800
    assert done["encodes"] >= 1
    assert 0 <= done["rate"] <= 9
    code, out, _ = run(f"compress photo.jpg b.cca --bpp {done['bpp']}", capfd)
    assert "found by" in out
    assert Path("b.cca").stat().st_size <= done["bytes"]


def test_the_default_never_takes_what_may_be_anothers(place: Path, capfd) -> None:
    Image.new("RGB", (7, 5)).save("photo.png")
    assert run("compress photo.jpg --model model", capfd)[0] == 0
    before = Path("photo.cca").read_bytes()
    code, _, err = run("compress photo.png --model model", capfd)
    assert (code, Path("photo.cca").read_bytes()) == (2, before)
    assert "may be of photo.jpg" in err
    assert run("compress photo.png --model model --force", capfd)[0] == 0
    assert Path("photo.cca").read_bytes() != before
    code, _, err = run("decompress photo.cca --model model", capfd)
    assert code == 2
    assert "photo.png is there already" in err


def test_several_files_go_beside_themselves_or_into_a_folder(place: Path, capfd) -> None:
    shutil.copy("photo.jpg", "two.jpg")
    line = "compress photo.jpg two.jpg --out-dir deep/out --model model"
    assert run(line, capfd)[1].startswith("2 written, 0 already there: deep/out/photo.cca")
    assert run(line, capfd)[1].startswith("0 written, 2 already there")
    assert run("compress photo.jpg two.jpg --model model", capfd)[0] == 0
    assert Path("two.cca").is_file()
    assert run("decompress photo.cca two.cca --out-dir back --model model", capfd)[0] == 0
    assert sorted(path.name for path in Path("back").iterdir()) == ["photo.png", "two.png"]
    Image.new("RGB", (50, 40)).save("two.png")
    code, _, err = run("compress two.jpg two.png --out-dir new --model model", capfd)
    assert code == 2
    assert "two.jpg and two.png would both become new/two.cca" in err
    assert not Path("new").exists()


def test_streams_whose_pictures_would_meet_are_refused(place: Path, capfd) -> None:
    assert run("compress photo.jpg s.cca --model model", capfd)[0] == 0
    Path("s").mkdir()
    for name in ("a.cca", "a.png.cca", "a.CCA"):
        shutil.copy("s.cca", Path("s", name))
    code, _, err = run("decompress s back --model model", capfd)
    assert code == 2
    assert "would both become back/a.png" in err
    assert not Path("back").exists()


def test_what_is_done_knows_its_options(place: Path, capfd) -> None:
    for folder in ("p16", "icc"):
        Path(folder).mkdir()
    grey = (np.arange(32 * 32, dtype=np.uint16) * 61).reshape(32, 32)
    Image.fromarray(grey).save("p16/g.png")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (32, 32), "orange").save("icc/c.png", icc_profile=srgb)
    for folder in ("p16", "icc"):
        assert run(f"compress {folder} {folder}-s --model model", capfd)[0] == 0

    def done(line: str) -> str:
        return run(line, capfd)[1].split(": ", 1)[1].partition(" already")[0]

    assert done("decompress p16-s back --model model") == "1 written, 0"
    assert done("decompress p16-s back --model model") == "0 written, 1"
    assert done("decompress p16-s back --model model --deep") == "1 written, 0"
    assert done("decompress p16-s back --model model --deep") == "0 written, 1"
    with Image.open("back/g.png") as deep:
        assert deep.mode.startswith("I")
    for options in ("--no-profile", ""):
        line = f"compress icc icc-s --model model {options}"
        assert done(line) == "1 written, 0", options
    assert done("compress icc icc-s --model model") == "0 written, 1"
    # A stream made anew of another picture, however old that is.
    Image.new("RGB", (32, 32), "blue").save("blue.png", icc_profile=srgb)
    os.utime("blue.png", (0, 0))
    Path("blue.png").replace("icc/c.png")
    assert done("compress icc icc-s --model model") == "1 written, 0"
    # What a person changed since is no longer decoding's own.
    with Image.open("back/g.png") as deep:
        deep.save("back/g.png")
    code, _, err = run("decompress p16-s back --model model --deep", capfd)
    assert code == 2
    assert "back/g.png is there already" in err


def test_what_is_passed_over_is_counted_and_named(place: Path, capfd) -> None:
    Path("in").mkdir()
    shutil.copy("photo.jpg", "in/a.JPG")
    for name in ("e.dng", "._a.JPG", "notes.txt"):
        Path("in", name).write_text("x")
    _, out, _ = run("compress in s --model model", capfd)
    for word in ("1 written", "skipped 3", "e.dng", "._a.JPG", "notes.txt"):
        assert word in out
    Path("s/readme").write_text("x")
    _, out, _ = run("decompress s back --model model", capfd)
    assert "skipped 1 that are no streams, or hidden: readme" in out
    # Where streams and pictures lie together, neither is a surprise.
    assert "skipped" not in run("decompress s s --model model", capfd)[1].replace("readme", "")[:9]


def test_each_stream_of_a_folder_finds_its_model(place: Path, capfd) -> None:
    save_model(make_model(SMALL, seed=7), place / "s" / "other.safetensors")
    assert run("compress photo.jpg s/a.cca", capfd)[0] == 0
    assert run("compress photo.jpg s/b.cca --model s/other.safetensors", capfd)[0] == 0
    assert run("decompress s back", capfd)[0] == 0
    assert run("compress photo.jpg s/c.cca --model model", capfd)[0] == 0
    code, _, err = run("decompress s back", capfd)
    assert code == 2
    for word in ("1 of 3 failed", "s/c.cca", make_model(SMALL).fingerprint[:16], "--model"):
        assert word in err


def test_pipes_on_both_sides(place: Path, capfdbinary, monkeypatch: pytest.MonkeyPatch) -> None:
    def through(line: str, data: bytes) -> bytes:
        """Run a command with `data` on descriptor 0; return what it wrote to descriptor 1."""
        reading, writing = os.pipe()
        threading.Thread(target=_feed, args=(writing, data), daemon=True).start()
        before = os.dup(0)
        os.dup2(reading, 0)
        try:
            with pytest.raises(SystemExit) as leaving:
                main(line.split())
        finally:
            os.dup2(before, 0)
            for one in (before, reading):
                os.close(one)
        out, err = capfdbinary.readouterr()
        assert not leaving.value.code, err
        assert line.split()[0] == "compress" or b"pixels" in err
        return out

    photo = Path("photo.jpg").read_bytes()
    stream = through("compress - - --model model", photo)
    assert stream.startswith(b"\x89CCA")
    assert through("compress - --model model", photo) == stream
    assert through("compress /dev/stdin /dev/stdout --model model", photo) == stream
    picture = through("decompress - - --model model", stream)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (50, 40)
    assert through("decompress /dev/stdin /dev/stdout --model model", stream) == picture
    assert sorted(path.name for path in place.iterdir()) == ["model", "photo.jpg"]


def test_a_pipe_is_worked_on_alone(place: Path, capfd) -> None:
    os.mkfifo("pipe")
    os.mkfifo("photo.cca")
    Path("old.cca").touch()
    for line in ("compress pipe photo.jpg", "compress - photo.jpg", "decompress - old.cca"):
        code, out, err = run(f"{line} --model model", capfd)
        assert (code, out) == (2, ""), line
        assert "worked on alone" in err
    assert not is_stream(Path("photo.cca"))  # reading from it would wait for ever


def _feed(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)
