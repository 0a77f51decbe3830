"""The pictures that a report shows: crops side by side, the worst picture, maps of the rate."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.codec import Model
from pipeline.evaluation.classical import run_peer
from pipeline.evaluation.learned import (
    ModelLoader,
    ModelSpec,
    decode_file,
    folder_name,
    stream_name,
    to_tensor,
)
from pipeline.evaluation.metrics import Picture
from pipeline.evaluation.peers import Peer
from pipeline.evaluation.pictures import EvaluatedPicture, read_picture
from pipeline.evaluation.published import kodak_names
from pipeline.evaluation.ratemap import RateMap, rate_map
from pipeline.evaluation.results import Measurement, ModelResult, PeerResult, Report

# A window of a picture: left, top, width, height.
Box = tuple[int, int, int, int]
# The crops that the paper shows: the propeller of kodim20 and the painted wall of kodim24.
KODAK_CROPS = {"kodim20": (56, 152), "kodim24": (384, 176)}
CROP = (256, 192)
# The worst picture is shown whole up to this size, else its worst part.
LARGEST = (768, 512)


@dataclass(frozen=True)
class View:
    """One codec's version of a scene: samples (h, w, 3) uint8, and its cost on this picture."""

    label: str
    samples: Picture
    bpp: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class Scene:
    """A window (left, top, width, height) of a picture, as several codecs decode it.

    `whole` is the picture itself, (H, W, 3) uint8; `rates` maps the bits of the middle model.
    """

    kind: str
    picture: str
    box: Box
    views: tuple[View, ...]
    whole: Picture
    rates: RateMap


def make_scenes(
    report: Report,
    specs: Sequence[ModelSpec],
    sources: Sequence[EvaluatedPicture],
    streams: Path,
    peers: Sequence[Peer],
    loader: ModelLoader,
) -> list[Scene]:
    """Return the scenes to show: two crops, then the worst picture of the middle model."""
    shown = middle_model(report.models)
    worst = min(range(len(sources)), key=lambda i: shown.point.pictures[i].psnr)
    drafts = [_Draft("crop", i, box) for i, box in crop_windows(sources, worst)]
    drafts.append(_Draft("worst", worst, None))
    known = {spec.name: spec for spec in specs}
    for result in sorted(report.models, key=lambda model: model.point.mean("bpp") or 0.0):
        model = loader.load(known[result.name].path)
        folder = streams / folder_name(result.name)
        for draft in drafts:
            if draft.kind == "crop" or result is shown:
                _add_model(draft, result, model, sources[draft.index], folder)
            if result is shown:
                picture = read_picture(sources[draft.index].path)
                draft.rates = rate_map(model, to_tensor(picture, loader.device), result.rate)
    for draft in drafts:
        target = shown.point.pictures[draft.index].bpp
        for peer in report.peers if draft.kind == "crop" else ():
            code = next(known for known in peers if known.name == peer.name)
            _add_peer(draft, peer, code, sources[draft.index], target)
    return [_finish(draft, sources[draft.index]) for draft in drafts]


@dataclass
class _Draft:
    """A scene that is being put together; the worst picture gets its `box` when it is decoded."""

    kind: str
    index: int
    box: Box | None
    views: list[View] = field(default_factory=list)
    rates: RateMap | None = None


def _add_model(
    draft: _Draft, result: ModelResult, model: Model, source: EvaluatedPicture, folder: Path
) -> None:
    """Decode the model's stream of the picture and add the window to the draft."""
    with torch.inference_mode():
        decoded = decode_file(model, (folder / stream_name(source)).read_bytes())
    if draft.box is None:
        error = read_picture(source.path).astype(np.float64) - decoded
        draft.box = densest_window(np.square(error).sum(axis=2), LARGEST)
    measured = result.point.pictures[draft.index]
    draft.views.append(View(result.name, cut(decoded, draft.box), measured.bpp, measured.psnr))


def _add_peer(
    draft: _Draft, result: PeerResult, peer: Peer, source: EvaluatedPicture, target: float
) -> None:
    """Code the picture with a classical codec at the rate nearest to `target`; add the window."""
    assert draft.box is not None
    point = min(result.points, key=lambda point: _distance(point.pictures[draft.index], target))
    picture = read_picture(source.path)
    with tempfile.TemporaryDirectory(prefix="pipeline-evaluate-") as folder:
        path = Path(folder) / f"picture{peer.suffix}"
        decoded, _, _ = run_peer(peer, picture, int(point.setting), path)
    measured = point.pictures[draft.index]
    draft.views.append(View(result.label, cut(decoded, draft.box), measured.bpp, measured.psnr))


def _finish(draft: _Draft, source: EvaluatedPicture) -> Scene:
    assert draft.box is not None
    assert draft.rates is not None
    picture = read_picture(source.path)
    views = (View("Original", cut(picture, draft.box)), *draft.views)
    return Scene(draft.kind, source.name, draft.box, views, picture, draft.rates)


def middle_model(models: Sequence[ModelResult]) -> ModelResult:
    """Return the model of the middle rate, which other codecs' crops are matched to."""
    ordered = sorted(models, key=lambda model: model.point.mean("bpp") or 0.0)
    return ordered[(len(ordered) - 1) // 2]


def crop_windows(sources: Sequence[EvaluatedPicture], avoid: int) -> list[tuple[int, Box]]:
    """Return (picture's index, box) of two crops: the paper's on Kodak, else busy windows."""
    known = {name: sources.index(source) for name, source in kodak_names(sources).items()}
    chosen = [(known[n], (*at, *CROP)) for n, at in KODAK_CROPS.items() if n in known]
    taken = {index for index, _ in chosen} | ({avoid} if len(sources) > 1 else set())
    others = [i for i in range(len(sources)) if i not in taken]
    step = max(1, len(others) // 2)
    for i in others[::step][: 2 - len(chosen)]:
        chosen.append((i, busiest_window(read_picture(sources[i].path), CROP)))
    return chosen


def busiest_window(picture: Picture, size: tuple[int, int]) -> Box:
    """Return the (left, top, width, height) window of `size` that has the steepest edges."""
    grey = picture.astype(np.float64).mean(axis=2)
    edges = np.zeros_like(grey)
    edges[:, 1:] += np.abs(np.diff(grey, axis=1))
    edges[1:, :] += np.abs(np.diff(grey, axis=0))
    return densest_window(edges, size)


def densest_window(values: np.ndarray, size: tuple[int, int]) -> Box:
    """Return the (left, top, width, height) window of at most `size` with the largest sum."""
    height, width = values.shape
    w, h = min(size[0], width), min(size[1], height)
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    windows = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(int(np.argmax(windows)), windows.shape)
    return int(left), int(top), w, h


def _distance(measured: Measurement, target: float) -> float:
    return abs(math.log(measured.bpp / target))


def cut(picture: Picture, box: Box) -> Picture:
    """Return the window (left, top, width, height) of `picture`."""
    left, top, width, height = box
    return np.ascontiguousarray(picture[top : top + height, left : left + width])
