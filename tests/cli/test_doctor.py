"""`pipeline doctor` names what is there and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PIPELINE = Path(sys.executable).parent / "pipeline"


def test_doctor_names_versions_and_devices() -> None:
    done = subprocess.run([PIPELINE, "doctor", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {one["what"]: one for one in json.loads(done.stdout)}
    assert found["torch"]["detail"] == metadata.version("torch")
    assert found["cpu"]["state"] == "ok"


def test_doctor_fails_when_a_package_is_missing(tmp_path: Path) -> None:
    # An interpreter that sees this checkout and everything installed, but torch.
    site = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    for entry in site.iterdir():
        if not entry.name.startswith("torch"):
            (tmp_path / entry.name).symlink_to(entry)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[2])!r}];"
        "from pipeline.cli.main import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "missing  torch" in done.stdout
