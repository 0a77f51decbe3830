"""VVC through the ffmpeg that imageio-ffmpeg bundles: libvvenc, and ffmpeg's own decoder.

vvenc takes only 4:2:0 at 10 bits, so the colour conversion's loss (about 49 dB on photographs) is
part of its result. `qpa` is off, because the default optimises for the eye and loses PSNR.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.evaluation.errors import MeasurementError
from pipeline.evaluation.metrics import Picture

SCALER = "flags=lanczos+accurate_rnd+full_chroma_inp+full_chroma_int"
TO_YUV = f"scale=out_color_matrix=bt709:out_range=tv:{SCALER},format=yuv420p10le"
TO_RGB = f"scale=in_color_matrix=bt709:in_range=tv:{SCALER},format=rgb24"
PRESET = "medium"


class VVCMissingError(Exception):
    """The ffmpeg at hand can't code VVC."""


@cache
def version() -> str:
    """Return the version of the ffmpeg that codes VVC.

    Raises ImportError or VVCMissingError if there is none.
    """
    listing = _run(["-hide_banner", "-encoders"], b"").decode()
    if "libvvenc" not in listing:
        raise VVCMissingError("the ffmpeg of imageio-ffmpeg was built without libvvenc")
    first = _run(["-version"], b"").decode().splitlines()[0]
    match = re.search(r"version (\S+)", first)
    return f"ffmpeg {match.group(1) if match else 'of unknown version'}, libvvenc {PRESET}"


def encode(picture: Picture, setting: int, path: Path) -> None:
    """Write `picture` (H, W, 3) uint8 as a VVC stream at quantiser `setting` (0 to 63)."""
    # 4:2:0 wants even sides: repeat the last row and column, which decode() cuts off again.
    height, width = picture.shape[:2]
    even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{even.shape[1]}x{even.shape[0]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-"]
    coder = ["-c:v", "libvvenc", "-preset", PRESET, "-qp", str(setting), "-qpa", "0"]
    target = ["-frames:v", "1", "-threads", "1", "-f", "vvc", str(path)]
    _run(["-y", *source, "-vf", TO_YUV, *coder, *target], even.tobytes())


def decode(path: Path) -> Picture:
    """Return the first picture of the VVC stream at `path`, (H, W, 3) uint8, sides even."""
    source = ["-threads", "1", "-f", "vvc", "-i", str(path)]
    out = _run([*source, "-vf", TO_RGB, "-frames:v", "1", "-c:v", "ppm", "-f", "image2pipe", "-"])
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", out)
    if header is None:
        raise MeasurementError(f"ffmpeg decoded no picture from {path}")
    width, height = int(header.group(1)), int(header.group(2))
    samples = np.frombuffer(out, np.uint8, count=width * height * 3, offset=header.end())
    return samples.reshape(height, width, 3)


def _run(arguments: list[str], data: bytes = b"") -> bytes:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise MeasurementError(f"ffmpeg failed: {words[-1] if words else done.returncode}")
    return done.stdout
