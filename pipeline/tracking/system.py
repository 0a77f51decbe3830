"""Samples system metrics during a run, by MLflow's own monitors, into the run's spool.

MLflow's sampling thread would write to the server itself and lose samples while the server is down,
so only its monitors are used here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.common.atomic import NoSpaceError

SECONDS_BETWEEN_SAMPLES = 10.0
log = logging.getLogger(__name__)


class SystemSampler:
    """Takes a sample every few seconds, in a thread of its own."""

    def __init__(self, record: Callable[[Mapping[str, float], int], None], first: int) -> None:
        """`record` gets each sample and its number, from `first` on."""
        self._record = record
        self._number = first
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="system metrics", daemon=True)

    def start(self) -> None:
        """Start sampling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling; nothing more is recorded afterwards."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        monitors = _monitors()
        while not self._stopped.is_set():
            try:
                # While the disk is full there are no samples; the next checkpoint says so.
                with contextlib.suppress(NoSpaceError):
                    self._record(_sample(monitors), self._number)
            except Exception as error:  # a counter that can't be read must not reach the training
                log.warning("no system metrics: %s", error)
                return
            self._number += 1
            self._stopped.wait(SECONDS_BETWEEN_SAMPLES)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = []
    kinds: list[Callable[[], Any]] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    for kind in kinds:
        try:
            monitors.append(kind())
        except (ImportError, RuntimeError) as error:
            log.debug("nothing to measure with %s: %s", kind, error)
    return monitors


def _sample(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values
