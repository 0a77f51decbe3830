"""Ctrl-C before the command has begun: 130, and not a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def test_ctrl_c_while_libraries_load_is_130(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    import time; time.sleep(60)\n"
        "except BaseException as error:\n"
        "    raise ImportError('numpy says so') from error\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "recipes"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        # Where the tests run in the background of a script, Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
