"""Fixtures that every room's tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import scheduling
from tests.patience import patience

ROOT = Path(__file__).resolve().parents[1]

# A slow machine is no failure. The same examples every time: what passes here passes elsewhere, and
# what fails there fails here. At night they are drawn anew.
SLOWLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("the same", SLOWLY, derandomize=True)
settings.register_profile("anew", SLOWLY)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Stretch pytest-timeout's limit on a slow or busy machine; choose hypothesis' examples."""
    settings.load_profile("anew" if config.option.nightly else "the same")
    if config.option.timeout:
        config.option.timeout = patience(config.option.timeout)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `.ci/nightly` run more of what is random, and what takes longer."""
    parser.addoption(
        "--nightly", action="store_true", help="run the tests marked `nightly` as well"
    )
    parser.addoption(
        "--fault-batches",
        type=int,
        default=1,
        help="batches of five plans that tests/cluster/test_faults.py disturbs",
    )
    parser.addoption(
        "--fault-seed", type=int, default=0, help="what the first of these batches is drawn from"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `.ci/nightly` runs, and begin with what takes longest."""
    scheduling.longest_first(items)
    if not config.option.nightly:
        left = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep a file's tests together, in the order of the tests."""
    return scheduling.scheduler(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder beside the checkout with more pictures and reference tensors."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the larger data set in ../shared, which is not there")
    return folder


@pytest.fixture(scope="session")
def pictures() -> Path:
    """The repository's own photographs: `train/*.jpg` and `kodak/*.webp`."""
    return ROOT / "recipes" / "demo" / "pictures"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB; `mount -o remount,size=...` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # Workers share the cores, and threads would only wait for each other; a training in an earlier
    # test's process takes as many as its recipe says.
    import torch

    torch.set_num_threads(1)
