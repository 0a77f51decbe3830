"""A job's script on a node of a Ray cluster: `python -m orchestration.engines.ray_node`.

Standard input is open to the worker of Ray that started it. A line there asks the script to end;
its end of file says that the worker is dead, with its node perhaps, and that the job is started
elsewhere: then everything that the script has started is killed, for two of it would be in each
other's way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

PR_SET_CHILD_SUBREAPER = 36
SECONDS_BETWEEN_LOOKS = 0.1


class Script:
    """A running script, and all that it has started."""

    def __init__(self, script: str, trains: bool, grace: float) -> None:
        self.trains, self.grace = trains, grace
        self.process = subprocess.Popen(["/bin/bash", script], stdin=subprocess.DEVNULL)

    def wait(self) -> int:
        """Return the exit code when the script and all that it has started have ended."""
        code = self.process.wait()
        self.kill()
        return code if code >= 0 else 128 - code

    def listen(self) -> None:
        """Do what standard input says until the script has ended."""
        while os.read(sys.stdin.fileno(), 1024):
            self._stop()
        self.kill()

    def _stop(self) -> None:
        import psutil

        # The shell of a training tells its ranks, and its launcher must not hear of it.
        script = psutil.Process(self.process.pid)
        for one in [script] if self.trains else [*script.children(recursive=True), script]:
            with contextlib.suppress(psutil.Error):
                one.terminate()
        timer = threading.Timer(self.grace, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """Kill what is left, until nothing is."""
        import psutil

        while left := psutil.Process().children(recursive=True):
            for child in left:
                try:
                    if child.status() == psutil.STATUS_ZOMBIE:
                        _reap(child.pid, self.process.pid)
                    else:
                        child.kill()
                except psutil.Error:
                    continue
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _reap(child: int, script: int) -> None:
    """Collect an orphan that has ended; whoever waits for the script gets its exit code."""
    if child != script:
        try:
            os.waitpid(child, os.WNOHANG)
        except ChildProcessError:
            return


def main(arguments: Sequence[str]) -> int:
    """Run the script `arguments[0]`.

    `arguments[1]` is `train` for a script that handles SIGTERM itself; told to end, it has
    `arguments[2]` seconds.
    """
    # Whatever loses its parent becomes a child of this process.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    # The script hears of a node that shuts down itself. Not SIG_IGN, which it would inherit.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    script = Script(arguments[0], arguments[1] == "train", float(arguments[2]))
    threading.Thread(target=script.listen, daemon=True).start()
    return script.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
