"""MLflow's own pages in a real browser: what they say, and whether a picture is seen on them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.patience import patience

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOOKS = 8


def found_browser() -> str | None:
    """Return the path of a browser that this machine has."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Pages:
    """The pages of the server at `uri`, as `browser` shows them; it writes below `folder`."""

    browser: str
    uri: str
    folder: Path

    def assert_shown(
        self, page: str, *words: str, colour: tuple[int, int, int] = (0, 0, 0), pixels: int = 0
    ) -> None:
        """Fail unless `page` has all `words`, and so many `pixels` of about the `colour`."""
        # What a page fetches may come after it has settled: a busy machine needs another look.
        for _ in range(LOOKS):
            text, shown = self._look(page)
            seen = int((np.abs(shown - colour).max(axis=2) < 12).sum())
            missing = [word for word in words if word not in text]
            if not missing and seen >= pixels:
                return
        pytest.fail(f"{page} lacks {missing}, and shows {seen} of {pixels} pixels")

    def _look(self, page: str) -> tuple[str, np.ndarray]:
        """Return what the page says, and its pixels: int16 (height, width, 3)."""
        shot = self.folder / "shot.png"
        words = [self.browser, "--headless=new", "--no-sandbox", "--disable-gpu"]
        words += ["--hide-scrollbars", "--window-size=1400,1100", "--virtual-time-budget=30000"]
        words += [f"--user-data-dir={self.folder / 'profile'}", f"--screenshot={shot}"]
        done = subprocess.run(
            [*words, "--dump-dom", f"{self.uri}/#/{page}"],
            capture_output=True,
            text=True,
            timeout=patience(300),
        )
        said = " ".join(re.sub(r"<[^>]*>", " ", done.stdout).split())
        return said, np.asarray(Image.open(shot).convert("RGB"), np.int16)
