"""A throw-away Slurm cluster of two nodes on this machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UP_SECONDS = 300


@dataclass(frozen=True)
class Cluster:
    """The running cluster, for those who want to break it."""

    root: Path
    environment: dict[str, str]

    def kill_node(self, number: int) -> None:
        """Cut the power of a node: all its processes die at once, unasked."""
        subprocess.run(["kill", "-9", self._pid(number)], check=True)

    def start_node(self, number: int) -> None:
        """Bring a killed node back."""
        self._run("slurm-up.sh", "node", str(number))

    def command(self, *words: str) -> str:
        """Return what one of Slurm's commands prints."""
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout

    def _pid(self, number: int) -> str:
        return (self.root / "run" / f"node-n{number}.pid").read_text().strip()

    def _run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(HERE / script), *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
            check=False,
        )

    def up(self) -> str:
        """Install and start it; return what went wrong, if anything."""
        done = self._run("slurm-up.sh")
        return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}"

    def down(self) -> None:
        self._run("slurm-down.sh")


@pytest.fixture(scope="session")
def cluster(worker_id: str) -> Iterator[Cluster]:
    """A Slurm cluster with two nodes of two cores, its commands pointed at it."""
    number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 0
    root = Path(f"/tmp/cca-slurm-{number}")
    environment = {
        "SLURM_ROOT": str(root),
        "SLURM_PORT": str(26817 + 200 * number),
        "SLURM_SUBNET": f"10.78.{number}",
        "SLURM_PFX": f"cs{number}",
        "SLURM_NET": "netns",
    }
    made = Cluster(root, environment)
    wrong = "Slurm nodes are network namespaces, which only root may make"
    if os.geteuid() == 0:
        # Two test processes must not install packages at once.
        with Path("/tmp/cca-slurm.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wrong = made.up()
    if wrong:
        made.down()
        if os.environ.get("CI"):
            pytest.fail(f"no Slurm cluster, and CI must have one: {wrong}")
        pytest.skip(f"no Slurm cluster can be started here: {wrong.strip().splitlines()[-1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(root / "etc" / "slurm.conf"))
        yield made
    made.down()
