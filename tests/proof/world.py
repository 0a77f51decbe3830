"""The world of the main job: a disk, a clock, servers, and lines to them that can go bad."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.patience import patience
from tests.proof import main_job
from tests.proof.disturbing import OPEN, BadLine, Disk, Family, object_store
from tests.tracking.servers import Server

BUCKET = "proof"
# How often each kind of disturbance is drawn, beside the others.
KINDS = {
    "kill": 60, "power cut": 10, "SIGTERM": 6, "SIGSTOP": 10, "full disk": 6, "bad store": 8,
    "bad tracking": 6, "dead server": 1, "clock": 4,
}  # fmt: skip


@dataclass
class World:
    """Where rounds happen: a folder on a disk of its own, servers, lines to them, a clock."""

    folder: Path
    disk: Disk
    clock: Path | None
    family: Family
    server: Server | None = None
    lines: Mapping[str, BadLine] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def heal(self) -> None:
        """Let everything work again."""
        self.family.send(signal.SIGCONT, self.family.members())
        self.disk.free()
        for line in self.lines.values():
            line.set(OPEN)
        if self.server is not None:
            if not self.server.runs:
                self.family.own.add(self.server.launch())
            end = time.monotonic() + patience(300)
            while not self.server.answers():
                assert time.monotonic() < end, "the tracking server does not come back"
                time.sleep(0.2)

    def possible(self) -> dict[str, int]:
        """Return what can be done here, with how often."""
        absent = {"bad store": "store" not in self.lines, "bad tracking": not self.lines}
        absent |= {"dead server": self.server is None, "clock": self.clock is None}
        absent |= {"full disk": not self.disk.mounted}
        return {kind: often for kind, often in KINDS.items() if not absent.get(kind)}


@contextlib.contextmanager
def world(folder: Path, *, local: bool) -> Iterator[tuple[World, str]]:
    """Make the world in the empty `folder`; yield it and where its shards go."""
    clock = Path(os.environ["PROOF_CLOCK"]) if "PROOF_CLOCK" in os.environ else None
    with contextlib.ExitStack() as stack:
        disk = Disk(folder / "disk")
        stack.callback(disk.close)
        main_job.prepare(disk.folder)
        made = World(folder, disk, clock, Family())
        common = {
            "PROOF_FOLDER": str(disk.folder), "TMPDIR": str(disk.folder),
            "XDG_CACHE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "PYTHONPATH": str(main_job.ROOT),
        }  # fmt: skip
        if local:
            made.environment = common | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
            yield made, "shards"
            return
        port, process = stack.enter_context(object_store(folder))
        words = ["server", "--host", "127.0.0.1", "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        words += ["--artifacts-destination", str(folder / "artifacts")]
        made.server = Server(words, folder, "/health", {"LD_PRELOAD": ""})
        made.family.own |= {process.pid, made.server.launch()}
        stack.callback(made.server.kill)
        made.lines = {"store": BadLine(port), "tracking": BadLine(made.server.port)}
        made.family.own |= {line.pid for line in made.lines.values()}
        for line in made.lines.values():
            stack.callback(line.close)
        made.environment = common | {
            "AWS_ENDPOINT_URL": made.lines["store"].url,
            "MLFLOW_TRACKING_URI": made.lines["tracking"].url,
        }
        made.heal()
        yield made, f"s3://{BUCKET}/shards"
