"""Tells the failure of this process from one that the end of another process caused."""

from __future__ import annotations

import os
import re
import sys

from pipeline.common.errors import FAILURE
from recipes.launching import ranks

# Messages of Gloo and NCCL about a process that is gone, and of torch about one that never came.
_GONE = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket Timeout|Timed out waiting \d+ms"
    r"|remote process exited|exiting prematurely"
)


def lost(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the message for a communication `error` that a lost process caused.

    None: it has another cause, or there are no others.
    """
    if (ranks.number(os.environ.get("WORLD_SIZE")) or 1) < 2:
        return None
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    known = getattr(distributed, "DistError", ())
    if not isinstance(error, known) and not (
        isinstance(error, RuntimeError) and _GONE.search(str(error))
    ):
        return None
    return FAILURE, (
        "another process of this training has ended or can't be reached: its own output says why;"
        " the last checkpoint is kept, and the same command goes on from it"
    )
