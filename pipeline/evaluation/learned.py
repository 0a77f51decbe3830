"""Runs models on the pictures: streams are written to disk, measured there and decoded."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codec import CodecError, Model, ModelInfo, architectures, load_config, load_model
from pipeline.codec.bitstream import read_stream
from pipeline.codec.coding import check_model, compress, decode_stream
from pipeline.codec.picture import Canvas
from pipeline.codec.picture import read_picture as read_for_coding
from pipeline.common.references import id_of
from pipeline.evaluation import memory
from pipeline.evaluation.classical import measure
from pipeline.evaluation.complexity import count_parameters, parts_table
from pipeline.evaluation.errors import EvaluationError, MeasurementError
from pipeline.evaluation.metrics import Picture
from pipeline.evaluation.pictures import EvaluatedPicture, read_picture
from pipeline.evaluation.progress import Meter
from pipeline.evaluation.results import Measurement, ModelResult, Point


@dataclass(frozen=True)
class ModelSpec:
    """A model to evaluate: its name in the report, its file or folder, and one of its rates."""

    name: str
    path: Path
    rate: float | None = None


def at_rates(specs: Sequence[ModelSpec], rates: Sequence[float] | None) -> list[ModelSpec]:
    """Return a spec for each rate of the models that have several, and the other specs as they are.

    With `rates` None, those that a model was trained for. Raises EvaluationError when a model lacks
    one of `rates`, or when no model has several, and CodecError when there is no model.
    """
    expanded: list[ModelSpec] = []
    configs = [load_config(spec.path) for spec in specs]
    if rates is not None and not any(config.rates for config in configs):
        raise EvaluationError("no model here has several rates: leave the rates out")
    for spec, config in zip(specs, configs, strict=True):
        if config.rates is None or spec.rate is not None:
            expanded.append(spec)
            continue
        for rate in range(len(config.rate_weights)) if rates is None else rates:
            try:
                checked = config.check_rate(rate)
            except CodecError as error:
                raise EvaluationError(f"{spec.name}: {error}") from error
            expanded.append(replace(spec, name=f"{spec.name} rate {rate:g}", rate=checked))
    return expanded


def to_tensor(picture: Picture, device: torch.device) -> Tensor:
    """Return (H, W, 3) uint8 as (1, 3, H, W) float32 in [0, 1] on `device`."""
    channels = torch.tensor(picture).permute(2, 0, 1).contiguous()
    return channels.to(device).to(torch.float32).div(255).unsqueeze(0)


def to_picture(x: Tensor) -> Picture:
    """Return (1, 3, H, W) in [0, 1] as the (H, W, 3) uint8 picture that a user would get."""
    rounded = x.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    picture: Picture = rounded.squeeze(0).permute(1, 2, 0).contiguous().cpu().numpy()
    return picture


class ModelLoader:
    """Loads models onto a device and keeps the last one, so several rates load a model once."""

    def __init__(self, device: torch.device):
        self.device = device
        self._last: tuple[Path, Model] | None = None
        # Whether the last one has coded a picture.
        self.warm = False

    def load(self, path: Path) -> Model:
        """Return the model in `path`. Raises as `load_model` does."""
        if self._last is None or self._last[0] != path:
            self._last = None  # or two models would be in memory at once
            self._last = path, load_model(path, device=str(self.device))
            self.warm = False
        return self._last[1]


def measure_model(
    spec: ModelSpec,
    sources: Sequence[EvaluatedPicture],
    streams: Path,
    loader: ModelLoader,
    meter: Meter,
) -> ModelResult:
    """Code every picture with the model into `streams`, decode the files, and measure.

    A model that was just loaded codes the first picture once beforehand, unmeasured, so that no
    picture pays for warming up.
    """
    model, device = loader.load(spec.path), loader.device
    streams.mkdir(parents=True)
    if not loader.warm:
        _round_trip(model, spec.rate, sources[0], streams / ".warm-up", device)
        (streams / ".warm-up").unlink()
        loader.warm = True
    memory.reset_peak(device)
    measured = []
    for source in sources:
        measured.append(_measure_picture(model, spec.rate, source, streams, device))
        meter.step(f"{spec.name}, {measured[-1].bpp:.3f} bpp")
    return _result(spec, model, tuple(measured), memory.peak_bytes(device))


def stream_name(source: EvaluatedPicture) -> str:
    """Return the file name of a picture's stream."""
    return f"{source.name}.cca"


def folder_name(text: str) -> str:
    """Return `text` as a name for a folder."""
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", text).strip("-.") or "model"


def _measure_picture(
    model: Model, rate: float | None, source: EvaluatedPicture, streams: Path, device: torch.device
) -> Measurement:
    original = read_picture(source.path)
    path = streams / stream_name(source)
    try:
        decoded, seconds = _round_trip(model, rate, source, path, device)
    except RuntimeError as error:
        raise MeasurementError(f"coding {source.path} failed: {error}") from error
    return measure(source.name, original, decoded, path.stat().st_size, seconds)


def _round_trip(
    model: Model, rate: float | None, source: EvaluatedPicture, path: Path, device: torch.device
) -> tuple[Picture, tuple[float, float]]:
    """Write a picture's stream to `path`, read it back and decode it; seconds exclude the disk.

    The stream is that of `compress`, but without alpha and colour profile.
    """
    picture = replace(read_for_coding(source.path), alpha=None, profile=None)
    data, encoding = _timed(lambda: compress(model, picture, picture.header(), rate=rate), device)
    path.write_bytes(data)
    written = path.read_bytes()
    decoded, decoding = _timed(lambda: decode_file(model, written), device)
    return decoded, (encoding, decoding)


def decode_file(model: Model, data: bytes) -> Picture:
    """Return what `decompress` makes of the stream `data`, as (H, W, 3) uint8."""
    stream = read_stream(data)
    check_model(model, stream.header)
    canvas = Canvas(stream.header)
    decode_stream(model, stream, canvas.paint)
    pixels = canvas.pixels.astype(np.uint8)
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return the work's result and its wall-clock seconds, with all work queued on the device."""
    _synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        result = work()
    _synchronize(device)
    return result, time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _result(
    spec: ModelSpec, model: Model, measured: tuple[Measurement, ...], peak: int
) -> ModelResult:
    info, weight = model.info, model.info.rate_weight
    if spec.rate is not None:
        weight = model.config.rate_weight_at(spec.rate)
    total, parts = parts_table(model)
    return ModelResult(
        name=spec.name,
        curve=curve_name(info, architectures.load(model.config.architecture).title),
        path=str(spec.path),
        fingerprint=model.fingerprint,
        rate=spec.rate,
        rate_weight=None if weight is None else float(weight),
        distortion=info.distortion or None,
        point=Point("" if weight is None else f"rate weight {weight:g}", measured),
        parameters=count_parameters(model),
        kmac_per_pixel=total,
        peak_memory_bytes=peak,
        parts=parts,
        info=_told(info),
        architecture=model.config.architecture,
    )


def _told(info: ModelInfo) -> dict[str, Any]:
    """Return the facts on a model's origin that a report tells: of its run, only an id."""
    facts = {key: value for key, value in info.to_dict().items() if _plain(value)}
    if id_of(info.run_id) is None:
        facts.pop("run_id", None)
    return facts


def curve_name(info: ModelInfo, otherwise: str) -> str:
    """Return the curve that a model lies on: one per recipe, stage and distortion.

    `otherwise` is the name of a model that came from no recipe.
    """
    parts = [info.recipe or otherwise, info.stage or "", (info.distortion or "").upper()]
    if parts[1].upper() == parts[2]:
        del parts[1]
    return ", ".join(part for part in parts if part)


def tell_curves_apart(models: Sequence[ModelResult]) -> tuple[ModelResult, ...]:
    """Return the models, with different curves for trainings that share a curve's name.

    Models are of one training if their recipe and data are the same; if that leaves two models of
    the same rate, their code must be the same too. Where a name would mix several trainings, the
    name of each one's first model is added to it.
    """
    plain = Counter((_training(model), model.rate_weight) for model in models)
    doubled = {training for (training, _), count in plain.items() if count > 1}
    keys = [
        (*_training(model), model.info.get("git_commit") if _training(model) in doubled else None)
        for model in models
    ]
    first: dict[tuple[Any, ...], str] = {}
    for key, model in zip(keys, models, strict=True):
        first.setdefault(key, model.name)
    shared = Counter(key[0] for key in first)
    return tuple(
        replace(model, curve=f"{model.curve} · {first[key]}") if shared[model.curve] > 1 else model
        for key, model in zip(keys, models, strict=True)
    )


def _training(model: ModelResult) -> tuple[Any, ...]:
    return (model.curve, model.info.get("recipe_digest"), model.info.get("data_digest"))


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
