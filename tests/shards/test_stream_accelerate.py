"""Under Accelerate: what each rank gets is its own part, cut once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from shards import stream
from tests.patience import patience
from tests.shards.made import numbered, write_split

SCRIPT = """
import json, sys
from itertools import islice
from pathlib import Path
from accelerate import Accelerator
from shards import Stream

accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
found = {"world": world}
for name, wrap in (("stream", lambda one: one), ("loader", lambda one: one.loader(workers=1))):
    one = Stream(sys.argv[1], batch_size=3, crop=8, rank=rank, world_size=world)
    prepared = accelerator.prepare(wrap(one))
    found[name] = [batch.positions for batch in islice(prepared, 4)]
accelerator.save_state(f"{sys.argv[2]}/state")
Path(f"{sys.argv[2]}/rank-{rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_prepare_does_not_cut_a_second_time(tmp_path, root):
    write_split(tmp_path / "corpus", [90, 60], numbered(150))
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={port}", str(tmp_path / "script.py"), str(tmp_path / "corpus")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(300),
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        found = json.loads(Path(tmp_path / f"rank-{rank}.json").read_text())
        own = stream(tmp_path / "corpus", batch_size=3, crop=8, rank=rank, world_size=2)
        wanted = [batch.positions for batch in islice(own, 4)]
        assert found == {"world": 2, "stream": wanted, "loader": wanted}
