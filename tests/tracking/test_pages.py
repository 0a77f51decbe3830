"""MLflow's own pages in a real browser: the runs, a run's curves and picture, the versions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.tracking import Tracker, register_model
from tests.tracking.servers import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOUR = (200, 30, 120)
PIXELS = 5000
LOOKS = 8


@pytest.fixture
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}: apt-get install chromium")
    return found


@pytest.fixture
def server(
    browser: str,
    workdir: Path,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Server]:
    """A server without a password: a browser would have to be told it."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "store.db")
    words = ["server", "--host", "127.0.0.1", "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/store.db"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    found = Server(words, folder, "/health")
    found.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    yield found
    found.kill()


def test_runs_pictures_and_versions_are_seen(
    browser: str, server: Server, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    parent, run = None, ""
    for name in ("base", "mse/w0.85"):
        tracker = Tracker.start("demo", name, params={}, tags={}, parent_run_id=parent)
        for step in range(20):
            tracker.log({"train/loss": 10 / (step + 1)}, step)
        tracker.log_image(np.full((120, 160, 3), COLOUR, np.uint8), "reconstruction/one", 19)
        tracker.finish()
        parent = run = tracker.run_id
    register_model(str(checkpoint(run_id=run, rate_weight=0.85)), "cca", "champion", {"bpp": 0.41})

    def look(page: str) -> tuple[str, int]:
        """Return what the page says, and how many pixels of it have the picture's colour."""
        shot = tmp_path / "shot.png"
        words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1100"]
        words += ["--virtual-time-budget=30000", f"--screenshot={shot}", "--dump-dom"]
        done = subprocess.run(
            [*words, f"{server.uri}/#/{page}"], capture_output=True, text=True, timeout=300
        )
        pixels = np.asarray(Image.open(shot).convert("RGB"), np.int16)
        return done.stdout, int((np.abs(pixels - COLOUR).max(axis=2) < 12).sum())

    def shows(page: str, *words: str, pixels: int = 0) -> None:
        # What a page fetches may come after it has settled: a busy machine needs another look.
        for _ in range(LOOKS):
            text, seen = look(page)
            missing = [word for word in words if word not in text]
            if not missing and seen >= pixels:
                return
        pytest.fail(f"{page} lacks {missing}, and shows {seen} of {pixels} pixels")

    shows("experiments/1/runs", "base", "matching runs")
    shows(f"experiments/1/runs/{run}/model-metrics", "mse/w0.85", "reconstruction", pixels=PIXELS)
    shows("models/cca", "Version 1", "champion", "rate_weight")
