"""A throw-away Slurm cluster of two nodes on this machine."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.patience import patience

HERE = Path(__file__).parent
MOST_CLUSTERS = 8


@dataclass(frozen=True)
class Cluster:
    """The running cluster, for those who want to break it."""

    root: Path
    environment: dict[str, str]

    @property
    def address(self) -> str:
        """The address at which the nodes reach this machine."""
        return f"{self.environment['SLURM_SUBNET']}.1"

    def kill_node(self, number: int) -> None:
        """Cut the power of a node: all its processes die at once, unasked."""
        subprocess.run(["kill", "-9", self._pid(number)], check=True)

    def start_node(self, number: int) -> None:
        """Bring a killed node back."""
        self._run("slurm-up.sh", "node", str(number))

    def restart_controller(self, seconds: float) -> None:
        """Stop the controller, and start it again after so many seconds."""
        pid = int((self.root / "run" / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        time.sleep(seconds)
        while _runs(pid):
            time.sleep(0.1)
        conf = self.root / "etc" / "slurm.conf"
        subprocess.run(["slurmctld", "-f", str(conf)], check=True, timeout=60)

    def command(self, *words: str) -> str:
        """Return what one of Slurm's commands prints."""
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=patience(300)
        )
        return done.stdout

    def _pid(self, number: int) -> str:
        return (self.root / "run" / f"node-n{number}.pid").read_text().strip()

    def _run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(HERE / script), *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=patience(900),
            check=False,
        )

    def up(self) -> str:
        """Install and start it; return what went wrong, if anything."""
        done = self._run("slurm-up.sh")
        return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}"

    def down(self) -> None:
        self._run("slurm-down.sh")


def _runs(pid: int) -> bool:
    try:
        return "slurmctld" in Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return False


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock between processes; yields whether it is held (always, if it was waited for)."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def free_number() -> Iterator[int]:
    """Take the first number that no other test process on this machine has for its cluster."""
    for number in range(MOST_CLUSTERS):
        with locked(Path(f"/tmp/cca-slurm-{number}.lock"), wait=False) as mine:
            if mine:
                yield number
                return
    pytest.fail(f"{MOST_CLUSTERS} clusters run on this machine already")


@contextmanager
def started() -> Iterator[Cluster | str]:
    """Start a cluster and point this process's Slurm commands at it; yields why that fails."""
    with free_number() as number:
        root = Path(f"/tmp/cca-slurm-{number}")
        environment = {
            "SLURM_ROOT": str(root),
            "SLURM_PORT": str(26817 + 200 * number),
            "SLURM_SUBNET": f"10.78.{number}",
            "SLURM_PFX": f"cs{number}",
            "SLURM_NET": "netns",
        }
        made = Cluster(root, environment)
        try:
            # Two processes must not install packages at once.
            with locked(Path("/tmp/cca-slurm-install.lock")):
                wrong = made.up()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SLURM_CONF", str(root / "etc" / "slurm.conf"))
                yield wrong or made
        finally:
            made.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster with two nodes of two cores, its commands pointed at it."""
    if os.geteuid() != 0:
        _without("Slurm nodes are network namespaces, which only root may make")
    with started() as made:
        if isinstance(made, str):
            _without(made)
        yield made


def _without(reason: str) -> NoReturn:
    """Skip for `reason`, or fail where the tests must not be left out."""
    if os.environ.get("CI"):
        pytest.fail(f"no Slurm cluster, and CI must have one: {reason}")
    pytest.skip(f"no Slurm cluster can be started here: {reason.strip().splitlines()[-1]}")
