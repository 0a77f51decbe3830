"""Runs the classical codecs on the pictures, in parallel, and caches results by content."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.common.atomic import write_bytes
from pipeline.common.documents import parse
from pipeline.common.machine import worker_count
from pipeline.evaluation.errors import MeasurementError
from pipeline.evaluation.metrics import Picture, decibels, ms_ssim, psnr
from pipeline.evaluation.peers import Peer
from pipeline.evaluation.pictures import EvaluatedPicture, read_picture
from pipeline.evaluation.progress import Meter
from pipeline.evaluation.results import Measurement, PeerResult, Point

# Increase it when a change here changes results: older entries are then ignored.
CACHE_FORMAT = 1
# A setting is kept if its rate lies within this factor of the models' rates, or its PSNR within
# this many dB of theirs. One more is kept on either side, and never fewer than LEAST in all.
RATE_MARGIN, QUALITY_MARGIN, LEAST = 1.25, 0.5, 4


@dataclass(frozen=True)
class Span:
    """The models' range of rate (bpp) and PSNR (dB), which the other codecs should cover."""

    rates: tuple[float, float]
    qualities: tuple[float, float]

    def above(self, measured: Measurement) -> bool:
        """Tell whether the range lies above a setting's measurement, in rate and in quality."""
        low_rate = measured.bpp < self.rates[0] / RATE_MARGIN
        return low_rate and measured.psnr < self.qualities[0] - QUALITY_MARGIN

    def below(self, measured: Measurement) -> bool:
        """Tell whether the range lies below a setting's measurement, in rate and in quality."""
        high_rate = measured.bpp > self.rates[1] * RATE_MARGIN
        return high_rate and measured.psnr > self.qualities[1] + QUALITY_MARGIN


class Cache:
    """Measurements of classical codecs in a folder, by picture, codec, version and setting."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, peer: Peer, source: EvaluatedPicture, setting: int) -> Measurement | None:
        """Return the cached measurement, with this picture's present name, or None."""
        path = self._path(peer, source, setting)
        if path is None or not path.is_file():
            return None
        try:
            return Measurement(**(parse(path.read_bytes()) | {"name": source.name}))
        except (ValueError, TypeError):
            return None  # A damaged entry is measured again and replaced.

    def put(
        self, peer: Peer, source: EvaluatedPicture, setting: int, measured: Measurement
    ) -> None:
        """Store a measurement."""
        path = self._path(peer, source, setting)
        if path is not None:
            write_bytes(path, json.dumps(asdict(measured)).encode())

    def _path(self, peer: Peer, source: EvaluatedPicture, setting: int) -> Path | None:
        if self.folder is None:
            return None
        parts = [CACHE_FORMAT, peer.name, peer.note, peer.version(), setting, source.digest]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"


def run_peer(
    peer: Peer, picture: Picture, setting: int, path: Path
) -> tuple[Picture, float, float]:
    """Code `picture` (H, W, 3) uint8 into the file `path` and back.

    Returns the decoded picture, encoding and decoding seconds. Raises MeasurementError when the
    codec fails.
    """
    try:
        start = time.perf_counter()
        peer.encode(picture, setting, path)
        middle = time.perf_counter()
        decoded = peer.decode(path)
        end = time.perf_counter()
    except (OSError, ValueError, RuntimeError) as error:
        raise MeasurementError(f"{peer.label} at {setting} failed: {error}") from error
    height, width = picture.shape[:2]
    return decoded[:height, :width], middle - start, end - middle


def measure(
    name: str, original: Picture, decoded: Picture, size: int, seconds: tuple[float, float]
) -> Measurement:
    """Return the measurement of `decoded` against `original` for a file of `size` bytes."""
    similarity = ms_ssim(original, decoded)
    return Measurement(
        name=name,
        bytes=size,
        bpp=8 * size / (original.shape[0] * original.shape[1]),
        psnr=psnr(original, decoded),
        ms_ssim=similarity,
        ms_ssim_db=None if similarity is None else decibels(similarity),
        encode_seconds=seconds[0],
        decode_seconds=seconds[1],
    )


# The memory that measuring a codec on a picture of tens of megapixels takes.
WORKER_BYTES = 2 << 30


class Runner:
    """Measures peers on pictures with `workers` threads; the codecs run outside Python's lock."""

    def __init__(
        self, cache: Cache, workers: int | None = None, meter: Meter | None = None
    ) -> None:
        self.cache = cache
        self.workers = workers or worker_count(WORKER_BYTES)
        self.meter = meter or Meter()
        self.failed: dict[str, str] = {}

    def run(
        self, peers: Sequence[Peer], sources: Sequence[EvaluatedPicture], span: Span
    ) -> list[PeerResult]:
        """Measure every peer at the settings that match `span`; peers that fail are in `failed`."""
        probe = sources[len(sources) // 2]
        with ThreadPoolExecutor(self.workers) as pool:
            settings = pool.map(lambda peer: self._settings(peer, probe, span), peers)
            chosen = dict(zip(peers, settings, strict=True))
        jobs = [(p, source, setting) for p in peers for setting in chosen[p] for source in sources]
        measurements = self._measure_all(jobs)
        return [
            _result(peer, sources, chosen[peer], measurements)
            for peer in peers
            if peer.name not in self.failed
        ]

    def _settings(self, peer: Peer, probe: EvaluatedPicture, span: Span) -> list[int]:
        try:
            return choose_settings(peer, lambda setting: self._measure(peer, probe, setting), span)
        except MeasurementError as error:
            self.failed[peer.name] = f"{error} (on {probe.name})"
            return []

    def _measure_all(self, jobs: Sequence[tuple[Peer, EvaluatedPicture, int]]) -> Measurements:
        self.meter.expect(len(jobs))
        measurements: Measurements = {}
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {pool.submit(self._measure, *job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    peer, source, setting = futures[future]
                    self.meter.step(peer.label)
                    try:
                        measurements[peer.name, source.name, setting] = future.result()
                    except MeasurementError as error:
                        self.failed.setdefault(peer.name, f"{error} (on {source.name})")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return measurements

    def _measure(self, peer: Peer, source: EvaluatedPicture, setting: int) -> Measurement:
        if (known := self.cache.get(peer, source, setting)) is not None:
            return known
        picture = read_picture(source.path)
        with tempfile.TemporaryDirectory(prefix="pipeline-evaluate-") as folder:
            path = Path(folder) / f"picture{peer.suffix}"
            decoded, encoding, decoding = run_peer(peer, picture, setting, path)
            measured = measure(
                source.name, picture, decoded, path.stat().st_size, (encoding, decoding)
            )
        self.cache.put(peer, source, setting, measured)
        return measured


# By codec, picture and setting.
Measurements = dict[tuple[str, str, int], Measurement]


def choose_settings(peer: Peer, probe: Callable[[int], Measurement], span: Span) -> list[int]:
    """Return the peer's settings that match `span` on the probe, and one more at either end.

    Bisects the settings, because the highest rates take longest to probe. Expects at least LEAST
    settings, in the order of rising rate and quality.
    """
    settings = peer.settings
    first = bisect_left(settings, True, key=lambda setting: not span.above(probe(setting)))
    last = bisect_left(settings, True, key=lambda setting: span.below(probe(setting)))
    first, last = max(0, first - 1), min(len(settings), last + 1)
    while last - first < LEAST:
        first, last = max(0, first - 1), min(len(settings), last + 1)
    return list(settings[first:last])


def _result(
    peer: Peer,
    sources: Sequence[EvaluatedPicture],
    settings: Sequence[int],
    measurements: Measurements,
) -> PeerResult:
    points = tuple(
        Point(str(s), tuple(measurements[peer.name, source.name, s] for source in sources))
        for s in settings
    )
    return PeerResult(peer.name, peer.label, peer.note, peer.version(), points)
