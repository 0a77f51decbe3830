"""The `pipeline` command: it parses arguments, calls the library, and prints results.

Until `main` runs there is nothing to undo, so Ctrl-C ends the program at once. An exception inside
an import would be shown as a traceback, or taken for a missing library.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = 130
PROGRAMS = ("pipeline", "__main__.py")


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def is_program() -> bool:
    """Tell whether this process runs the `pipeline` command, not a program that imports it."""
    # Before pathlib is imported, since Ctrl-C during imports must already find a handler.
    return os.path.basename(sys.argv[0] if sys.argv else "") in PROGRAMS  # noqa: PTH119


def _interruptible() -> bool:
    if not is_program() or threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


if _interruptible():
    signal.signal(signal.SIGINT, _end)


def started() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: commands clean up after themselves."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
