"""The same words, whatever adds up: threads, float32 or float64, numpy, a device, a torch.

    python -m tests.proof.same_words [--device cuda] [--out FILE] [--against FILE]

codes latents made of Kodak's pictures, and 200 random ones at the bounds, with a model of each
architecture, without scales and with them. Every way of adding up (of the random ones, two ways)
decodes them, and must find the words, the symbols and the latent that were encoded. `--out` writes
the digests; `--against` compares them with what another version of torch or numpy, or another
machine, wrote. Exits with 1 if any word differs. Neither latents nor scales come from sums in
floating point, so all machines start alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.codec import CCAConfig, CCAModel, save_model
from pipeline.codec.architectures.small import SmallConfig, SmallModel
from pipeline.codec.architectures.small.light import LightSmall
from pipeline.codec.arithmetic import in_float64
from pipeline.codec.exact import layers_seen
from pipeline.codec.layers import ChannelNorm
from pipeline.codec.light import light_model
from pipeline.codec.model import Model
from pipeline.codec.scales import Scale

KODAK = Path(__file__).parents[3] / "shared" / "data" / "kodak"
OURS = Path(__file__).parents[2] / "recipes" / "demo" / "pictures" / "kodak"
# Threads, and whether sums are in float64.
WAYS = ((1, False), (2, False), (3, False), (1, True))


def models(device: str) -> Iterator[tuple[str, Model, LightSmall | None]]:
    """Yield names, models of both formats, and the form in numpy of those that have one."""
    for kind, config in (("small", SmallConfig.tiny()), ("cca", CCAConfig.tiny())):
        for scaled in (False, True):
            torch.manual_seed(0)
            made = SmallModel(config) if isinstance(config, SmallConfig) else CCAModel(config)
            model: Model = made.eval()
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if not name.startswith("hyper_density"):
                        weight.add_(torch.randn_like(weight) * 0.1)
            if scaled:
                _scale(model)
            with TemporaryDirectory() as folder:
                light = light_model(save_model(model, Path(folder)))
            networks = None if light is None else light.networks
            assert networks is None or isinstance(networks, LightSmall)
            yield f"{kind}, version {1 + scaled}", model.to(device), networks


def _scale(model: Model) -> None:
    """Give layers scales by their kind alone."""
    with layers_seen() as layers:
        model.make_coder()
    names = {name: layer for name, layer in model.named_modules() if layer in layers}
    norm, other = Scale(5, 9), Scale(7, 12)
    model.set_scales({n: norm if isinstance(m, ChannelNorm) else other for n, m in names.items()})


def latents(model: Model, pictures: list[Path], count: int) -> Iterator[tuple[str, Tensor]]:
    """Yield names and latents (1, M, h, w) of pictures, then `count` random ones at the bounds."""
    channels, stride = model.config.latent_channels, model.config.latent_stride
    unit = model.config.unit // stride
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)[:256, :256]
        h, w = (side // stride // unit * unit for side in pixels.shape[:2])
        patches = pixels[: h * stride, : w * stride].reshape(h, stride, w, stride, 3)
        rows = patches.transpose(1, 3, 4, 0, 2).reshape(-1, h, w)
        picked = rows[np.arange(channels) * len(rows) // channels]
        yield path.stem, torch.from_numpy((picked - 128) / 8)[None]
    rng = np.random.default_rng(0)
    for number in range(count):
        signs = np.where(rng.random((1, channels, unit, unit)) < 0.5, -1.0, 1.0)
        strength = 10.0 ** (number % 7 - 1)
        yield f"latent {number}", torch.from_numpy(signs * strength).float()


def coded(
    model: Model, light: LightSmall | None, y: Tensor, ways: Sequence[tuple[int, bool]]
) -> tuple[str, int, int]:
    """Return a digest of the words and the latent, and how many ways there were and differ."""
    rate = model.config.check_rate(None)
    with torch.no_grad():
        z = _hyper(y, model)
    found, tries, wrong = _encoded(model, y, z, rate), 0, 0
    size = z.shape[2], z.shape[3]
    for threads, double in ways:
        with ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
            if double:
                stack.enter_context(in_float64())
            tile = model.coder().decode(found.words, *size, rate=rate)
        tries += 1
        wrong += tile.check != found.check or not torch.equal(tile.y_hat, found.y_hat)
    if light is not None:
        words, _ = light.coder.encode(_rows(y), _rows(z), rate)
        back, _ = light.coder.decode(found.words, size, rate)
        tries += 1
        same = np.array_equal(words, found.words)
        wrong += not same or not np.array_equal(back, _rows(found.y_hat))
    of = found.words.tobytes() + found.y_hat.contiguous().cpu().numpy().tobytes()
    return hashlib.sha256(of).hexdigest(), tries, wrong


def _rows(x: Tensor) -> Any:
    """Return x (1, C, h, w) as an array (h, w, C)."""
    return x[0].permute(1, 2, 0).cpu().numpy()


def _hyper(y: Tensor, model: Model) -> Tensor:
    """Return a hyper-latent (1, Z, h', w') that no network made: some of y's numbers."""
    unit, channels = model.config.unit // model.config.latent_stride, _hyper_channels(model)
    some = y[:, :, ::unit, ::unit]
    repeats = -(-channels // some.shape[1])
    return some.repeat(1, repeats, 1, 1)[:, :channels].contiguous()


def _hyper_channels(model: Model) -> int:
    coder: Any = model.coder()
    return int(coder.hyper_channels)


def _encoded(model: Model, y: Tensor, z: Tensor, rate: float | None) -> Any:
    """Return what the coder makes of y and z as they are."""
    coder: Any = model.coder()
    before, coder.analyse_y = coder.analyse_y, lambda *_: (y, z)
    try:
        return coder.encode(y, 0, rate)
    finally:
        coder.analyse_y = before


def against(digests: dict[str, str], file: Path) -> int:
    """Print and return how many digests differ from a file's; 1 if it has none of them."""
    others = json.loads(file.read_text())
    both = sorted(digests.keys() & others.keys())
    differ = [name for name in both if digests[name] != others[name]]
    print(f"{file}: {len(differ)} of {len(both)} differ", *differ[:5], sep="\n  ")
    return len(differ) or int(not both)


def main() -> None:
    """Code, decode in every way, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, help="only so many; default: all")
    parser.add_argument("--latents", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    folder = KODAK if KODAK.is_dir() else OURS
    pictures = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".webp"))
    pictures = pictures[: given.pictures]
    print(f"torch {torch.__version__}, numpy {np.__version__}, {given.device}, "
          f"{len(pictures)} pictures, {given.latents} latents")  # fmt: skip
    digests, failed = {}, 0
    for name, model, light in models(given.device):
        tries = wrong = 0
        for number, (what, y) in enumerate(latents(model, pictures, given.latents)):
            ways = WAYS if number < len(pictures) else (WAYS[number % 3], WAYS[3])
            digests[f"{name}, {what}"], some, bad = coded(model, light, y.to(given.device), ways)
            tries, wrong = tries + some, wrong + bad
        failed += wrong
        print(f"{name}: {wrong} of {tries} ways to decode differ", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(digests, indent=1))
    if given.against is not None:
        failed += against(digests, given.against)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
