"""The pictures that a report shows: crops side by side, the worst picture, maps of the rate."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.codec import CCAModel, load_model
from pipeline.evaluation.classical import run_peer
from pipeline.evaluation.errors import MeasurementError
from pipeline.evaluation.learned import (
    ModelSpec,
    folder_name,
    stream_name,
    to_picture,
    to_tensor,
)
from pipeline.evaluation.metrics import Picture
from pipeline.evaluation.peers import Peer
from pipeline.evaluation.pictures import Source, read_picture
from pipeline.evaluation.published import kodak_names
from pipeline.evaluation.ratemap import RateMap, rate_map
from pipeline.evaluation.results import Measurement, ModelResult, PeerResult, Report

# What the paper shows: the propeller of kodim20 and the painted wall of kodim24.
KODAK_CROPS = {"kodim20": (56, 152), "kodim24": (384, 176)}
CROP = (256, 192)
# The worst picture is shown whole up to this size, else its worst part.
LARGEST = (768, 512)


@dataclass(frozen=True)
class View:
    """One codec's version of a scene: samples (h, w, 3) uint8 and what it cost on this picture."""

    label: str
    samples: Picture
    bpp: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class Scene:
    """A window (left, top, width, height) of a picture, as several codecs give it.

    `whole` is the picture itself, (H, W, 3) uint8, and `rates` where the middle model's bits go.
    """

    kind: str
    picture: str
    box: tuple[int, int, int, int]
    views: tuple[View, ...]
    whole: Picture
    rates: RateMap


def make_scenes(
    report: Report,
    specs: Sequence[ModelSpec],
    sources: Sequence[Source],
    streams: Path,
    peers: Sequence[Peer],
    device: torch.device,
) -> list[Scene]:
    """Return the scenes to show: two crops, then the worst picture of the middle model."""
    shown = middle_model(report.models)
    worst = min(range(len(sources)), key=lambda i: shown.point.pictures[i].psnr)
    windows = [("crop", i, box) for i, box in crop_windows(sources, worst)]
    maker = _Maker(report, specs, sources, streams, peers, device, shown)
    scenes = [maker.crop(i, box) for _, i, box in windows]
    return [*scenes, maker.worst(worst)]


def middle_model(models: Sequence[ModelResult]) -> ModelResult:
    """Return the model of the middle rate: the one that other codecs' crops are matched to."""
    ordered = sorted(models, key=lambda model: model.point.mean("bpp") or 0.0)
    return ordered[(len(ordered) - 1) // 2]


def crop_windows(
    sources: Sequence[Source], avoid: int
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Return (picture's index, box) of two crops: the paper's on Kodak, else where detail is."""
    known = {name: sources.index(source) for name, source in kodak_names(sources).items()}
    chosen = [(known[n], (*at, *CROP)) for n, at in KODAK_CROPS.items() if n in known]
    others = [i for i in range(len(sources)) if i != avoid and i not in [c[0] for c in chosen]]
    step = max(1, len(others) // 2)
    for i in others[::step][: 2 - len(chosen)]:
        chosen.append((i, busiest_window(read_picture(sources[i].path), CROP)))
    return chosen


def busiest_window(picture: Picture, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the (left, top, width, height) window of `size` that has the steepest edges."""
    grey = picture.astype(np.float64).mean(axis=2)
    edges = np.zeros_like(grey)
    edges[:, 1:] += np.abs(np.diff(grey, axis=1))
    edges[1:, :] += np.abs(np.diff(grey, axis=0))
    return densest_window(edges, size)


def densest_window(values: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the (left, top, width, height) window of at most `size` with the largest sum."""
    height, width = values.shape
    w, h = min(size[0], width), min(size[1], height)
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    windows = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(int(np.argmax(windows)), windows.shape)
    return int(left), int(top), w, h


class _Maker:
    """Decodes what the scenes need, each model loaded once a scene at most."""

    def __init__(
        self,
        report: Report,
        specs: Sequence[ModelSpec],
        sources: Sequence[Source],
        streams: Path,
        peers: Sequence[Peer],
        device: torch.device,
        shown: ModelResult,
    ) -> None:
        self.report, self.specs, self.sources = report, specs, sources
        self.streams, self.device, self.shown = streams, device, shown
        self.peers = {peer.name: peer for peer in peers}

    def crop(self, index: int, box: tuple[int, int, int, int]) -> Scene:
        """Return a crop through every model, and through every peer at the nearest rate."""
        original = read_picture(self.sources[index].path)
        views = [View("Original", cut(original, box))]
        views += [self._model_view(model, index, box) for model in self._by_rate()]
        target = self.shown.point.pictures[index].bpp
        for result in self.report.peers:
            view = self._peer_view(result, original, index, target, box)
            views += [view] if view is not None else []
        return self._scene("crop", index, box, views, original)

    def worst(self, index: int) -> Scene:
        """Return the picture that came out worst, whole or its worst part."""
        original = read_picture(self.sources[index].path)
        decoded = self._decode(self._model(self.shown), self.shown, index)
        error = np.square(original.astype(np.float64) - decoded).sum(axis=2)
        box = densest_window(error, LARGEST)
        found = self.shown.point.pictures[index]
        views = [
            View("Original", cut(original, box)),
            View(self.shown.name, cut(decoded, box), found.bpp, found.psnr),
        ]
        return self._scene("worst", index, box, views, original)

    def _by_rate(self) -> list[ModelResult]:
        return sorted(self.report.models, key=lambda model: model.point.mean("bpp") or 0.0)

    def _model(self, result: ModelResult) -> CCAModel:
        path = next(spec.path for spec in self.specs if spec.name == result.name)
        return load_model(path, device=str(self.device))

    def _decode(self, model: CCAModel, result: ModelResult, index: int) -> Picture:
        path = self.streams / folder_name(result.name) / stream_name(self.sources[index])
        with torch.inference_mode():
            return to_picture(model.decompress(path.read_bytes()))

    def _model_view(self, result: ModelResult, index: int, box: tuple[int, int, int, int]) -> View:
        decoded = self._decode(self._model(result), result, index)
        found = result.point.pictures[index]
        return View(result.name, cut(decoded, box), found.bpp, found.psnr)

    def _peer_view(
        self,
        result: PeerResult,
        original: Picture,
        index: int,
        target: float,
        box: tuple[int, int, int, int],
    ) -> View | None:
        point = min(result.points, key=lambda point: _away(point.pictures[index], target))
        peer = self.peers[result.name]
        with tempfile.TemporaryDirectory(prefix="pipeline-evaluate-") as folder:
            path = Path(folder) / f"picture{peer.suffix}"
            try:
                decoded, _, _ = run_peer(peer, original, int(point.setting), path)
            except MeasurementError:
                return None
        found = point.pictures[index]
        return View(result.label, cut(decoded, box), found.bpp, found.psnr)

    def _scene(
        self,
        kind: str,
        index: int,
        box: tuple[int, int, int, int],
        views: Sequence[View],
        original: Picture,
    ) -> Scene:
        rates = rate_map(self._model(self.shown), to_tensor(original, self.device))
        return Scene(kind, self.sources[index].name, box, tuple(views), original, rates)


def _away(found: Measurement, target: float) -> float:
    return abs(math.log(found.bpp / target))


def cut(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    """Return the window (left, top, width, height) of `picture`."""
    left, top, width, height = box
    return np.ascontiguousarray(picture[top : top + height, left : left + width])
