"""`pipeline doctor` names what is there and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pipeline.cli.doctor import launches

PIPELINE = Path(sys.executable).parent / "pipeline"


def test_doctor_names_versions_and_devices() -> None:
    done = subprocess.run([PIPELINE, "doctor", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    found = {one["what"]: one for one in listed}
    assert [one["what"] for one in listed].count("cca-pipeline") == 1
    assert found["pillow-heif"]["state"] in ("ok", "optional")
    assert found["torch"]["detail"] == metadata.version("torch")
    assert found["cpu"]["state"] == "ok"
    assert found["precision"]["detail"].startswith("speed.precision=auto takes ")


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


def test_doctor_names_what_makes_launches_go_wrong(tmp_path: Path) -> None:
    clean = {"HF_HOME": str(tmp_path)}
    assert list(launches(clean, gpus=1)) == []
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("use_cpu: true\n")
    left = {"WORLD_SIZE": "2", "RANK": "0", "ACCELERATE_USE_CPU": "true"}
    told = " ".join(f"{one.what} {one.detail}" for one in launches({**clean, **left}, gpus=0))
    for words in ("default_config.yaml", "RANK, WORLD_SIZE", "turns DeepSpeed off", "--multi_gpu"):
        assert words in told
