"""Odd pictures, all of a folder: each is coded in the right size and place, or refused in words.

    python -m tests.proof.odd_pictures FOLDER [--largest BYTES]

Made for the test folders of libraries that read pictures (Pillow's `Tests/images`, libvips'
`test/test-suite/images`), which come with their sources. Each file goes through `pipeline
compress` and `decompress` as a user types them. It is wrong if a command leaves with another exit
code than 0 or 2, says other than one sentence, leaves a file that it did not announce, or takes
longer than five minutes; or if the decoded picture has another size than Pillow's upright one, or
is turned.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.cli.main import main as pipeline

SECONDS = 300
SIDE = 16
TURNS = tuple(Image.Transpose)
# Of pictures that look nearly the same when they are turned, coding decides which is nearer.
CLEARLY = 4.0


def judged(source: Path, folder: Path) -> tuple[str, str]:
    """Return ("coded" | "refused" | "wrong", what was said) of one file; `folder` is empty."""
    stream, back = folder / "a.cca", folder / "a.png"
    for words in (["compress", str(source), str(stream)], ["decompress", str(stream), str(back)]):
        code, said = typed(words)
        expected = {stream, back} if words[0] == "decompress" else {stream}
        left = set(folder.iterdir())
        if code == 2 and words[0] == "compress" and not left and is_sentence(said):
            return "refused", said.strip().replace(str(source), "FILE")
        if code != 0 or left != expected:
            names = ", ".join(sorted(path.name for path in left))
            return "wrong", f"{words[0]} ended with {code} and left {names or 'nothing'}: {said}"
    return compared(source, back)


def typed(words: list[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it wrote to stderr."""
    said = io.StringIO()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            pipeline(words)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1 if stopped.code else 0
        return code, said.getvalue()
    except _TooLong:
        return 124, f"it took longer than {SECONDS} s"
    finally:
        signal.alarm(0)
    return 0, said.getvalue()


class _TooLong(BaseException):
    """The command has had its time."""


def _too_long(*_: object) -> None:
    raise _TooLong


def is_sentence(said: str) -> bool:
    """Whether `said` is one line of words: no traceback, no object's address, not too long."""
    text = said.strip()
    return bool(text) and "\n" not in text and "0x" not in text and len(text) < 400


def compared(source: Path, back: Path) -> tuple[str, str]:
    """Compare the decoded picture with what Pillow reads of its source."""
    with warnings.catch_warnings(), Image.open(back) as decoded:
        warnings.simplefilter("ignore")
        try:
            with Image.open(source) as image:
                upright = ImageOps.exif_transpose(image)
        except Exception as error:
            return "coded", f"Pillow alone does not read it: {error}"
        if decoded.size != upright.size:
            return "wrong", f"{decoded.size} and not {upright.size} pixels"
        if decoded.width == decoded.height or min(decoded.size) > 1:
            there, wanted = small(decoded), small(upright)
            away = {turn: distance(there, small(upright.transpose(turn))) for turn in TURNS}
            nearest = min(away, key=lambda turn: away[turn])
            if away[nearest] + CLEARLY < distance(there, wanted):
                return "wrong", f"turned: nearer to {nearest.name}"
    return "coded", ""


def small(image: Image.Image) -> np.ndarray:
    """Return the picture as (SIDE, SIDE) grey values."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        image = Image.fromarray((255 * values / max(values.max(), 1)).clip(0, 255).astype(np.uint8))
    grey = image.convert("RGB").convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float64)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean difference of two pictures without their means: levels may differ."""
    return float(np.abs((one - one.mean()) - (other - other.mean())).mean())


def all_of(files: list[Path]) -> Iterator[tuple[Path, str, str]]:
    """Yield each file with what became of it."""
    for file in files:
        with tempfile.TemporaryDirectory(prefix="odd-") as folder:
            yield file, *judged(file, Path(folder))


def main(words: list[str] | None = None) -> int:
    """Judge all files of a folder; return 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--largest", type=int, help="leave larger files out, of so many bytes")
    asked = parser.parse_args(words)
    files = sorted(path for path in asked.folder.rglob("*") if path.is_file())
    if asked.largest is not None:
        files = [path for path in files if path.stat().st_size <= asked.largest]
    if not files:
        parser.error(f"{asked.folder} has no files")
    kinds: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    for number, (file, kind, said) in enumerate(all_of(files), 1):
        kinds[kind] += 1
        if kind == "refused":
            refusals[said] += 1
        if kind == "wrong":
            print(f"{file}: {said}", flush=True)
        if number % 100 == 0:
            print(f"{number} of {len(files)}: {dict(kinds)}", file=sys.stderr, flush=True)
    for said, count in refusals.most_common():
        print(f"{count:5d} x {said}")
    print(f"{len(files)} files: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return int(kinds["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
