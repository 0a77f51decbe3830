"""Compress a folder of pictures from Python, and compare each with its decoded picture.

    python examples/compress_folder.py PICTURES STREAMS --model MODEL [--rate R]

MODEL is a file, a folder, runs:/ID, models:/NAME/VERSION or models:/NAME@ALIAS.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline import load_model
from pipeline.codec.folders import Task, compress_folder
from pipeline.codec.picture import read_picture


def show(model_name: str, pictures: Path, streams: Path, rate: float | None) -> float:
    """Compress every picture below `pictures`; return the mean PSNR in dB."""
    model = load_model(model_name)
    done = compress_folder(pictures, Task(model, streams), rate=rate)
    print(f"{done['written']} written, {done['kept']} already there, {done['bytes']} bytes")
    found = []
    for stream in sorted(streams.rglob("*.cca")):
        source = pictures / stream.relative_to(streams).with_suffix("")
        before = read_picture(source).x  # float32 (1, 3, H, W) in [0, 1], what the model codes
        after = model.decompress(stream.read_bytes())
        bits = 8 * stream.stat().st_size / before[0, 0].numel()
        found.append(-10 * (before - after).square().mean().log10().item())
        print(f"{source.name}: {bits:.3f} bpp, {found[-1]:.2f} dB")
    return sum(found) / len(found)


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and compress."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("streams", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, help="for a model with several rates")
    given = parser.parse_args(words)
    print(f"mean PSNR: {show(given.model, given.pictures, given.streams, given.rate):.2f} dB")


if __name__ == "__main__":
    main()
